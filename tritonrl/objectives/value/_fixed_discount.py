"""Returns whose discount belongs to the step they start from (``rolling_gamma=False``).

With rolling discounts ``gamma[t]`` is the price of the transition ``t -> t+1``, and all starts share one recursion.
Here ``gamma[k]`` and ``lmbda[k]`` hold for the whole future of step ``k``, so every start ``k`` has its own::

    R_k = G_k,
    G_i = r[i] + gamma[k] * ((1 - lmbda[k]) * n[i] + lmbda[k] * (n[i] if done[i] or i = T-1 else G_{i+1})),
    n[i] = next value, or 0 if terminated[i],      i = T-1 .. k

That is the usual recurrence over a table with one row per start; its diagonal is the result. The data enter the table
as stride-0 views, and the table is made in blocks of starts, so that the forward pass needs memory for one block only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonrl.kernels import td_lambda_return

from ._discounts import Discount

_TABLE_ELEMENTS = 2**22
"""Elements of one block of the table: 16 MiB in float32."""


def td_lambda_return_fixed_discount(
    reward: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor | None,
    *,
    gamma: Discount,
    lmbda: Discount,
    time_dim: int,
) -> Tensor:
    """TD(lambda) return of each step ``k``, discounted by its own ``gamma[k]`` and ``lmbda[k]`` all along its future.

    The arguments are those of :func:`tritonrl.kernels.td_lambda_return`.
    """
    time = time_dim % reward.ndim
    steps = reward.shape[time]
    if reward.numel() == 0:
        return td_lambda_return(reward, next_value, done, terminated, gamma=0.0, lmbda=0.0, time_dim=time)
    terminated = done if terminated is None else terminated
    block = max(1, _TABLE_ELEMENTS // reward.numel())
    returns = []
    for first in range(0, steps, block):
        starts = min(block, steps - first)
        data = [x.narrow(time, first, steps - first) for x in (reward, next_value, done, terminated)]
        own = [_per_start(x, reward, time, first, starts) for x in (gamma, lmbda)]
        returns.append(_block_returns(*data, gamma=own[0], lmbda=own[1], time=time, starts=starts))
    return torch.cat(returns, dim=time)


def _per_start(discount: Discount, reward: Tensor, time: int, first: int, starts: int) -> Discount:
    """The discounts of ``starts`` steps from ``first`` on: one row each, with nothing left that varies in time."""
    if not isinstance(discount, Tensor) or discount.ndim == 0:
        return discount
    own = discount.expand(reward.shape).narrow(time, first, starts)
    return own.movedim(time, 0).unsqueeze(time + 1)


def _block_returns(
    reward: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor,
    *,
    gamma: Discount,
    lmbda: Discount,
    time: int,
    starts: int,
) -> Tensor:
    """The returns of the first ``starts`` steps of ``reward``."""
    steps = reward.shape[time]
    # Row k must not look at what lies before step k: marked as ended there, neither a value nor a gradient passes.
    before = _before_start(starts, steps, reward.ndim - time - 1, time, reward.device)
    table = td_lambda_return(
        reward.unsqueeze(0).expand(starts, *reward.shape),
        next_value.unsqueeze(0).expand(starts, *reward.shape),
        done | before,
        terminated | before,
        gamma=gamma,
        lmbda=lmbda,
        time_dim=time + 1,
    )
    return table.diagonal(dim1=0, dim2=time + 1).movedim(-1, time)


def _before_start(starts: int, steps: int, trailing: int, leading: int, device: torch.device) -> Tensor:
    """``before[k, t] = t < k``, shaped ``[starts, 1 * leading, steps, 1 * trailing]``."""
    start = torch.arange(starts, device=device).view([starts] + [1] * (leading + 1 + trailing))
    return torch.arange(steps, device=device).view([steps] + [1] * trailing) < start
