"""The operators under test: how each is called, what it returns, and which bytes each direction has to move at least."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tritonrl import kernels

Arguments = dict[str, Any]
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Op:
    """One operator.

    ``kernel``: its name in :mod:`tritonrl.kernels`. ``tensors``: the floating inputs of full shape. ``outputs``: the names of
    the results. ``discounts``: the numbers that it takes. ``differentiated``: the inputs whose gradients the backward pass
    computes. ``saved``: what a backward pass needs besides the incoming gradients and the flags (names of inputs or outputs).
    """

    kernel: str
    tensors: tuple[str, ...]
    outputs: tuple[str, ...]
    discounts: dict[str, float]
    differentiated: tuple[str, ...]
    saved: tuple[str, ...] = ()
    flags: tuple[str, ...] = ("done", "terminated")


_DISCOUNTS = {"gamma": 0.99, "lmbda": 0.95}
_VTRACE = ("log_pi", "log_mu", "reward", "value", "next_value")
_VALUES = ("reward", "value", "next_value")
_RETURNS = ("reward", "next_value")

OPS: dict[str, Op] = {
    "gae": Op("gae", _VALUES, ("advantage", "value_target"), _DISCOUNTS, _VALUES),
    "td_lambda_return": Op("td_lambda_return", _RETURNS, ("returns",), _DISCOUNTS, _RETURNS),
    "td1_return": Op("td_lambda_return", _RETURNS, ("returns",), {"gamma": 0.99, "lmbda": 1.0}, _RETURNS),
    "reward_to_go": Op("reward_to_go", ("reward",), ("returns",), {"gamma": 0.99}, ("reward",), flags=("done",)),
    "vtrace": Op(
        "vtrace",
        _VTRACE,
        ("advantage", "value_target"),
        {"gamma": 0.99, "rho_thresh": 1.0, "c_thresh": 1.0},
        ("log_pi", *_VALUES),
        saved=(*_VTRACE, "value_target"),
    ),
    "linear_recurrence": Op("linear_recurrence", ("a", "b"), ("y",), {}, ("a", "b"), saved=("a", "y"), flags=()),
}


def kernel_of(op: str) -> Callable[..., Any]:
    """Our function for an op."""
    function: Callable[..., Any] = getattr(kernels, OPS[op].kernel)
    return function


def unsupported(op: str, arguments: Arguments) -> str | None:
    """Which arguments of a case our function does not take (yet), in words; ``None`` when it takes all of them."""
    known = inspect.signature(kernel_of(op)).parameters
    unknown = [name for name in arguments if name not in known]
    return f"{OPS[op].kernel} takes no {', '.join(unknown)}" if unknown else None


def as_tuple(results: Tensor | Outputs) -> Outputs:
    """Results of one or several outputs alike."""
    return (results,) if isinstance(results, Tensor) else tuple(results)
