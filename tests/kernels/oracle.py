"""The recurrences once more, one number at a time, written from the definitions and from nothing in ``kernels/``.

Every function below takes one lane as a mapping from argument name to the numbers of its steps, and returns one tuple of
outputs for each step. The numbers are Python floats, or 0-dim float64 tensors when :func:`gradients` wants autograd to see
them. Conditions are Python's ``if``: what is not chosen is not even looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Lane = Mapping[str, Any]
Steps = list[tuple[Any, ...]]


def exp(x: Any) -> Any:
    """The exponential of a float (infinite where it overflows) or of a tensor."""
    if isinstance(x, Tensor):
        return x.exp()
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def at_most(x: Any, limit: Any) -> Any:
    """The smaller of two; NaN when ``x`` is NaN."""
    return limit if x > limit else x


def plus_product(b: Any, a: Any, y: Any) -> Any:
    """``b + a y``, where a coefficient of zero hides a ``y`` that is no number."""
    return b if a == 0 and y - y != 0 else b + a * y


def linear_recurrence(lane: Lane) -> Steps:
    """``y[t] = b[t] + a[t] y[t+1]``, and ``y[T]`` is the carry."""
    y, out = lane["carry"], []
    for a, b in zip(reversed(lane["a"]), reversed(lane["b"]), strict=True):
        y = plus_product(b, a, y)
        out.append((y,))
    return out[::-1]


def linear_recurrence_forwards(lane: Lane) -> Steps:
    """``y[t] = b[t] + a[t] y[t-1]``, and ``y[-1]`` is the carry."""
    y, out = lane["carry"], []
    for a, b in zip(lane["a"], lane["b"], strict=True):
        y = plus_product(b, a, y)
        out.append((y,))
    return out


def bootstrap(lane: Lane, t: int) -> Any:
    """The value of the state that step ``t`` led to: zero when it is terminal."""
    return 0.0 if lane["terminated"][t] else lane["next_value"][t]


def gae(lane: Lane) -> Steps:
    """``A[t] = delta[t] + gamma lambda A[t+1]`` unless done, and ``A + V`` (Schulman et al. 2016, eq. 16)."""
    advantage, out = 0.0, []
    for t in reversed(range(len(lane["reward"]))):
        delta = lane["reward"][t] + lane["gamma"][t] * bootstrap(lane, t) - lane["value"][t]
        decay = 0.0 if lane["done"][t] else lane["gamma"][t] * lane["lmbda"][t]
        advantage = plus_product(delta, decay, advantage)
        out.append((advantage, advantage + lane["value"][t]))
    return out[::-1]


def td_lambda_return(lane: Lane) -> Steps:
    """``R[t] = r + gamma ((1-lambda) V' + lambda R[t+1])``, ``r + gamma V'`` at an end (Sutton and Barto, eq. 12.18)."""
    returns, out, steps = 0.0, [], len(lane["reward"])
    for t in reversed(range(steps)):
        gamma, lmbda = lane["gamma"][t], lane["lmbda"][t]
        if lane["done"][t] or t == steps - 1:
            returns = lane["reward"][t] + gamma * bootstrap(lane, t)
        else:
            short = lane["reward"][t] if lmbda == 1 else lane["reward"][t] + gamma * (1 - lmbda) * bootstrap(lane, t)
            returns = plus_product(short, gamma * lmbda, returns)
        out.append((returns,))
    return out[::-1]


def reward_to_go(lane: Lane) -> Steps:
    """``G[t] = r[t] + gamma G[t+1]`` unless done."""
    rest, out = 0.0, []
    for t in reversed(range(len(lane["reward"]))):
        rest = plus_product(lane["reward"][t], 0.0 if lane["done"][t] else lane["gamma"][t], rest)
        out.append((rest,))
    return out[::-1]


def vtrace(lane: Lane) -> Steps:
    """Espeholt et al. 2018, eq. 1 in its recursive form (remark 1) and the advantage of section 4.2."""
    target, correction, out, steps = 0.0, 0.0, [], len(lane["reward"])
    for t in reversed(range(steps)):
        reward, value, gamma = lane["reward"][t], lane["value"][t], lane["gamma"][t]
        ratio = exp(lane["log_pi"][t] - lane["log_mu"][t])
        rho, c = at_most(ratio, lane["rho_thresh"][t]), at_most(ratio, lane["c_thresh"][t])
        if lane["terminated"][t]:
            following = 0.0
        else:
            following = lane["next_value"][t] if lane["done"][t] or t == steps - 1 else target
        advantage = rho * (reward + gamma * following - value)
        delta = rho * (reward + gamma * bootstrap(lane, t) - value)
        correction = plus_product(delta, 0.0 if lane["done"][t] else gamma * c, correction)
        target = value + correction
        out.append((advantage, target))
    return out[::-1]


RECURRENCES: dict[str, Callable[[Lane], Steps]] = {
    "linear_recurrence": linear_recurrence,
    "linear_recurrence_carried": linear_recurrence,
    "linear_recurrence_forwards": linear_recurrence_forwards,
    "gae": gae,
    "td_lambda_return": td_lambda_return,
    "reward_to_go": reward_to_go,
    "vtrace": vtrace,
}


def full_shape(args: Mapping[str, Any]) -> torch.Size:
    """The shape that the data (everything but flags, discounts and the carry) broadcast to."""
    aside = {"done", "terminated", "gamma", "lmbda", "rho_thresh", "c_thresh", "carry"}
    return torch.broadcast_shapes(*(x.shape for name, x in args.items() if name not in aside))


def without(shape: torch.Size, time_dim: int) -> torch.Size:
    """``shape`` without its time dimension."""
    return shape[:time_dim] + shape[time_dim % len(shape) + 1 :]


def _numbers(x: Tensor, keep_graph: bool) -> list[Any]:
    return list(x.unbind()) if keep_graph else x.tolist()


def _exact(x: Any) -> Tensor:
    """A flag as it is, a number in float64."""
    if not isinstance(x, Tensor):
        return torch.tensor(x, dtype=torch.float64)
    return x if x.dtype is torch.bool else x.double()


def _lanes(args: Mapping[str, Any], time_dim: int, keep_graph: bool) -> list[dict[str, Any]]:
    """Each lane of the arguments, broadcast."""
    shape = full_shape(args)
    time_dim = time_dim % len(shape)
    filled = dict(args)
    if "done" in filled and filled.get("terminated") is None:
        filled["terminated"] = filled["done"]
    carry = filled.pop("carry", None)
    count = math.prod(without(shape, time_dim))
    columns: dict[str, Tensor] = {}
    for name, x in filled.items():
        x = _exact(x).cpu().expand(shape)
        columns[name] = x.movedim(time_dim, -1).reshape(count, shape[time_dim])
    lanes: list[dict[str, Any]] = [
        {name: _numbers(x[i], keep_graph and x.dtype is not torch.bool) for name, x in columns.items()}
        for i in range(count)
    ]
    if carry is not None:
        carry = carry.double().cpu().expand(without(shape, time_dim)).reshape(-1)
    for i, lane in enumerate(lanes):
        lane["carry"] = 0.0 if carry is None else carry[i] if keep_graph else carry[i].item()
    return lanes


def _outputs(op: str, args: Mapping[str, Any], time_dim: int, keep_graph: bool) -> list[list[Any]]:
    """For each output, the numbers in the order of ``[lane, time]``."""
    lanes = [RECURRENCES[op](lane) for lane in _lanes(args, time_dim, keep_graph)]
    count = 2 if op in ("gae", "vtrace") else 1
    return [[step[n] for lane in lanes for step in lane] for n in range(count)]


def compute(op: str, args: Mapping[str, Any], time_dim: int) -> tuple[Tensor, ...]:
    """The outputs of ``op`` in float64, computed step by step from ``args`` as they are."""
    shape = full_shape(args)
    out = []
    for numbers in _outputs(op, args, time_dim, keep_graph=False):
        x = torch.tensor(numbers, dtype=torch.float64)
        out.append(x.reshape(*without(shape, time_dim), shape[time_dim]).movedim(-1, time_dim))
    return tuple(out)


def gradients(
    op: str, args: Mapping[str, Any], time_dim: int, upstream: tuple[Tensor | None, ...], wrt: tuple[str, ...]
) -> dict[str, Tensor]:
    """Gradients of ``sum(upstream * outputs)``, by autograd through the scalar loop, summed to the shape of each input."""
    leaves = {name: _exact(args[name]).detach().cpu().requires_grad_() for name in wrt}
    outputs = _outputs(op, {**args, **leaves}, time_dim, keep_graph=True)
    reached, arriving = [], []
    for numbers, grad in zip(outputs, upstream, strict=True):
        if grad is None:
            continue
        flat = grad.double().cpu().movedim(time_dim, -1).reshape(-1)
        for y, g in zip(numbers, flat, strict=True):
            if g != 0 and isinstance(y, Tensor) and y.requires_grad:
                reached.append(y)
                arriving.append(g)
    if not reached:
        return {name: torch.zeros_like(x) for name, x in leaves.items()}
    found = torch.autograd.grad(reached, list(leaves.values()), arriving, allow_unused=True)
    return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), found, strict=True)}
