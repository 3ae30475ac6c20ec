"""What one block of each backward pass computes: :mod:`tritonrl.kernels.gradients` in the words of :mod:`.blocks`.

They run in the opposite order of the forward pass. Gradients with respect to discounts and thresholds are computed only
when their results are wanted.
"""

from __future__ import annotations

from typing import Any

from .blocks import fill, is_final, is_last
from .bodies import Written, minimum
from .exponential import exp
from .masks import Masks
from .memory import is_wanted, read, read_ahead, read_discount, read_flag, write
from .recur import edge, lag, recur
from .simd import inlined, where
from .strategies import Body


@inlined
def seen(g: Any, x: Any, nothing: Any) -> Any:
    """``x`` as a factor of the gradient ``g``: zero in place of a NaN or an inf where no gradient arrives."""
    return where((x - x == nothing) | (g != nothing), x, nothing)


@inlined
def product(g: Any, x: Any, nothing: Any) -> Any:
    """``g * x``, but zero where no gradient arrives at a NaN or an inf."""
    return g * seen(g, x, nothing)


@inlined
def error_product(g: Any, reward: Any, gamma: Any, following: Any, value: Any, nothing: Any) -> Any:
    """``g * (r + gamma u - V)``, with the future ``u``."""
    return g * (seen(g, reward, nothing) + gamma * seen(g, following, nothing) - seen(g, value, nothing))


def _linear_recurrence_backward(masks: Masks) -> Written:
    def block(io: Any, carries: Any) -> Any:
        nothing, a = fill(io, 0), read(io, 1)
        g = recur(io, lag(io, a, carries[1]), read(io, 0), carries[0])
        entering = where(is_final(io), read(io, 3), read_ahead(io, 2))
        # Selected, not multiplied: where a is zero because of a done, what lies behind may be NaN.
        is_finite = entering - entering == nothing
        write(io, 4, product(g, where(is_finite | (a != nothing), entering, nothing), nothing))
        write(io, 5, g)
        return (edge(io, g), edge(io, a))

    return block


def _gae_backward(masks: Masks) -> Written:
    left_out, kept, passing = masks[:3]

    def block(io: Any, carries: Any) -> Any:
        nothing, one, left = fill(io, 0), fill(io, 1), left_out(io)
        done, terminated = read_flag(io, 4), read_flag(io, 5)
        grad_target, gamma, lmbda = read(io, 1), read_discount(io, 6), read_discount(io, 7)
        a = passing(io, where(done, nothing, gamma * lmbda), done, nothing, one)
        g = recur(io, lag(io, a, carries[1]), kept(left, read(io, 0) + grad_target, nothing), carries[0])
        write(io, 8, kept(left, g, nothing))
        write(io, 9, kept(left, grad_target - g, nothing))
        write(io, 10, kept(left, where(terminated, nothing, gamma * g), nothing))
        if is_wanted(io, 11):
            following = seen(g, where(done | is_last(io), nothing, read_ahead(io, 3)), nothing)
            bootstrap = seen(g, where(terminated, nothing, read(io, 2)), nothing)
            write(io, 11, kept(left, g * (bootstrap + lmbda * following), nothing))
            write(io, 12, kept(left, g * gamma * following, nothing))
        return (edge(io, g), edge(io, a))

    return block


def _td_lambda_return_backward(masks: Masks) -> Written:
    left_out, kept, passing, closes = masks[:4]

    def block(io: Any, carries: Any) -> Any:
        nothing, one, left = fill(io, 0), fill(io, 1), left_out(io)
        done, terminated = read_flag(io, 3), read_flag(io, 4)
        closed, gamma, lmbda = closes(io, done), read_discount(io, 5), read_discount(io, 6)
        weight = where(closed, one, one - lmbda)
        a = passing(io, where(closed, nothing, gamma * lmbda), done, nothing, one)
        g = recur(io, lag(io, a, carries[1]), kept(left, read(io, 0), nothing), carries[0])
        write(io, 7, kept(left, g, nothing))
        write(io, 8, kept(left, where(terminated, nothing, gamma * weight * g), nothing))
        if is_wanted(io, 9):
            bootstrap = seen(g, where(terminated, nothing, read(io, 1)), nothing)
            following = seen(g, where(closed, nothing, read_ahead(io, 2)), nothing)
            used = where(weight == nothing, nothing, bootstrap)
            write(io, 9, kept(left, g * (weight * used + lmbda * following), nothing))
            grad_lmbda = g * where(closed, nothing, gamma * (following - bootstrap))
            write(io, 10, kept(left, grad_lmbda, nothing))
        return (edge(io, g), edge(io, a))

    return block


def _reward_to_go_backward(masks: Masks) -> Written:
    left_out, kept, passing = masks[:3]

    def block(io: Any, carries: Any) -> Any:
        nothing, one, left, done = fill(io, 0), fill(io, 1), left_out(io), read_flag(io, 2)
        a = passing(io, where(done, nothing, read_discount(io, 3)), done, nothing, one)
        g = recur(io, lag(io, a, carries[1]), kept(left, read(io, 0), nothing), carries[0])
        write(io, 4, kept(left, g, nothing))
        if is_wanted(io, 5):
            following = where(done | is_last(io), nothing, read_ahead(io, 1))
            write(io, 5, kept(left, product(g, following, nothing), nothing))
        return (edge(io, g), edge(io, a))

    return block


def _vtrace_backward(masks: Masks) -> Written:
    left_out, kept, passing, closes = masks[:4]

    def block(io: Any, carries: Any) -> Any:
        nothing, one, left = fill(io, 0), fill(io, 1), left_out(io)
        grad_advantage, grad_target = kept(left, read(io, 0), nothing), kept(left, read(io, 1), nothing)
        reward, value = read(io, 4), read(io, 5)
        done, terminated = read_flag(io, 8), read_flag(io, 9)
        gamma, rho_thresh, c_thresh = read_discount(io, 10), read_discount(io, 11), read_discount(io, 12)
        ratio = exp(read(io, 2) - read(io, 3))
        rho, c = minimum(ratio, rho_thresh), minimum(ratio, c_thresh)
        closed = closes(io, done)
        bootstrap = where(terminated, nothing, read(io, 6))
        next_target = read_ahead(io, 7)
        following = where(terminated, nothing, where(closed, bootstrap, next_target))
        correction = where(closed, nothing, next_target - read_ahead(io, 5))

        # The advantage at t looks at the target of t+1, so its gradient enters the target one step later.
        scaled = product(grad_advantage, rho, nothing)
        to_next = where(terminated, nothing, gamma * scaled)
        onwards = kept(left, where(closed, nothing, to_next), nothing)
        dx = grad_target + lag(io, onwards, carries[2])
        # A NaN ratio, of padding say, passes nothing on: NaN times the zero gradient of a step that nobody looks at is NaN.
        a = passing(io, where(done | (c != c), nothing, gamma * c), done, nothing, one)
        g = recur(io, lag(io, a, carries[1]), dx, carries[0])
        grad_rho = error_product(g, reward, gamma, bootstrap, value, nothing)
        grad_rho = grad_rho + error_product(grad_advantage, reward, gamma, following, value, nothing)
        grad_c = g * gamma * seen(g, correction, nothing)
        grad_ratio = where(ratio <= rho_thresh, grad_rho, nothing) + where(ratio <= c_thresh, grad_c, nothing)
        grad_reward = product(g, rho, nothing) + scaled
        grad_next_value = where(terminated, nothing, product(g, gamma * rho, nothing)) + where(closed, to_next, nothing)
        write(io, 13, kept(left, product(grad_ratio, ratio, nothing), nothing))
        write(io, 14, kept(left, grad_reward, nothing))
        write(io, 15, kept(left, dx - grad_reward, nothing))
        write(io, 16, kept(left, grad_next_value, nothing))
        if is_wanted(io, 17):
            grad_gamma = product(g, rho * seen(g, bootstrap, nothing) + c * seen(g, correction, nothing), nothing)
            write(io, 17, kept(left, grad_gamma + scaled * seen(scaled, following, nothing), nothing))
            write(io, 18, kept(left, where(ratio > rho_thresh, grad_rho, nothing), nothing))
            write(io, 19, kept(left, where(ratio > c_thresh, grad_c, nothing), nothing))
        return (edge(io, g), edge(io, a), edge(io, onwards))

    return block


LINEAR_RECURRENCE_BACKWARD = {
    # Named after the recurrence; its gradient runs the other way.
    reverse: Body(_linear_recurrence_backward, operands=6, carries=2, reverse=not reverse)
    for reverse in (True, False)
}
GAE_BACKWARD = Body(_gae_backward, operands=13, carries=2, reverse=False)
TD_LAMBDA_RETURN_BACKWARD = Body(_td_lambda_return_backward, operands=11, carries=2, reverse=False)
REWARD_TO_GO_BACKWARD = Body(_reward_to_go_backward, operands=6, carries=2, reverse=False)
VTRACE_BACKWARD = Body(_vtrace_backward, operands=20, carries=3, reverse=False)
