"""Nothing wrong is timed: every contender's results are held against the fp64 oracle first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Relative to the largest number of the exact result. The inputs are exact in their own dtype, so what remains is the rounding
# of the output (2^-8 for bfloat16, 2^-11 for float16) and of sums in fp32.
TOLERANCE: dict[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}


class Verdict(NamedTuple):
    """``error``: the largest over all results, relative to the largest exact number; NaN when something is not finite."""

    ok: bool
    error: float
    detail: str


def _error(got: Tensor, exact: Tensor) -> float:
    exact = exact.to(got.device)
    worst = (got.detach().double() - exact).abs().max().item()
    scale = exact.abs().max().item()
    return worst / scale if scale else worst


def _error_of_moments(got: Tensor, exact: Tensor) -> float:
    """Count, mean and M2 each by its own scale: count, standard deviation, M2."""
    count, _, m2 = exact.tolist()
    scale = torch.tensor([count, math.sqrt(m2 / count), m2], dtype=torch.float64)
    return float(((got.detach().cpu().double() - exact).abs() / scale).max())


def judge(results: Sequence[Tensor], exact: Sequence[Tensor], names: Sequence[str], tolerance: float) -> Verdict:
    """Compare results with the exact ones: their number, their shapes, every element.

    One result more than there are ``names`` are the moments of the first.
    """
    if len(results) != len(exact):
        return Verdict(False, math.nan, f"returned {len(results)} results, expected {len(exact)}")
    largest = 0.0
    for name, got, wanted in zip((*names, "moments"), results, exact, strict=False):
        if got.shape != wanted.shape:
            return Verdict(False, math.nan, f"{name} has shape {tuple(got.shape)}, expected {tuple(wanted.shape)}")
        measure = _error_of_moments if name == "moments" else _error
        error = measure(got, wanted) if got.numel() else 0.0
        if not error <= tolerance:  # also when it is NaN
            return Verdict(False, error, f"{name} is off by {error:.1e} of its largest number, allowed {tolerance:.0e}")
        largest = max(largest, error)
    return Verdict(True, largest, "")
