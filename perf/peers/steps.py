"""Every operator as coefficients, a scan, and a finish, in plain torch: what a user writes by hand.

The hand-written peers share this and differ in their scan ``(a, b, dim, reverse) -> y`` with ``y[t] = b[t] + a[t] y[t+1]``
(or ``y[t-1]``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops import Outputs

Scan = Callable[[Tensor, Tensor, int, bool], Tensor]


def sequential_scan(a: Tensor, b: Tensor, dim: int, reverse: bool) -> Tensor:
    """One step after the other."""
    steps = range(b.shape[dim])
    y = torch.zeros_like(b.select(dim, 0))
    out = []
    for t in reversed(steps) if reverse else steps:
        y = b.select(dim, t) + a.select(dim, t) * y
        out.append(y)
    return torch.stack(out[::-1] if reverse else out, dim)


def log_step_scan(a: Tensor, b: Tensor, dim: int, reverse: bool) -> Tensor:
    """Hillis and Steele 1986: log2(T) sweeps over the whole tensor, each combining steps twice as far apart."""
    a, b = a.movedim(dim, -1), b.movedim(dim, -1)
    steps, apart = b.shape[-1], 1
    while apart < steps:
        pad = (0, apart) if reverse else (apart, 0)
        near = slice(apart, None) if reverse else slice(None, -apart)
        b = b + a * torch.nn.functional.pad(b[..., near], pad)
        a = a * torch.nn.functional.pad(a[..., near], pad, value=1.0)
        apart *= 2
    return b.movedim(-1, dim)


def _number(x: Any, like: Tensor) -> Tensor:
    """``x`` as a tensor beside ``like``: filled on the device, because a copy from the host would wait for it."""
    return x if isinstance(x, Tensor) else torch.full((), x, dtype=like.dtype, device=like.device)


def _gae(
    scan: Scan, reward: Tensor, value: Tensor, next_value: Tensor, done: Tensor, gamma: Any, lmbda: Any, time_dim: int,
    terminated: Tensor | None = None,
) -> Outputs:  # fmt: skip
    ends = done if terminated is None else terminated
    delta = reward + torch.where(ends, 0.0, gamma * next_value) - value
    a = torch.where(done, 0.0, _number(gamma * lmbda, delta))
    advantage = scan(a.expand(delta.shape), delta, time_dim, True)
    return advantage, advantage + value


def _last(like: Tensor, time_dim: int) -> Tensor:
    """True at the last step."""
    steps = like.shape[time_dim]
    is_last = torch.arange(steps, device=like.device) == steps - 1
    return is_last.view([steps] + [1] * (-time_dim - 1))


def _td_lambda(
    scan: Scan, reward: Tensor, next_value: Tensor, done: Tensor, gamma: Any, lmbda: Any, time_dim: int,
    terminated: Tensor | None = None,
) -> Outputs:  # fmt: skip
    bootstrap = torch.where(done if terminated is None else terminated, 0.0, next_value)
    closed = done | _last(reward, time_dim)
    weight = torch.where(closed, 1.0, _number(1.0 - lmbda, reward))
    a = torch.where(closed, 0.0, _number(gamma * lmbda, reward))
    return (scan(a.expand(reward.shape), reward + gamma * weight * bootstrap, time_dim, True),)


def _reward_to_go(scan: Scan, reward: Tensor, done: Tensor, gamma: Any, time_dim: int) -> Outputs:
    a = torch.where(done, 0.0, _number(gamma, reward))
    return (scan(a.expand(reward.shape), reward, time_dim, True),)


def _vtrace(
    scan: Scan, log_pi: Tensor, log_mu: Tensor, reward: Tensor, value: Tensor, next_value: Tensor, done: Tensor,
    gamma: Any, rho_thresh: float, c_thresh: float, time_dim: int, terminated: Tensor | None = None,
) -> Outputs:  # fmt: skip
    ends = done if terminated is None else terminated
    ratio = (log_pi - log_mu).exp()
    rho, c = ratio.clamp(max=rho_thresh), ratio.clamp(max=c_thresh)
    bootstrap = torch.where(ends, 0.0, next_value)
    x = scan(torch.where(done, 0.0, gamma * c), rho * (reward + gamma * bootstrap - value), time_dim, True)
    target = value + x
    after = torch.cat(
        [target.narrow(time_dim, 1, target.shape[time_dim] - 1), bootstrap.narrow(time_dim, -1, 1)], time_dim
    )
    after = torch.where(ends, 0.0, torch.where(done | _last(reward, time_dim), bootstrap, after))
    return rho * (reward + gamma * after - value), target


def _linear(scan: Scan, a: Tensor, b: Tensor, time_dim: int, reverse: bool) -> Outputs:
    return (scan(a, b, time_dim, reverse),)


SOLVE: dict[str, Callable[..., Outputs]] = {
    "gae": _gae,
    "td_lambda_return": _td_lambda,
    "td1_return": _td_lambda,
    "reward_to_go": _reward_to_go,
    "vtrace": _vtrace,
    "linear_recurrence": _linear,
}
