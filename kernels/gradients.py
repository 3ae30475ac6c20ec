"""Gradients of the recurrences in plain torch: the same recurrence, forwards in time.

If ``y[t] = b[t] + a[t] y[t+1]`` and ``dy`` is the gradient of the loss with respect to ``y``, then the gradient with respect
to ``b`` obeys ``g[t] = dy[t] + a[t-1] g[t-1]``, and the one with respect to ``a`` is ``g[t] y[t+1]``. The rest is the chain
rule through what ``a`` and ``b`` are made of.

These functions are the twins of the fused backward kernels. They are built from differentiable pieces, so they are also how
a second derivative is taken: ``recurrence`` is then the differentiable op instead of the textbook loop. All return
gradients of the full shape ``S``; the caller sums them to the shape of each input. Gradients with respect to discounts and
thresholds cost extra reads, so they come as ``None`` unless ``with_discounts``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .dtypes import accumulate_dtype
from .textbook import closes, next_step, previous_step
from .textbook import linear_recurrence as textbook_recurrence

Recurrence = Callable[[Tensor, Tensor, Tensor | None, int, bool], Tensor]


def _product(g: Tensor, x: Tensor) -> Tensor:
    """``g * x``, but zero where no gradient arrives at a NaN or an inf: a poisoned step that nobody looks at stays harmless."""
    return g * _seen(g, x)


def _seen(g: Tensor, x: Tensor) -> Tensor:
    """``x`` as a factor of the gradient ``g``: zero in place of a NaN or an inf where no gradient arrives.

    Where a product contains a sum of inputs, each is taken like this: otherwise a second derivative would still meet the NaN.
    """
    return torch.where(torch.isfinite(x) | (g != 0), x, 0.0)


def _error_product(g: Tensor, reward: Tensor, gamma: Tensor, following: Tensor, value: Tensor) -> Tensor:
    """``g * (r + gamma u - V)``, with the future ``u``."""
    return g * (_seen(g, reward) + gamma * _seen(g, following) - _seen(g, value))


def _adjoint(a: Tensor, grad: Tensor, time_dim: int, recurrence: Recurrence) -> Tensor:
    """``g[t] = grad[t] + a[t-1] g[t-1]``: the gradient that arrives at ``b[t]`` from all earlier outputs."""
    return recurrence(previous_step(a.expand(grad.shape), None, time_dim), grad, None, time_dim, False)


def linear_recurrence_backward(
    grad: Tensor,
    a: Tensor,
    y: Tensor,
    carry: Tensor | None,
    time_dim: int,
    reverse: bool,
    recurrence: Recurrence = textbook_recurrence,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to ``a``, ``b`` and ``carry``."""
    a = a.expand(grad.shape)
    shifted = (previous_step if reverse else next_step)(a, None, time_dim)
    g = recurrence(shifted, grad, None, time_dim, not reverse)
    entering = (next_step if reverse else previous_step)(y, carry, time_dim)
    # Selected, not multiplied: where a[t] is zero because of a done, what lies behind may be NaN.
    grad_a = _product(g, torch.where(torch.isfinite(entering) | (a != 0), entering, 0.0))
    return grad_a, g, carry_gradient(a, g, time_dim, reverse)


def carry_gradient(a: Tensor, g: Tensor, time_dim: int, reverse: bool) -> Tensor:
    """Gradient with respect to the carry: ``a g`` of the step that it enters, and zero when there is none."""
    steps = g.shape[time_dim]
    if steps == 0:
        return g.sum(time_dim)
    edge = steps - 1 if reverse else 0
    return _product(a.expand(g.shape).select(time_dim, edge), g.select(time_dim, edge))


def gae_backward(
    grad_advantage: Tensor,
    grad_target: Tensor,
    next_value: Tensor,
    advantage: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: Tensor,
    lmbda: Tensor,
    time_dim: int,
    with_discounts: bool,
    recurrence: Recurrence = textbook_recurrence,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients with respect to reward, value, next_value, gamma and lmbda."""
    dtype = accumulate_dtype(advantage.dtype)
    gamma, lmbda = gamma.to(dtype), lmbda.to(dtype)
    grad_target = grad_target.to(dtype)
    g = _adjoint(torch.where(done, 0.0, gamma * lmbda), grad_advantage.to(dtype) + grad_target, time_dim, recurrence)
    grad_next_value = torch.where(terminated, 0.0, gamma * g)
    grad_gamma = grad_lmbda = None
    if with_discounts:
        following = _seen(g, torch.where(done, 0.0, next_step(advantage.to(dtype), None, time_dim)))
        bootstrap = _seen(g, torch.where(terminated, 0.0, next_value.to(dtype)))
        grad_gamma = g * (bootstrap + lmbda * following)
        grad_lmbda = g * gamma * following
    return g, grad_target - g, grad_next_value, grad_gamma, grad_lmbda


def td_lambda_return_backward(
    grad: Tensor,
    next_value: Tensor,
    returns: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: Tensor,
    lmbda: Tensor,
    time_dim: int,
    with_discounts: bool,
    recurrence: Recurrence = textbook_recurrence,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients with respect to reward, next_value, gamma and lmbda."""
    dtype = accumulate_dtype(returns.dtype)
    gamma, lmbda = gamma.to(dtype), lmbda.to(dtype)
    closed = closes(done.expand(grad.shape), time_dim)
    weight = torch.where(closed, 1.0, 1.0 - lmbda)
    g = _adjoint(torch.where(closed, 0.0, gamma * lmbda), grad.to(dtype), time_dim, recurrence)
    grad_next_value = torch.where(terminated, 0.0, gamma * weight * g)
    grad_gamma = grad_lmbda = None
    if with_discounts:
        bootstrap = _seen(g, torch.where(terminated, 0.0, next_value.to(dtype)))
        following = _seen(g, torch.where(closed, 0.0, next_step(returns.to(dtype), None, time_dim)))
        used = torch.where(weight == 0, 0.0, bootstrap)
        grad_gamma = g * (weight * used + lmbda * following)
        grad_lmbda = g * torch.where(closed, 0.0, gamma * (following - bootstrap))
    return g, grad_next_value, grad_gamma, grad_lmbda


def reward_to_go_backward(
    grad: Tensor,
    returns: Tensor,
    done: Tensor,
    gamma: Tensor,
    time_dim: int,
    with_discounts: bool,
    recurrence: Recurrence = textbook_recurrence,
) -> tuple[Tensor, Tensor | None]:
    """Gradients with respect to reward and gamma."""
    dtype = accumulate_dtype(returns.dtype)
    g = _adjoint(torch.where(done, 0.0, gamma.to(dtype)), grad.to(dtype), time_dim, recurrence)
    if not with_discounts:
        return g, None
    return g, _product(g, torch.where(done, 0.0, next_step(returns.to(dtype), None, time_dim)))


def vtrace_backward(
    grad_advantage: Tensor,
    grad_target: Tensor,
    log_pi: Tensor,
    log_mu: Tensor,
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    target: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: Tensor,
    rho_thresh: Tensor,
    c_thresh: Tensor,
    time_dim: int,
    with_discounts: bool,
    recurrence: Recurrence = textbook_recurrence,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients with respect to log_pi (log_mu has its negative), reward, value, next_value, gamma and both thresholds."""
    dtype = accumulate_dtype(target.dtype)
    grad_advantage, grad_target, log_pi, log_mu, reward, value, next_value, target, gamma, rho_thresh, c_thresh = (
        x.to(dtype)
        for x in (
            *(grad_advantage, grad_target, log_pi, log_mu, reward, value),
            *(next_value, target, gamma, rho_thresh, c_thresh),
        )
    )
    ratio = (log_pi - log_mu).exp()
    rho, c = torch.minimum(ratio, rho_thresh), torch.minimum(ratio, c_thresh)
    closed = closes(done.expand(target.shape), time_dim)
    bootstrap = torch.where(terminated, 0.0, next_value)
    following = torch.where(closed, bootstrap, next_step(target, None, time_dim))
    following = torch.where(terminated, 0.0, following)
    correction = torch.where(closed, 0.0, next_step(target - value, None, time_dim))

    # The advantage at t looks at the target of t+1, so its gradient enters the target one step later.
    scaled = _product(grad_advantage, rho)
    to_next = torch.where(terminated, 0.0, gamma * scaled)
    dx = grad_target + previous_step(torch.where(closed, 0.0, to_next).expand(target.shape), None, time_dim)
    # A NaN ratio, of padding say, passes nothing on: NaN times the zero gradient of a step that nobody looks at is NaN.
    g = _adjoint(torch.where(done | c.isnan(), 0.0, gamma * c), dx, time_dim, recurrence)
    grad_rho = _error_product(g, reward, gamma, bootstrap, value)
    grad_rho = grad_rho + _error_product(grad_advantage, reward, gamma, following, value)
    grad_c = g * gamma * _seen(g, correction)
    grad_ratio = torch.where(ratio <= rho_thresh, grad_rho, 0.0) + torch.where(ratio <= c_thresh, grad_c, 0.0)
    grad_log_pi = _product(grad_ratio, ratio)
    grad_reward = _product(g, rho) + scaled
    grad_value = dx - grad_reward
    grad_next_value = torch.where(terminated, 0.0, _product(g, gamma * rho)) + torch.where(closed, to_next, 0.0)
    if not with_discounts:
        return grad_log_pi, grad_reward, grad_value, grad_next_value, None, None, None
    grad_gamma = _product(g, rho * _seen(g, bootstrap) + c * _seen(g, correction)) + scaled * _seen(scaled, following)
    grad_rho_thresh = torch.where(ratio > rho_thresh, grad_rho, 0.0)
    grad_c_thresh = torch.where(ratio > c_thresh, grad_c, 0.0)
    return grad_log_pi, grad_reward, grad_value, grad_next_value, grad_gamma, grad_rho_thresh, grad_c_thresh
