"""What ``perf inspect`` compiles: ops x launches x dtypes, as data, and the arguments of each."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritonrl.kernels.specs import SPECS

from .data import LAYOUTS

# One for every plan that a shape can get: rows in tiles of several, of one, of one in many chunks; lanes; split either way.
SHAPES: dict[str, tuple[int, int, str]] = {
    "rows": (4096, 128, "NT"),
    "rows-long": (8192, 4096, "NT"),
    "rows-short": (32768, 8, "NT"),
    "rows-odd": (4096, 129, "NT"),
    "rows-few": (8, 128, "NT"),
    "split-rows": (8, 65536, "NT"),
    "lanes": (65536, 128, "TN"),
    "lanes-short": (32768, 16, "TN"),
    "split-lanes": (64, 65536, "TN"),
    "lanes-few": (8, 128, "TN"),
    "features": (8192, 512, "NTF"),
}
MAIN_SHAPES = ("rows", "lanes", "split-rows", "split-lanes")
DTYPES = ("float32", "bfloat16", "float16", "float64")
CAPABILITIES = (80, 90, 100)
QUICK = ("gae/rows/", "gae/lanes/", "gae/split-rows/", "gae_backward/rows/", "vtrace_backward/lanes/")


class Launch(NamedTuple):
    """One kernel to compile. ``discounts``: a backward pass that also gives gradients of gamma, lambda and thresholds."""

    op: str
    shape: str
    dtype: str
    discounts: bool
    capability: int

    @property
    def id(self) -> str:
        """A name that ``--only`` matches."""
        return f"{self.op}{'+discounts' if self.discounts else ''}/{self.shape}/{self.dtype}/sm_{self.capability}"


def launches(only: Sequence[str] = (), capabilities: Sequence[int] = CAPABILITIES, quick: bool = False) -> list[Launch]:
    """Every op on every shape in float32, and on the main shapes in every dtype; or the few of ``--quick``."""
    found = []
    for capability in (90,) if quick else capabilities:
        for op, spec in SPECS.items():
            for shape in SHAPES:
                for dtype in DTYPES if shape in MAIN_SHAPES else DTYPES[:1]:
                    wanted = (False, True) if spec.discount_outputs else (False,)
                    found += [Launch(op, shape, dtype, discounts, capability) for discounts in wanted]
    if quick:
        found = [x for x in found if x.dtype == "float32" and x.id.startswith(QUICK)]
    patterns = [f"*{pattern.strip('*')}*" for pattern in only]
    return [x for x in found if not patterns or any(fnmatch.fnmatchcase(x.id, p) for p in patterns)]


def named_arguments(launch: Launch) -> dict[str, Any]:
    """The arguments of the op by name, in schema order: uninitialised CPU tensors of the layout."""
    lanes, steps, layout_name = SHAPES[launch.shape]
    layout, dtype = LAYOUTS[layout_name], getattr(torch, launch.dtype)
    shape, flag_shape = layout.shape(lanes, steps), layout.flag_shape(lanes, steps)
    number = torch.tensor(0.9, dtype=torch.float64)
    given: dict[str, Any] = {"time_dim": layout.time_dim, "reverse": True, "with_discounts": launch.discounts}
    given |= dict.fromkeys(("gamma", "lmbda", "rho_thresh", "c_thresh"), number)
    arguments = {}
    for argument in SPECS[launch.op].schema[1:].split(")")[0].split(","):
        kind, name = argument.split("=")[0].split()[:2]
        if name in given:
            arguments[name] = given[name]
        elif name == "carry" or not kind.startswith("Tensor"):
            arguments[name] = None
        elif name in ("done", "terminated"):
            arguments[name] = torch.empty(flag_shape, dtype=torch.bool)
        else:
            arguments[name] = torch.empty(shape, dtype=dtype)
    return arguments


def contiguous_extent(x: Tensor, shape: Sequence[int], time_dim: int) -> tuple[str, int]:
    """Along what ``x`` lies in memory without gaps, ``time`` or ``lanes`` (or neither), and how many elements lie so."""
    expanded = x.expand(tuple(shape))
    strides = expanded.stride()
    if strides[time_dim] == 1:
        return "time", shape[time_dim]
    return ("lanes", shape[-1]) if strides[-1] == 1 and time_dim != -1 else ("", 1)
