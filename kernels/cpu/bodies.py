"""What one block of each recurrence computes: :mod:`tritonrl.kernels.textbook` in the words of :mod:`.blocks`.

Operands are the tensors of the op in schema order (:mod:`tritonrl.kernels.specs`), then its results, then its masks. Each
body is written for any masks (:mod:`.masks`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .blocks import fill
from .exponential import exp
from .masks import Masks
from .memory import read, read_discount, read_flag, write
from .recur import edge, lag, recur
from .simd import inlined, where
from .strategies import Body

Written = Callable[..., Any]


def _linear_recurrence(masks: Masks) -> Written:
    def block(io: Any, carries: Any) -> Any:
        y = recur(io, read(io, 0), read(io, 1), carries[0])
        write(io, 3, y)
        return (edge(io, y),)

    return block


def _gae(masks: Masks) -> Written:
    left_out, kept, passing = masks[:3]

    def block(io: Any, carries: Any) -> Any:
        nothing, one, left, done = fill(io, 0), fill(io, 1), left_out(io), read_flag(io, 3)
        value, gamma = read(io, 1), read_discount(io, 5)
        bootstrap = where(read_flag(io, 4), nothing, read(io, 2))
        delta = kept(left, read(io, 0) + gamma * bootstrap - value, nothing)
        a = passing(io, where(done, nothing, gamma * read_discount(io, 6)), done, nothing, one)
        advantage = recur(io, a, delta, carries[0])
        write(io, 7, kept(left, advantage, nothing))
        write(io, 8, kept(left, advantage + value, nothing))
        return (edge(io, advantage),)

    return block


def _gae_derived(masks: Masks) -> Written:
    """:func:`_gae` with the value of the following step that counts for a next value, and at the end a given one."""
    left_out, kept, passing, _, passed_on = masks

    def block(io: Any, carries: Any) -> Any:
        nothing, one, left, done = fill(io, 0), fill(io, 1), left_out(io), read_flag(io, 3)
        value, gamma = read(io, 1), read_discount(io, 5)
        ahead = passed_on(io, left, value, carries[1], nothing, one)
        bootstrap = where(read_flag(io, 4), nothing, lag(io, ahead, carries[1]))
        delta = kept(left, read(io, 0) + gamma * bootstrap - value, nothing)
        a = passing(io, where(done, nothing, gamma * read_discount(io, 6)), done, nothing, one)
        advantage = recur(io, a, delta, carries[0])
        write(io, 7, kept(left, advantage, nothing))
        write(io, 8, kept(left, advantage + value, nothing))
        return (edge(io, advantage), edge(io, ahead))

    return block


def _td_lambda_return(masks: Masks) -> Written:
    left_out, kept, passing, closes = masks[:4]

    def block(io: Any, carries: Any) -> Any:
        nothing, one, gamma, lmbda = fill(io, 0), fill(io, 1), read_discount(io, 4), read_discount(io, 5)
        left, done = left_out(io), read_flag(io, 2)
        closed = closes(io, done)
        weight = where(closed, one, one - lmbda)
        # With lambda = 1 the next value of an open step is not used, so it may be anything.
        bootstrap = where(read_flag(io, 3) | (weight == nothing), nothing, read(io, 1))
        b = kept(left, read(io, 0) + gamma * weight * bootstrap, nothing)
        returns = recur(io, passing(io, where(closed, nothing, gamma * lmbda), done, nothing, one), b, carries[0])
        write(io, 6, kept(left, returns, nothing))
        return (edge(io, returns),)

    return block


def _reward_to_go(masks: Masks) -> Written:
    left_out, kept, passing = masks[:3]

    def block(io: Any, carries: Any) -> Any:
        nothing, one, left, done = fill(io, 0), fill(io, 1), left_out(io), read_flag(io, 1)
        a = passing(io, where(done, nothing, read_discount(io, 2)), done, nothing, one)
        returns = recur(io, a, kept(left, read(io, 0), nothing), carries[0])
        write(io, 3, kept(left, returns, nothing))
        return (edge(io, returns),)

    return block


@inlined
def minimum(x: Any, y: Any) -> Any:
    """The smaller of two; NaN if one of them is, as in torch."""
    return where((x < y) | (x != x), x, y)


def _vtrace(masks: Masks) -> Written:
    left_out, kept, passing, closes = masks[:4]

    def block(io: Any, carries: Any) -> Any:
        nothing, one, left = fill(io, 0), fill(io, 1), left_out(io)
        reward, value, gamma = read(io, 2), read(io, 3), read_discount(io, 7)
        done, terminated = read_flag(io, 5), read_flag(io, 6)
        ratio = exp(read(io, 0) - read(io, 1))
        rho, c = minimum(ratio, read_discount(io, 8)), minimum(ratio, read_discount(io, 9))
        bootstrap = where(terminated, nothing, read(io, 4))
        delta = kept(left, rho * (reward + gamma * bootstrap - value), nothing)
        a = passing(io, where(done, nothing, gamma * c), done, nothing, one)
        correction = recur(io, a, delta, carries[0])
        target = value + correction
        following = where(closes(io, done), bootstrap, lag(io, target, carries[1]))
        advantage = rho * (reward + gamma * where(terminated, nothing, following) - value)
        write(io, 10, kept(left, advantage, nothing))
        write(io, 11, kept(left, target, nothing))
        return (edge(io, correction), edge(io, target))

    return block


LINEAR_RECURRENCE = {
    reverse: Body(_linear_recurrence, operands=4, carries=1, reverse=reverse, initial=2) for reverse in (True, False)
}
GAE = Body(_gae, operands=9, carries=1, reverse=True)
# What stands where the next value would be has one number a lane.
GAE_DERIVED = Body(_gae_derived, operands=9, carries=2, reverse=True, initial=2)
TD_LAMBDA_RETURN = Body(_td_lambda_return, operands=7, carries=1, reverse=True)
REWARD_TO_GO = Body(_reward_to_go, operands=4, carries=1, reverse=True)
VTRACE = Body(_vtrace, operands=12, carries=2, reverse=True)
