"""Packed sequences on the CPU: where each is computed alone, and where all are computed as one with the ends in ``done``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..packed import check_values, folded, is_packed
from ..specs import by_name
from . import dispatch
from .geometry import Unmergeable

# So few sequences may not give every thread one. As one row they can be cut into pieces, if there is enough to share. Not
# asked: how many threads there are, on which no bit of a result may depend.
FEW = 8


def offsets_of(op: str, args: Sequence[Any]) -> Tensor | None:
    """The offsets in a call of ``op``, if it has some."""
    offsets: Tensor | None = args[-1] if is_packed(op, args) else None
    return offsets


def is_better_as_one(offsets: Tensor, like: Tensor) -> bool:
    """Whether these are few and long sequences; ``like``: a result."""
    count = offsets.shape[0] - 1
    return count < FEW and like.numel() >= count * dispatch.STEPS_PER_CHUNK


def check(offsets: Tensor, total: int) -> None:
    """Make sure that no kernel is led out of its memory: at run time, whoever calls.

    Raises:
        ValueError: if the offsets do not go from 0 to ``total`` without decreasing.
    """
    numbers = offsets.numpy()
    if not (len(numbers) and numbers[0] == 0 and numbers[-1] == total and (numbers[1:] >= numbers[:-1]).all()):
        check_values(offsets, total)


def compute(
    op: str,
    args: tuple[Any, ...],
    results: Sequence[Tensor],
    recurrence: Callable[..., Tensor],
    fill: Callable[[tuple[Any, ...]], None],
) -> None:
    """Let ``fill`` compute ``results`` of ``op`` from ``args``, or from others that say the same without offsets."""
    offsets = offsets_of(op, args)
    if offsets is None or not results[0].numel():
        return fill(args)
    check(offsets, results[0].shape[by_name(op, args)["time_dim"]])
    if not is_better_as_one(offsets, results[0]):
        try:
            return fill(args)
        except Unmergeable:  # a copy of an operand would make it fit, but not one that has a step for each sequence
            pass
    return fill(folded(op, args, recurrence))
