"""GAE: what a step contributes, and what comes out of it. ``x`` holds the inputs of one step, in the order named here."""

from __future__ import annotations

import triton
import triton.language as tl

from .memory import ABSENT
from .scan import product


@triton.jit
def gae_coefficients(x, is_last, KINDS: tl.constexpr):
    """``a = gamma lambda (1-D)``, ``b = r + gamma (1-Z) V' - V``.

    Inputs: reward, value, next_value, done, terminated (or absent: as done), gamma, lmbda.
    """
    reward, value, next_value, done, gamma, lmbda = x[0], x[1], x[2], x[3], x[5], x[6]
    if KINDS[4] == ABSENT:
        terminated = done
    else:
        terminated = x[4]
    a = tl.where(done, 0.0, gamma * lmbda)
    return a, reward + gamma * tl.where(terminated, 0.0, next_value) - value


@triton.jit
def gae_derived_coefficients(x, is_last, KINDS: tl.constexpr):
    """:func:`gae_coefficients` with ``V'`` derived: the value of the following step, at the end a bootstrap value.

    Inputs: as there, with the value of the following step in the place of next_value, and behind them the bootstrap value, and
    where sequences are packed, whether one ends.
    """
    if len(KINDS) > 8:
        next_value = tl.where(x[8], x[7], x[2])
    else:
        next_value = tl.where(is_last, x[7], x[2])
    return gae_coefficients((x[0], x[1], next_value, x[3], x[4], x[5], x[6]), is_last, KINDS)


@triton.jit
def gae_finish(x, entering, advantage, is_last, KINDS: tl.constexpr):
    """The advantage, and the value target ``A + V``."""
    return advantage, advantage + x[1]


@triton.jit
def gae_backward_coefficients(x, is_last, KINDS: tl.constexpr):
    """The state is ``h[t] = a[t] g[t]``, where ``g[t] = dA[t] + dtarget[t] + h[t-1]`` is the gradient that reaches ``b[t]``.

    Inputs: grad_advantage (or absent), grad_target (or absent), done, terminated (or absent: as done), gamma, lmbda, and
    only where gradients of the discounts are wanted: next_value, and the advantage of the following step.
    """
    a = tl.where(x[2], 0.0, x[4] * x[5])
    return a, tl.where(a == 0, 0.0, a * gae_incoming(x, KINDS))


@triton.jit
def gae_incoming(x, KINDS: tl.constexpr):
    """The gradient that arrives at the advantage from the outputs: the value target contains it too."""
    if KINDS[0] == ABSENT:
        return x[1]
    elif KINDS[1] == ABSENT:
        return x[0]
    else:
        return x[0] + x[1]


@triton.jit
def gae_backward_finish(x, entering, h, is_last, KINDS: tl.constexpr):
    """Gradients with respect to reward, value, next_value, and gamma and lmbda when wanted."""
    g = gae_incoming(x, KINDS) + entering
    done, gamma, lmbda = x[2], x[4], x[5]
    if KINDS[3] == ABSENT:
        terminated = done
    else:
        terminated = x[3]
    if KINDS[1] == ABSENT:
        grad_value = -g
    else:
        grad_value = x[1] - g
    grad_next_value = tl.where(terminated, 0.0, gamma * g)
    if KINDS[6] == ABSENT:
        return g, grad_value, grad_next_value
    else:
        bootstrap = tl.where(terminated, 0.0, x[6])
        following = tl.where(done, 0.0, x[7])
        return g, grad_value, grad_next_value, product(g, bootstrap + lmbda * following), product(g, gamma * following)
