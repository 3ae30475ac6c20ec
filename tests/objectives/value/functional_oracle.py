"""What the value functionals must return, one scalar at a time in Python floats, and the data to try them on.

Written from the formulas of the specification (sections 4 and 5), with none of the code under test and no tensor
arithmetic: one lane is a list of numbers, and each function walks it backwards as the formula reads.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tritonrl.objectives.value import functional

FUNCTIONALS: dict[str, Callable[..., Any]] = {name: getattr(functional, name) for name in functional.__all__}
FIXED_DISCOUNT = [name for name in FUNCTIONALS if "td1" in name or "td_lambda" in name]
"""The functions that know ``rolling_gamma``."""
WITH_TIME = [name for name in FUNCTIONALS if not name.startswith("td0")]
RETURNS_PAIR = ("generalized_advantage_estimate", "vec_generalized_advantage_estimate", "vtrace_advantage_estimate")

Lane = list[float]


def gae_lane(*, gamma: Lane, lmbda: Lane, value: Lane, next_value: Lane, reward: Lane, done: Lane, terminated: Lane):
    advantage = [0.0] * len(reward)
    following = 0.0
    for t in reversed(range(len(reward))):
        bootstrap = 0.0 if terminated[t] else next_value[t]
        following = 0.0 if done[t] else following
        delta = reward[t] + gamma[t] * bootstrap - value[t]
        following = advantage[t] = delta + gamma[t] * lmbda[t] * following
    return advantage, [a + v for a, v in zip(advantage, value, strict=True)]


def td0_lane(*, gamma: Lane, next_value: Lane, reward: Lane, terminated: Lane, **_: Lane) -> Lane:
    return [r if z else r + g * w for r, g, w, z in zip(reward, gamma, next_value, terminated, strict=True)]


def td1_lane(*, gamma: Lane, next_value: Lane, reward: Lane, done: Lane, terminated: Lane, **_: Lane) -> Lane:
    returns = [0.0] * len(reward)
    for t in reversed(range(len(reward))):
        future = next_value[t] if done[t] or t == len(reward) - 1 else returns[t + 1]
        returns[t] = reward[t] + gamma[t] * (0.0 if terminated[t] else future)
    return returns


def td_lambda_lane(
    *, gamma: Lane, lmbda: Lane, next_value: Lane, reward: Lane, done: Lane, terminated: Lane, **_: Lane
) -> Lane:
    returns = [0.0] * len(reward)
    for t in reversed(range(len(reward))):
        n = 0.0 if terminated[t] else next_value[t]
        future = n if done[t] or t == len(reward) - 1 else returns[t + 1]
        returns[t] = reward[t] + gamma[t] * ((1 - lmbda[t]) * n + lmbda[t] * future)
    return returns


def td1_fixed_lane(*, gamma: Lane, next_value: Lane, reward: Lane, done: Lane, terminated: Lane, **_: Lane) -> Lane:
    returns = []
    for k in range(len(reward)):
        total = 0.0
        for i in reversed(range(k, len(reward))):
            future = next_value[i] if done[i] and not terminated[i] else total
            total = reward[i] + gamma[k] * (0.0 if terminated[i] else future)
        returns.append(total)
    return returns


def td_lambda_fixed_lane(
    *, gamma: Lane, lmbda: Lane, next_value: Lane, reward: Lane, done: Lane, terminated: Lane, **_: Lane
) -> Lane:
    bootstrap = [0.0 if z else w for w, z in zip(next_value, terminated, strict=True)]
    returns = []
    for k in range(len(reward)):
        total = bootstrap[-1]
        for i in reversed(range(k, len(reward))):
            total = bootstrap[i] if done[i] else total
            total = reward[i] + gamma[k] * ((1 - lmbda[k]) * bootstrap[i] + lmbda[k] * total)
        returns.append(total)
    return returns


def reward2go_lane(*, gamma: Lane, reward: Lane, done: Lane, **_: Lane) -> Lane:
    returns = [0.0] * len(reward)
    following = 0.0
    for t in reversed(range(len(reward))):
        following = returns[t] = reward[t] + (0.0 if done[t] else gamma[t] * following)
    return returns


def vtrace_lane(
    *,
    gamma: Lane,
    log_pi: Lane,
    log_mu: Lane,
    value: Lane,
    next_value: Lane,
    reward: Lane,
    done: Lane,
    terminated: Lane,
    rho_thresh: Lane,
    c_thresh: Lane,
    **_: Lane,
) -> tuple[Lane, Lane]:
    steps = len(reward)
    ratio = [math.exp(p - m) for p, m in zip(log_pi, log_mu, strict=True)]
    rho = [min(x, cap) for x, cap in zip(ratio, rho_thresh, strict=True)]
    c = [min(x, cap) for x, cap in zip(ratio, c_thresh, strict=True)]
    bootstrap = [0.0 if z else w for w, z in zip(next_value, terminated, strict=True)]
    target = [0.0] * steps
    following = 0.0
    for t in reversed(range(steps)):
        following = rho[t] * (reward[t] + gamma[t] * bootstrap[t] - value[t]) + (
            0.0 if done[t] else gamma[t] * c[t] * following
        )
        target[t] = value[t] + following
    advantage = []
    for t in range(steps):
        u = bootstrap[t] if done[t] or t == steps - 1 else target[t + 1]
        advantage.append(rho[t] * (reward[t] + (0.0 if terminated[t] else gamma[t] * u) - value[t]))
    return advantage, target


def _lane_function(name: str, rolling: bool) -> Callable[..., Any]:
    if "generalized" in name:
        return gae_lane
    if "vtrace" in name:
        return vtrace_lane
    if name == "reward2go":
        return reward2go_lane
    if "td0" in name:
        return td0_lane
    if "td1" in name:
        return td1_lane if rolling else td1_fixed_lane
    return td_lambda_lane if rolling else td_lambda_fixed_lane


def oracle(
    name: str,
    data: dict[str, Tensor],
    *,
    gamma: float | Tensor,
    lmbda: float | Tensor = 1.0,
    rho_thresh: float | Tensor = 1.0,
    c_thresh: float | Tensor = 1.0,
    rolling_gamma: bool = True,
    time_dim: int = -2,
) -> tuple[Tensor, ...]:
    """The float64 result of ``name``, lane by lane; discounts must broadcast to the data as they are."""
    shape = data["reward"].shape
    discounts = {"gamma": gamma, "lmbda": lmbda, "rho_thresh": rho_thresh, "c_thresh": c_thresh}
    tensors = {
        **{key.replace("state_value", "value"): tensor for key, tensor in data.items()},
        **{key: torch.as_tensor(discount, dtype=torch.float64) for key, discount in discounts.items()},
    }
    lanes = {
        key: tensor.detach().double().expand(shape).movedim(time_dim, -1).reshape(-1, shape[time_dim]).tolist()
        for key, tensor in tensors.items()
    }
    lane_function = _lane_function(name, rolling_gamma)
    accepted = inspect.signature(lane_function).parameters
    outputs: list[list[Lane]] = []
    for i in range(len(lanes["reward"])):
        result = lane_function(**{key: lane[i] for key, lane in lanes.items() if key in accepted or "_" in accepted})
        outputs.append(list(result) if isinstance(result, tuple) else [result])
    order = data["reward"].movedim(time_dim, -1).shape
    stacked = [
        torch.tensor([lane[j] for lane in outputs], dtype=torch.float64).reshape(order).movedim(-1, time_dim)
        for j in range(2 if name in RETURNS_PAIR else 1)
    ]
    if name.endswith("advantage_estimate") and "td" in name:
        stacked[0] = stacked[0] - data["state_value"].detach().double()
    return tuple(stacked)


def sample(
    *shape: int, dtype: torch.dtype = torch.float64, done_rate: float = 0.25, seed: int = 0
) -> dict[str, Tensor]:
    """Random data; half of the done steps are terminated, the others truncated."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    done = torch.rand(shape, generator=generator) < done_rate
    floats = {key: normal() for key in ("state_value", "next_state_value", "reward", "log_pi", "log_mu")}
    return {**floats, "done": done, "terminated": done & (torch.rand(shape, generator=generator) < 0.5)}


def discount_like(*shape: int, low: float = 0.5, seed: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random discounts between ``low`` and 1."""
    generator = torch.Generator().manual_seed(seed)
    return (low + (1 - low) * torch.rand(shape, generator=generator, dtype=torch.float64)).to(dtype)


def call(name: str, data: dict[str, Tensor], function: Callable[..., Any] | None = None, **arguments: Any) -> Any:
    """Call a functional by keyword with those of ``data`` and ``arguments`` that it has a parameter for."""
    function = function or FUNCTIONALS[name]
    accepted = inspect.signature(function).parameters
    if not name.startswith("td0_return"):
        return function(**{key: x for key, x in {**data, **arguments}.items() if key in accepted})
    # done is a stand-in for terminated there, not a companion.
    return function(**{key: x for key, x in {**data, **arguments}.items() if key in accepted and key != "done"})


def results(output: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)


def assert_equal_to_oracle(
    name: str, data: dict[str, Tensor], *, rtol: float = 1e-9, atol: float = 1e-9, **arguments: Any
) -> None:
    got = results(call(name, data, **arguments))
    wanted = oracle(name, data, **arguments)
    assert len(got) == len(wanted)
    for g, w in zip(got, wanted, strict=True):
        assert g.shape == data["reward"].shape
        torch.testing.assert_close(g.double(), w, rtol=rtol, atol=atol)
