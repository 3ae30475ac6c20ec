"""TD(lambda) returns, rewards to go, and their gradients. ``x`` holds the inputs of one step, in the order named here."""

from __future__ import annotations

import triton
import triton.language as tl

from .memory import ABSENT
from .scan import either, product


@triton.jit
def td_lambda_coefficients(x, is_last, KINDS: tl.constexpr):
    """``a = gamma lambda (1-C)``, ``b = r + gamma (C ? 1 : 1-lambda) (1-Z) V'``; a step closes (C) if done or last.

    Inputs: reward, next_value, done, terminated (or absent: as done), gamma, lmbda.
    """
    reward, next_value, done, gamma, lmbda = x[0], x[1], x[2], x[4], x[5]
    if KINDS[3] == ABSENT:
        terminated = done
    else:
        terminated = x[3]
    closed = either(done, is_last)
    weight = tl.where(closed, 1.0, 1.0 - lmbda)
    # With lambda = 1 the next value of an open step is not used, so it may be anything.
    bootstrap = tl.where(either(terminated, weight == 0), 0.0, next_value)
    return tl.where(closed, 0.0, gamma * lmbda), reward + gamma * weight * bootstrap


@triton.jit
def only_state(x, entering, state, is_last, KINDS: tl.constexpr):
    """The return is the state itself."""
    return (state,)


@triton.jit
def td_lambda_backward_coefficients(x, is_last, KINDS: tl.constexpr):
    """The state is ``h[t] = a[t] g[t]``, where ``g[t] = dR[t] + h[t-1]`` is the gradient that reaches ``b[t]``.

    Inputs: grad, done, terminated (or absent: as done), gamma, lmbda, and only where gradients of the discounts are wanted:
    next_value, and the return of the following step.
    """
    a = tl.where(either(x[1], is_last), 0.0, x[3] * x[4])
    return a, tl.where(a == 0, 0.0, a * x[0])


@triton.jit
def td_lambda_backward_finish(x, entering, h, is_last, KINDS: tl.constexpr):
    """Gradients with respect to reward, next_value, and gamma and lmbda when wanted."""
    g = x[0] + entering
    done, gamma, lmbda = x[1], x[3], x[4]
    if KINDS[2] == ABSENT:
        terminated = done
    else:
        terminated = x[2]
    closed = either(done, is_last)
    weight = tl.where(closed, 1.0, 1.0 - lmbda)
    grad_next_value = tl.where(terminated, 0.0, gamma * weight * g)
    if KINDS[5] == ABSENT:
        return g, grad_next_value
    else:
        bootstrap = tl.where(terminated, 0.0, x[5])
        following = tl.where(closed, 0.0, x[6])
        grad_lmbda = product(g, tl.where(closed, 0.0, gamma * (following - bootstrap)))
        used = tl.where(weight == 0, 0.0, bootstrap)
        return g, grad_next_value, product(g, weight * used + lmbda * following), grad_lmbda


@triton.jit
def reward_to_go_coefficients(x, is_last, KINDS: tl.constexpr):
    """``a = gamma (1-D)``, ``b = r``. Inputs: reward, done, gamma."""
    return tl.where(x[1], 0.0, x[2]), x[0]


@triton.jit
def reward_to_go_backward_coefficients(x, is_last, KINDS: tl.constexpr):
    """The state is ``h[t] = a[t] g[t]``, ``g[t] = dG[t] + h[t-1]``.

    Inputs: grad, done, gamma, and only where its gradient is wanted: the return of the following step.
    """
    a = tl.where(x[1], 0.0, x[2])
    return a, tl.where(a == 0, 0.0, a * x[0])


@triton.jit
def reward_to_go_backward_finish(x, entering, h, is_last, KINDS: tl.constexpr):
    """Gradients with respect to reward, and gamma when wanted."""
    g = x[0] + entering
    if KINDS[3] == ABSENT:
        return (g,)
    else:
        return g, product(g, tl.where(x[1], 0.0, x[3]))
