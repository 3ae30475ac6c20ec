"""Arguments for the tests of masked and packed data, and how they call the ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritonrl import kernels

Args = dict[str, Any]
DATA = {
    "gae": ("reward", "value", "next_value"),
    "td_lambda_return": ("reward", "next_value"),
    "reward_to_go": ("reward",),
    "vtrace": ("log_pi", "log_mu", "reward", "value", "next_value"),
}
DISCOUNTS = {
    "gae": ("gamma", "lmbda"),
    "td_lambda_return": ("gamma", "lmbda"),
    "reward_to_go": ("gamma",),
    "vtrace": ("gamma", "rho_thresh", "c_thresh"),
}
NUMBERS = {"gamma": 0.97, "lmbda": 0.9, "rho_thresh": 1.1, "c_thresh": 0.9}
ALL = tuple(DATA)
MASKS = {"gae": ("valid", "skip"), "td_lambda_return": ("valid",), "reward_to_go": ("valid",), "vtrace": ("valid",)}


def draw(op: str, shape: tuple[int, ...], *, discounts: str = "number", seed: int = 0) -> Args:
    """Arguments without masks, in float64: one step in five is done, half of those terminal."""
    generator = torch.Generator().manual_seed(seed + sum(31**i * n for i, n in enumerate(shape)))

    def rand() -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    args: Args = {name: (2 * rand() - 1) * (0.6 if name.startswith("log") else 2.0) for name in DATA[op]}
    args["done"] = rand() < 0.2
    if op != "reward_to_go":
        args["terminated"] = args["done"] & (rand() < 0.5)
    for name in DISCOUNTS[op]:
        args[name] = NUMBERS[name] - 0.3 * rand() if discounts == "step" else NUMBERS[name]
    return args


def flag(shape: tuple[int, ...], share: float, seed: int) -> Tensor:
    """A random flag."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def masks(op: str, shape: tuple[int, ...], which: str = "valid skip") -> Args:
    """Masks that ``op`` knows."""
    shares = {"valid": 0.75, "skip": 0.3}
    known = [name for name in which.split() if name in MASKS[op]]
    return {name: flag(shape, shares[name], 3 + i) for i, name in enumerate(known)}


def counted(args: Args, shape: tuple[int, ...]) -> Tensor:
    """Where a step counts."""
    found = torch.ones(shape, dtype=torch.bool)
    if args.get("valid") is not None:
        found = found & args["valid"]
    if args.get("skip") is not None:
        found = found & ~args["skip"]
    return found


def poisoned(args: Args, shape: tuple[int, ...]) -> Args:
    """NaN in everything floating of the steps that do not count."""
    counts = counted(args, shape)
    return {
        name: x.expand(shape).masked_fill(~counts, float("nan"))
        if isinstance(x, Tensor) and x.is_floating_point() and x.dim() == len(shape)
        else x
        for name, x in args.items()
    }


def run(op: str, args: Args, time_dim: int, **more: Any) -> tuple[Tensor, ...]:
    """Call the op as users do; always a tuple."""
    given = {**args, **more}
    if op == "gae":
        given.setdefault("next_value", None)
    result = getattr(kernels, op)(**given, time_dim=time_dim)
    return result if isinstance(result, tuple) else (result,)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    """Equal to rounding, and finite."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert torch.isfinite(actual).all(), "a NaN or inf came through"
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)
