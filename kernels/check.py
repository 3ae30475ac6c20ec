"""The self-check behind ``python -m tritonrl``: every op, forward and backward, against its plain torch twin."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import torch_backend
from .backend import backend_for, choose
from .specs import SPECS

TOLERANCE = 1e-4


class CheckResult(NamedTuple):
    """How an op agreed with its twin. ``max_error`` is relative to the largest number of the expected result."""

    op: str
    backend: str
    ok: bool
    max_error: float
    detail: str


def _arguments(op: str, steps: int, lanes: int, device: str, lanes_contiguous: bool) -> list[Any]:
    """Random arguments in schema order: about one step in ten is done, NaN stands behind what is terminated."""
    generator = torch.Generator().manual_seed(steps)

    def laid_out(x: Tensor) -> Tensor:
        return (x.t().contiguous().t() if lanes_contiguous else x).to(device)

    done = torch.rand(lanes, steps, generator=generator) < 0.1
    terminated = done & (torch.rand(lanes, steps, generator=generator) < 0.5)
    made: dict[str, Any] = {
        "done": laid_out(done),
        "terminated": laid_out(terminated),
        "gamma": torch.tensor(0.97, dtype=torch.float64),
        "lmbda": laid_out(0.5 + 0.5 * torch.rand(lanes, steps, generator=generator)),
        "rho_thresh": torch.tensor(1.1, dtype=torch.float64),
        "c_thresh": torch.tensor(0.9, dtype=torch.float64),
        "carry": torch.randn(lanes, generator=generator).to(device),
        "time_dim": -1,
        "reverse": True,
        "with_discounts": True,
    }
    out = []
    for argument in SPECS[op].schema[1:].split(")")[0].split(","):
        name = argument.split()[-1]
        if name not in made:
            x = torch.randn(lanes, steps, generator=generator) * (0.3 if name.startswith("log") else 1.0)
            made[name] = laid_out(x.masked_fill(terminated, float("nan")) if name == "next_value" else x)
        out.append(made[name])
    return out


def _error(result: Tensor, expected: Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    if not torch.isfinite(expected).all():
        return float("nan")
    return ((result - expected).abs().max() / (1.0 + expected.abs().max())).item()


def _check(op: str, device: str) -> CheckResult:
    backend = choose(torch.device(device).type)
    worst, where = 0.0, ""
    # Three lanes or many: Numba compiles a kernel for each small number of neighbouring lanes.
    for steps, lanes in ((1, 3), (37, 3), (128, 16), (1000, 3)):
        for lanes_contiguous in (False, True):
            args = _arguments(op, steps, lanes, device, lanes_contiguous)
            results = getattr(backend_for(torch.device(device)), op)(*args)
            expected = getattr(torch_backend, op)(*args)
            pairs = zip(*((x,) if isinstance(x, Tensor) else x for x in (results, expected)), strict=True)
            for result, twin in pairs:
                error = _error(result, twin)
                if not error <= worst:  # also when it is NaN
                    worst, where = (
                        error,
                        f"{steps} steps x {lanes} lanes, {'lanes' if lanes_contiguous else 'time'} contiguous",
                    )
    ok = worst <= TOLERANCE
    return CheckResult(op, backend, ok, worst, "" if ok else f"worst at {where}, expected at most {TOLERANCE:g}")


def self_check(device: str = "cpu") -> list[CheckResult]:
    """Run every op and every backward op on ``device`` and compare with the plain torch twin.

    Example:
        >>> all(result.ok for result in self_check())
        True
    """
    return [_check(op, device) for op in SPECS]
