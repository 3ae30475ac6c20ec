"""V-trace and its gradient. ``x`` holds the inputs of one step, in the order named here."""

from __future__ import annotations

import triton
import triton.language as tl

from .memory import ABSENT
from .scan import either, product


@triton.jit
def importance(log_pi, log_mu, rho_thresh, c_thresh):
    """``pi/mu`` and its two truncations, rho and c."""
    ratio = tl.exp(log_pi - log_mu)
    return ratio, truncated(ratio, rho_thresh), truncated(ratio, c_thresh)


@triton.jit
def truncated(ratio, threshold):
    """The smaller of two; NaN if one of them is (the processor's own minimum would give the other one)."""
    return tl.minimum(ratio, threshold, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def vtrace_coefficients(x, is_last, KINDS: tl.constexpr):
    """``a = gamma c (1-D)``, ``b = rho (r + gamma (1-Z) V' - V)``; the state is the correction ``x[t] = vs[t] - V[t]``.

    Inputs: log_pi, log_mu, reward, value, next_value, done, terminated (or absent: as done), gamma, rho_thresh, c_thresh,
    and the value of the following step.
    """
    reward, value, next_value, done, gamma = x[2], x[3], x[4], x[5], x[7]
    _, rho, c = importance(x[0], x[1], x[8], x[9])
    if KINDS[6] == ABSENT:
        terminated = done
    else:
        terminated = x[6]
    b = rho * (reward + gamma * tl.where(terminated, 0.0, next_value) - value)
    return tl.where(done, 0.0, gamma * c), b


@triton.jit
def vtrace_finish(x, entering, state, is_last, KINDS: tl.constexpr):
    """The advantage ``rho (r + gamma (1-Z) u - V)`` and the target ``vs = V + x``."""
    reward, value, next_value, done, gamma = x[2], x[3], x[4], x[5], x[7]
    _, rho, _c = importance(x[0], x[1], x[8], x[9])
    if KINDS[6] == ABSENT:
        terminated = done
    else:
        terminated = x[6]
    following = tl.where(either(done, is_last), next_value, x[10] + entering)
    return rho * (reward + gamma * tl.where(terminated, 0.0, following) - value), value + state


@triton.jit
def vtrace_to_next(grad_advantage, log_pi, log_mu, done, terminated, gamma, rho_thresh):
    """What the advantage of a step sends to the target of the following one, ``rho gamma dA``, unless the step closes."""
    rho = truncated(tl.exp(log_pi - log_mu), rho_thresh)
    return tl.where(either(done, terminated), 0.0, product(grad_advantage, gamma * rho))


@triton.jit
def vtrace_backward_coefficients(x, is_last, KINDS: tl.constexpr):
    """The state is ``m[t] = a[t] g[t] + e[t]``: ``e`` is what the advantage sends on, and ``g[t] = dvs[t] + m[t-1]``.

    Inputs: grad_advantage, grad_target (or absent), log_pi, log_mu, reward, value, next_value, done, terminated (or
    absent: as done), gamma, rho_thresh, c_thresh; of the following step target and value; of the preceding step
    grad_advantage, log_pi, log_mu, done, terminated (or absent), gamma and rho_thresh, and where there are masks, valid.
    """
    done, gamma = x[7], x[9]
    _, _rho, c = importance(x[2], x[3], x[10], x[11])
    if KINDS[8] == ABSENT:
        terminated = done
    else:
        terminated = x[8]
    # A NaN ratio, of padding say, passes nothing on: NaN times the zero gradient of a step that nobody looks at is NaN.
    a = tl.where(either(done, c != c), 0.0, gamma * c)
    b = vtrace_to_next(x[0], x[2], x[3], done, terminated, gamma, x[10])
    if KINDS[1] == ABSENT:
        return a, b
    else:
        return a, b + tl.where(a == 0, 0.0, a * x[1])


@triton.jit
def vtrace_backward_finish(x, entering, state, is_last, KINDS: tl.constexpr):
    """Gradients with respect to log_pi, reward, value, next_value, and when wanted gamma, rho_thresh and c_thresh."""
    reward, value, next_value, done, gamma = x[4], x[5], x[6], x[7], x[9]
    ratio, rho, c = importance(x[2], x[3], x[10], x[11])
    if KINDS[8] == ABSENT:
        terminated = done
        before_terminated = x[17]
    else:
        terminated = x[8]
        before_terminated = x[18]
    closed = either(done, is_last)
    bootstrap = tl.where(terminated, 0.0, next_value)
    following = tl.where(terminated, 0.0, tl.where(closed, next_value, x[12]))
    correction = tl.where(closed, 0.0, x[12] - x[13])
    arriving = vtrace_to_next(x[14], x[15], x[16], x[17], before_terminated, x[19], x[20])
    if len(KINDS) > 21:
        arriving = tl.where(x[21], arriving, 0.0)
    if KINDS[1] == ABSENT:
        g, dx = entering, arriving
    else:
        g, dx = x[1] + entering, x[1] + arriving
    scaled = product(x[0], rho)
    grad_rho = product(g, reward + gamma * bootstrap - value) + product(x[0], reward + gamma * following - value)
    grad_c = product(g, gamma * correction)
    grad_ratio = tl.where(ratio <= x[10], grad_rho, 0.0) + tl.where(ratio <= x[11], grad_c, 0.0)
    grad_log_pi = product(grad_ratio, ratio)
    grad_reward = product(g, rho) + scaled
    to_next = tl.where(terminated, 0.0, tl.where(closed, gamma * scaled, 0.0))
    grad_next_value = tl.where(terminated, 0.0, product(g, gamma * rho)) + to_next
    return (
        grad_log_pi, grad_reward, dx - grad_reward, grad_next_value,
        product(g, rho * bootstrap + c * correction) + product(scaled, following),
        tl.where(ratio > x[10], grad_rho, 0.0), tl.where(ratio > x[11], grad_c, 0.0),
    )  # fmt: skip
