"""What one block of each recurrence computes: :mod:`tritonrl.kernels.textbook` in the words of :mod:`.blocks`.

Operands are the tensors of the op in schema order (:mod:`tritonrl.kernels.specs`), then its results.
"""

from __future__ import annotations

from typing import Any

from .blocks import fill, is_first
from .exponential import exp
from .memory import read, read_discount, read_flag, write
from .recur import edge, lag, recur
from .simd import where
from .strategies import Body, inlined


def _linear_recurrence(io: Any, carries: Any) -> Any:
    y = recur(io, read(io, 0), read(io, 1), carries[0])
    write(io, 3, y)
    return (edge(io, y),)


def _gae(io: Any, carries: Any) -> Any:
    nothing, value, gamma = fill(io, 0), read(io, 1), read_discount(io, 5)
    bootstrap = where(read_flag(io, 4), nothing, read(io, 2))
    delta = read(io, 0) + gamma * bootstrap - value
    advantage = recur(io, where(read_flag(io, 3), nothing, gamma * read_discount(io, 6)), delta, carries[0])
    write(io, 7, advantage)
    write(io, 8, advantage + value)
    return (edge(io, advantage),)


def _td_lambda_return(io: Any, carries: Any) -> Any:
    nothing, one, gamma, lmbda = fill(io, 0), fill(io, 1), read_discount(io, 4), read_discount(io, 5)
    closed = read_flag(io, 2) | is_first(io)
    weight = where(closed, one, one - lmbda)
    # With lambda = 1 the next value of an open step is not used, so it may be anything.
    bootstrap = where(read_flag(io, 3) | (weight == nothing), nothing, read(io, 1))
    b = read(io, 0) + gamma * weight * bootstrap
    returns = recur(io, where(closed, nothing, gamma * lmbda), b, carries[0])
    write(io, 6, returns)
    return (edge(io, returns),)


def _reward_to_go(io: Any, carries: Any) -> Any:
    returns = recur(io, where(read_flag(io, 1), fill(io, 0), read_discount(io, 2)), read(io, 0), carries[0])
    write(io, 3, returns)
    return (edge(io, returns),)


@inlined
def minimum(x: Any, y: Any) -> Any:
    """The smaller of two; NaN if one of them is, as in torch."""
    return where((x < y) | (x != x), x, y)


def _vtrace(io: Any, carries: Any) -> Any:
    nothing, reward, value, gamma = fill(io, 0), read(io, 2), read(io, 3), read_discount(io, 7)
    done, terminated = read_flag(io, 5), read_flag(io, 6)
    ratio = exp(read(io, 0) - read(io, 1))
    rho, c = minimum(ratio, read_discount(io, 8)), minimum(ratio, read_discount(io, 9))
    bootstrap = where(terminated, nothing, read(io, 4))
    delta = rho * (reward + gamma * bootstrap - value)
    correction = recur(io, where(done, nothing, gamma * c), delta, carries[0])
    target = value + correction
    following = where(done | is_first(io), bootstrap, lag(io, target, carries[1]))
    write(io, 10, rho * (reward + gamma * where(terminated, nothing, following) - value))
    write(io, 11, target)
    return (edge(io, correction), edge(io, target))


LINEAR_RECURRENCE = {
    reverse: Body(_linear_recurrence, operands=4, carries=1, reverse=reverse, initial=2) for reverse in (True, False)
}
GAE = Body(_gae, operands=9, carries=1, reverse=True)
TD_LAMBDA_RETURN = Body(_td_lambda_return, operands=7, carries=1, reverse=True)
REWARD_TO_GO = Body(_reward_to_go, operands=4, carries=1, reverse=True)
VTRACE = Body(_vtrace, operands=12, carries=2, reverse=True)
