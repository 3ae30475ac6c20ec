"""The self-check behind ``python -m tritonrl``: every op, forward and backward, against its plain torch twin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import torch_backend
from .backend import backend_for, choose
from .compose import serve
from .specs import ALL_SPECS, SPECS, plain_names

TOLERANCE = 1e-4


class CheckResult(NamedTuple):
    """How an op agreed with its twin. ``max_error`` is relative to the largest number of the expected result."""

    op: str
    backend: str
    ok: bool
    max_error: float
    detail: str


# Three lanes or many: Numba compiles a kernel for each small number of neighbouring lanes.
SIZES = ((1, 3), (37, 3), (128, 16), (1000, 3))


class _Variant(NamedTuple):
    """An op as it is checked: with which of its optional arguments."""

    op: str
    optional: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.op} ({', '.join(self.optional)})" if self.optional else self.op


def _variants() -> list[_Variant]:
    """Every op without optional arguments, then with its masks, and then with all that go together."""
    found = [_Variant(op) for op in SPECS]
    for op, spec in ALL_SPECS.items():
        if spec.optional:
            together = tuple(name for name in spec.optional if name != "bootstrap_value")
            found += [_Variant(op, together[:-1]), _Variant(op, together)]  # the offsets are the last
    extensions = ((), ("cu_seqlens",), ("valid", "skip"), ("valid", "skip", "cu_seqlens"))
    derived = [_Variant("gae_extended", ("bootstrap_value", *more)) for more in extensions]
    return [*found, _Variant("gae_extended"), *derived]


def _arguments(op: str | _Variant, steps: int, lanes: int, device: str, lanes_contiguous: bool) -> list[Any]:
    """Random arguments in schema order: about one step in ten is done, and NaN stands wherever nothing may look."""
    variant = _Variant(op) if isinstance(op, str) else op
    generator = torch.Generator().manual_seed(steps)

    def draw(share: float) -> Tensor:
        return torch.rand(lanes, steps, generator=generator) < share

    def laid_out(x: Tensor) -> Tensor:
        return (x.t().contiguous().t() if lanes_contiguous else x).to(device)

    done = draw(0.1)
    flags = {"done": done, "terminated": done & draw(0.5), "valid": draw(0.8), "skip": draw(0.3)}
    unread = torch.zeros_like(done)
    if "valid" in variant.optional:
        unread |= ~flags["valid"]
    if "skip" in variant.optional:
        unread |= flags["skip"]
    middle = (steps + 1) // 2
    cu_seqlens = torch.tensor([0, 0, 1, middle, middle, steps, steps])  # sequences of no step, of one, and the rest
    made: dict[str, Any] = {
        "gamma": torch.tensor(0.97, dtype=torch.float64),
        "lmbda": laid_out(
            (0.5 + 0.5 * torch.rand(lanes, steps, generator=generator)).masked_fill(unread, float("nan"))
        ),
        "rho_thresh": torch.tensor(1.1, dtype=torch.float64),
        "c_thresh": torch.tensor(0.9, dtype=torch.float64),
        "carry": torch.randn(lanes, generator=generator).to(device),
        "bootstrap_value": _bootstrap_value(torch.randn(lanes, 7, generator=generator), variant, cu_seqlens).to(device),
        "cu_seqlens": cu_seqlens.to(device),
        "time_dim": -1,
        "reverse": True,
        "with_discounts": True,
        "moments": True,
        **{name: laid_out(flag) for name, flag in flags.items()},
    }
    for name in plain_names(variant.op):
        if name not in made:
            x = torch.randn(lanes, steps, generator=generator) * (0.3 if name.startswith("log") else 1.0)
            if name in ("advantage", "returns", "target"):  # what a forward pass has written: zeros there
                made[name] = laid_out(x.masked_fill(unread, 0.0))
            else:
                nowhere = unread | flags["terminated"] if name == "next_value" else unread
                made[name] = laid_out(x.masked_fill(nowhere, float("nan")))
    derives = "bootstrap_value" in variant.optional
    plain = [None if derives and name == "next_value" else made[name] for name in plain_names(variant.op)]
    optional = [made[name] if name in variant.optional else None for name in ALL_SPECS[variant.op].optional]
    return plain + (optional if variant.optional else [])


def _bootstrap_value(drawn: Tensor, variant: _Variant, cu_seqlens: Tensor) -> Tensor:
    """One value a lane, or where sequences are packed one a sequence: NaN for those that have no steps."""
    if "cu_seqlens" not in variant.optional:
        return drawn[:, 0]
    return drawn[:, 1:].masked_fill(cu_seqlens[1:] == cu_seqlens[:-1], float("nan"))


def _error(result: Tensor, expected: Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    if not torch.isfinite(expected).all():
        return float("nan")
    return ((result - expected).abs().max() / (1.0 + expected.abs().max())).item()


def _check(
    variant: _Variant, device: str, sizes: Sequence[tuple[int, int]], layouts: Sequence[bool] = (False, True)
) -> CheckResult:
    backend = choose(torch.device(device).type)
    worst, where = 0.0, ""
    for steps, lanes in sizes:
        for lanes_contiguous in layouts:
            args = _arguments(variant, steps, lanes, device, lanes_contiguous)
            results = serve(variant.op, args, backend_for(torch.device(device)))
            expected = serve(variant.op, args, torch_backend)
            pairs = zip(*((x,) if isinstance(x, Tensor) else x for x in (results, expected)), strict=True)
            for result, twin in pairs:
                error = _error(result, twin)
                if worst == worst and not error <= worst:  # a NaN is worse than any number, and stays
                    worst, where = (
                        error,
                        f"{steps} steps x {lanes} lanes, {'lanes' if lanes_contiguous else 'time'} contiguous",
                    )
    ok = worst <= TOLERANCE
    detail = "" if ok else f"worst at {where}, expected at most {TOLERANCE:g}"
    return CheckResult(variant.name, backend, ok, worst, detail)


def self_check(device: str = "cpu", sizes: Sequence[tuple[int, int]] = SIZES) -> list[CheckResult]:
    """Run every op and every backward op on ``device``, with and without masks, and compare with the plain torch twin.

    Args:
        device: where.
        sizes: how many steps and lanes, in pairs.

    Example:
        >>> all(result.ok for result in self_check())
        True
    """
    return [_check(variant, device, sizes) for variant in _variants()]
