"""Count, mean and M2 of a result, merged from those of its parts (:mod:`.parts`).

Masked steps count as zeros there, and are taken out at the end: which steps count no kernel needs to know.
"""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from ..textbook import counted
from . import team
from .compile import Compiled, compiled_once
from .geometry import Plan
from .looks import measuring, merging
from .measured import measured_rows
from .numbers import NUMBERS
from .parts import STATE_BYTES


def room_for(parts: int) -> array[float]:
    """For count, mean and M2 of so many parts. The address of an array is had in a tenth of the time of one of NumPy's."""
    return array("d", bytes(STATE_BYTES * parts))


def measure_parts(x: Tensor, plan: Plan, partials: array[float], chunks: int, threads: int) -> None:
    """The moments of each part of ``x``, which has been computed, into ``partials``."""
    number = NUMBERS[x.dtype]
    function = compiled_once(("moments", number.name), functools.partial(measuring, number))
    pointers = array("q", [x.data_ptr(), partials.buffer_info()[0]])
    where, parts = (plan.address, pointers.buffer_info()[0], 0), plan.parts
    team.run(function, *where, parts, min(parts, chunks), threads, (x, plan, partials, pointers))


def kernel_of_measured_rows(dtype: torch.dtype) -> Compiled:
    """The machine code that has rows computed, and measures them."""
    number = NUMBERS[dtype]
    return compiled_once(("moments of rows", number.name), functools.partial(measured_rows, number))


def merge(partials: array[float] | None, masks: Sequence[Tensor | None], shape: torch.Size, moments: Tensor) -> None:
    """Merge those of the parts, of what counts, into ``moments``; no partials are of nothing. ``shape``: of the masks."""
    if partials is None:
        moments.zero_()
        return
    address, numbers = partials.buffer_info()
    compiled_once(("merge",), lambda: merging)(address, numbers // 3, moments.data_ptr(), 0, 0)
    counts = counted(*masks) if masks else None
    if counts is not None:
        total, mean, m2 = moments.tolist()
        moments.numpy()[:] = _without_the_others(total, mean, m2, _how_many(counts, shape))


def _how_many(counts: Tensor, shape: torch.Size) -> int:
    """How many steps count; a mask that is broadcast counts as often as it stands for a step."""
    return int(counts.count_nonzero()) * (shape.numel() // counts.numel())


def _without_the_others(total: float, mean: float, m2: float, count: int) -> tuple[float, float, float]:
    """The moments of ``count`` numbers, from those of the same and some zeros."""
    if not count:
        return 0.0, 0.0, 0.0
    kept_mean = mean * total / count
    kept_m2 = m2 - (total - count) * mean * kept_mean
    return float(count), kept_mean, kept_m2 if math.isnan(kept_m2) else max(kept_m2, 0.0)
