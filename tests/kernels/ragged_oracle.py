"""Masked and packed recurrences one number at a time, written from what the masks mean and from nothing in ``kernels/``.

Every function takes one lane as a mapping from argument name to the numbers of its steps (floats, or 0-dim tensors that
autograd sees) and returns one tuple of outputs for each step. Conditions are Python's ``if``: a step that does not count is
not even looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Lane = Mapping[str, Any]
Steps = list[tuple[Any, ...]]


def _exp(x: Any) -> Any:
    return x.exp() if isinstance(x, Tensor) else math.exp(x)


def next_values(lane: Lane) -> list[Any]:
    """The next value of every step: as given, or that of the next step that counts, or the bootstrap value."""
    if lane["next_value"][0] is not None:
        return list(lane["next_value"])
    out, ahead = [], lane["bootstrap_value"]
    for t in reversed(range(len(lane["reward"]))):
        out.append(ahead)
        if lane["valid"][t] and not lane["skip"][t]:
            ahead = lane["value"][t]
    return out[::-1]


def gae(lane: Lane) -> Steps:
    """Backwards in time; an invalid step forgets what is behind it, a skipped one remembers it unless it is done."""
    advantage, out, next_value = 0.0, [], next_values(lane)
    for t in reversed(range(len(lane["reward"]))):
        if not lane["valid"][t]:
            advantage = 0.0
            out.append((0.0, 0.0))
            continue
        if lane["skip"][t]:
            advantage = 0.0 if lane["done"][t] else advantage
            out.append((0.0, 0.0))
            continue
        gamma, value = lane["gamma"][t], lane["value"][t]
        delta = lane["reward"][t] - value
        if not lane["terminated"][t]:
            delta = delta + gamma * next_value[t]
        advantage = delta if lane["done"][t] else delta + gamma * lane["lmbda"][t] * advantage
        out.append((advantage, advantage + value))
    return out[::-1]


def _closes(lane: Lane, t: int) -> bool:
    last = t == len(lane["reward"]) - 1
    return lane["done"][t] or last or not lane["valid"][t + 1]


def td_lambda_return(lane: Lane) -> Steps:
    """A step with nothing valid behind it closes on its next value."""
    returns, out = 0.0, []
    for t in reversed(range(len(lane["reward"]))):
        if not lane["valid"][t]:
            out.append((0.0,))
            continue
        gamma, lmbda = lane["gamma"][t], lane["lmbda"][t]
        bootstrap = 0.0 if lane["terminated"][t] else lane["next_value"][t]
        behind = bootstrap if _closes(lane, t) else (1 - lmbda) * bootstrap + lmbda * returns
        returns = lane["reward"][t] + gamma * behind
        out.append((returns,))
    return out[::-1]


def reward_to_go(lane: Lane) -> Steps:
    """Nothing is bootstrapped."""
    rest, out = 0.0, []
    for t in reversed(range(len(lane["reward"]))):
        if not lane["valid"][t]:
            rest = 0.0
            out.append((0.0,))
            continue
        rest = lane["reward"][t] if lane["done"][t] else lane["reward"][t] + lane["gamma"][t] * rest
        out.append((rest,))
    return out[::-1]


def vtrace(lane: Lane) -> Steps:
    """Espeholt et al. 2018; a step with nothing valid behind it looks at its next value."""
    target, correction, out = 0.0, 0.0, []
    for t in reversed(range(len(lane["reward"]))):
        if not lane["valid"][t]:
            correction = 0.0
            out.append((0.0, 0.0))
            continue
        reward, value, gamma = lane["reward"][t], lane["value"][t], lane["gamma"][t]
        ratio = _exp(lane["log_pi"][t] - lane["log_mu"][t])
        rho = ratio if ratio < lane["rho_thresh"][t] else lane["rho_thresh"][t]
        c = ratio if ratio < lane["c_thresh"][t] else lane["c_thresh"][t]
        bootstrap = 0.0 if lane["terminated"][t] else lane["next_value"][t]
        following = bootstrap if _closes(lane, t) else 0.0 if lane["terminated"][t] else target
        advantage = rho * (reward + gamma * following - value)
        delta = rho * (reward + gamma * bootstrap - value)
        correction = delta if lane["done"][t] else delta + gamma * c * correction
        target = value + correction
        out.append((advantage, target))
    return out[::-1]


RECURRENCES: dict[str, Callable[[Lane], Steps]] = {
    "gae": gae,
    "td_lambda_return": td_lambda_return,
    "reward_to_go": reward_to_go,
    "vtrace": vtrace,
}
_ASIDE = ("done", "terminated", "valid", "skip", "gamma", "lmbda", "rho_thresh", "c_thresh", "bootstrap_value")


def full_shape(args: Mapping[str, Any]) -> torch.Size:
    """What the data broadcast to."""
    return torch.broadcast_shapes(*(x.shape for name, x in args.items() if name not in _ASIDE and x is not None))


def _lanes(args: Mapping[str, Any], time_dim: int) -> list[dict[str, Any]]:
    shape = full_shape(args)
    time = time_dim % len(shape)
    without = shape[:time] + shape[time + 1 :]
    filled = {"valid": True, "skip": False, "next_value": None, **args}
    filled["valid"] = True if filled["valid"] is None else filled["valid"]
    filled["skip"] = False if filled["skip"] is None else filled["skip"]
    if filled.get("terminated") is None:
        filled["terminated"] = filled["done"]
    columns: dict[str, list[Any]] = {}
    for name, x in filled.items():
        if x is None or name == "bootstrap_value":
            continue
        x = x if isinstance(x, Tensor) else torch.tensor(x, dtype=None if isinstance(x, bool) else torch.float64)
        rows = x.expand(shape).movedim(time, -1).reshape(-1, shape[time]).unbind()
        keep = x.requires_grad
        columns[name] = [list(row.unbind()) if keep else row.tolist() for row in rows]
    lanes = [{name: rows[i] for name, rows in columns.items()} for i in range(without.numel())]
    bootstrap = args.get("bootstrap_value")
    for i, lane in enumerate(lanes):
        lane.setdefault("next_value", [None] * shape[time])
        lane["bootstrap_value"] = None if bootstrap is None else bootstrap.expand(without).reshape(-1)[i]
    return lanes


def compute(op: str, args: Mapping[str, Any], time_dim: int) -> tuple[Tensor, ...]:
    """The outputs of ``op`` in float64; autograd sees through them."""
    shape = full_shape(args)
    time = time_dim % len(shape)
    lanes = [RECURRENCES[op](lane) for lane in _lanes(args, time_dim)]
    out = []
    for n in range(2 if op in ("gae", "vtrace") else 1):
        numbers = [step[n] for lane in lanes for step in lane]
        stacked = torch.stack([x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64) for x in numbers])
        out.append(stacked.reshape(*shape[:time], *shape[time + 1 :], shape[time]).movedim(-1, time))
    return tuple(out)
