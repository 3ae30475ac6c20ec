"""Numba kernels for the CPU: one function per op of :mod:`tritonrl.kernels.specs`.

Read in this order: :mod:`.bodies` (what is computed), :mod:`.strategies` (in which order), :mod:`.geometry` (where it
lies), :mod:`.dispatch` (one call), :mod:`.pool` (threads). Below them, :mod:`.blocks`, :mod:`.memory`, :mod:`.recur`
and :mod:`.simd` are the words that bodies are written in.
"""

from __future__ import annotations

from torch import Tensor

from ..specs import allocate
from . import backward_bodies, bodies
from .dispatch import DISCOUNT, FLAG, FLOAT, RESULT, WANTED, Op, run

_LINEAR_RECURRENCE = {
    reverse: Op(f"linear_recurrence{suffix}", bodies.LINEAR_RECURRENCE[reverse], (*(FLOAT,) * 3, RESULT))
    for reverse, suffix in ((True, ""), (False, "_forwards"))
}
_LINEAR_RECURRENCE_BACKWARD = {
    reverse: Op(
        f"linear_recurrence_backward{suffix}",
        backward_bodies.LINEAR_RECURRENCE_BACKWARD[reverse],
        (*(FLOAT,) * 4, *(RESULT,) * 2),
    )
    for reverse, suffix in ((True, ""), (False, "_forwards"))
}
_GAE = Op("gae", bodies.GAE, (*(FLOAT,) * 3, *(FLAG,) * 2, *(DISCOUNT,) * 2, *(RESULT,) * 2))
_GAE_BACKWARD = Op(
    "gae_backward",
    backward_bodies.GAE_BACKWARD,
    (*(FLOAT,) * 4, *(FLAG,) * 2, *(DISCOUNT,) * 2, *(RESULT,) * 3, *(WANTED,) * 2),
)
_TD_LAMBDA_RETURN = Op(
    "td_lambda_return", bodies.TD_LAMBDA_RETURN, (*(FLOAT,) * 2, *(FLAG,) * 2, *(DISCOUNT,) * 2, RESULT)
)
_TD_LAMBDA_RETURN_BACKWARD = Op(
    "td_lambda_return_backward",
    backward_bodies.TD_LAMBDA_RETURN_BACKWARD,
    (*(FLOAT,) * 3, *(FLAG,) * 2, *(DISCOUNT,) * 2, *(RESULT,) * 2, *(WANTED,) * 2),
)
_REWARD_TO_GO = Op("reward_to_go", bodies.REWARD_TO_GO, (FLOAT, FLAG, DISCOUNT, RESULT))
_REWARD_TO_GO_BACKWARD = Op(
    "reward_to_go_backward",
    backward_bodies.REWARD_TO_GO_BACKWARD,
    (*(FLOAT,) * 2, FLAG, DISCOUNT, RESULT, WANTED),
)
_VTRACE = Op("vtrace", bodies.VTRACE, (*(FLOAT,) * 5, *(FLAG,) * 2, *(DISCOUNT,) * 3, *(RESULT,) * 2))
_VTRACE_BACKWARD = Op(
    "vtrace_backward",
    backward_bodies.VTRACE_BACKWARD,
    (*(FLOAT,) * 8, *(FLAG,) * 2, *(DISCOUNT,) * 3, *(RESULT,) * 4, *(WANTED,) * 3),
)


def _at_every_step(carry: Tensor | None, shape: tuple[int, ...], time_dim: int) -> Tensor | None:
    """The carry with a time dimension of stride 0."""
    if carry is None:
        return None
    return carry.expand(shape[:time_dim] + shape[len(shape) + time_dim + 1 :]).unsqueeze(time_dim)


def linear_recurrence(a: Tensor, b: Tensor, carry: Tensor | None, time_dim: int, reverse: bool) -> Tensor:
    """``tritonrl::linear_recurrence``."""
    results = allocate("linear_recurrence", (a, b, carry, time_dim, reverse))
    entering = _at_every_step(carry, results[0].shape, time_dim)
    run(_LINEAR_RECURRENCE[reverse], (a, b, entering), results, time_dim)
    return results[0]


def linear_recurrence_backward(
    grad: Tensor, a: Tensor, y: Tensor, carry: Tensor | None, time_dim: int, reverse: bool
) -> tuple[Tensor, ...]:
    """``tritonrl::linear_recurrence_backward``."""
    results = allocate("linear_recurrence_backward", (grad, a, y, carry, time_dim, reverse))
    entering = _at_every_step(carry, results[0].shape, time_dim)
    run(_LINEAR_RECURRENCE_BACKWARD[reverse], (grad, a, y, entering), results, time_dim)
    return results


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor | None,
    gamma: Tensor,
    lmbda: Tensor,
    time_dim: int,
) -> tuple[Tensor, ...]:
    """``tritonrl::gae``."""
    arguments = (reward, value, next_value, done, done if terminated is None else terminated, gamma, lmbda)
    results = allocate("gae", arguments)
    run(_GAE, arguments, results, time_dim)
    return results


def gae_backward(
    grad_advantage: Tensor | None,
    grad_target: Tensor | None,
    next_value: Tensor,
    advantage: Tensor,
    done: Tensor,
    terminated: Tensor | None,
    gamma: Tensor,
    lmbda: Tensor,
    time_dim: int,
    with_discounts: bool,
) -> tuple[Tensor, ...]:
    """``tritonrl::gae_backward``."""
    arguments: tuple[Tensor | None, ...] = (grad_advantage, grad_target, next_value, advantage, done)
    arguments += (done if terminated is None else terminated, gamma, lmbda)
    results = allocate("gae_backward", (*arguments, time_dim, with_discounts))
    run(_GAE_BACKWARD, arguments, results, time_dim)
    return results


def td_lambda_return(
    reward: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor | None,
    gamma: Tensor,
    lmbda: Tensor,
    time_dim: int,
) -> Tensor:
    """``tritonrl::td_lambda_return``."""
    arguments = (reward, next_value, done, done if terminated is None else terminated, gamma, lmbda)
    results = allocate("td_lambda_return", arguments)
    run(_TD_LAMBDA_RETURN, arguments, results, time_dim)
    return results[0]


def td_lambda_return_backward(
    grad: Tensor,
    next_value: Tensor,
    returns: Tensor,
    done: Tensor,
    terminated: Tensor | None,
    gamma: Tensor,
    lmbda: Tensor,
    time_dim: int,
    with_discounts: bool,
) -> tuple[Tensor, ...]:
    """``tritonrl::td_lambda_return_backward``."""
    arguments = (grad, next_value, returns, done, done if terminated is None else terminated, gamma, lmbda)
    results = allocate("td_lambda_return_backward", (*arguments, time_dim, with_discounts))
    run(_TD_LAMBDA_RETURN_BACKWARD, arguments, results, time_dim)
    return results


def reward_to_go(reward: Tensor, done: Tensor, gamma: Tensor, time_dim: int) -> Tensor:
    """``tritonrl::reward_to_go``."""
    results = allocate("reward_to_go", (reward, done, gamma))
    run(_REWARD_TO_GO, (reward, done, gamma), results, time_dim)
    return results[0]


def reward_to_go_backward(
    grad: Tensor, returns: Tensor, done: Tensor, gamma: Tensor, time_dim: int, with_discounts: bool
) -> tuple[Tensor, ...]:
    """``tritonrl::reward_to_go_backward``."""
    results = allocate("reward_to_go_backward", (grad, returns, done, gamma, time_dim, with_discounts))
    run(_REWARD_TO_GO_BACKWARD, (grad, returns, done, gamma), results, time_dim)
    return results


def vtrace(
    log_pi: Tensor,
    log_mu: Tensor,
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor | None,
    gamma: Tensor,
    rho_thresh: Tensor,
    c_thresh: Tensor,
    time_dim: int,
) -> tuple[Tensor, ...]:
    """``tritonrl::vtrace``."""
    arguments: tuple[Tensor, ...] = (
        log_pi,
        log_mu,
        reward,
        value,
        next_value,
        done,
        done if terminated is None else terminated,
    )
    arguments += (gamma, rho_thresh, c_thresh)
    results = allocate("vtrace", arguments)
    run(_VTRACE, arguments, results, time_dim)
    return results


def vtrace_backward(
    grad_advantage: Tensor | None,
    grad_target: Tensor | None,
    log_pi: Tensor,
    log_mu: Tensor,
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    target: Tensor,
    done: Tensor,
    terminated: Tensor | None,
    gamma: Tensor,
    rho_thresh: Tensor,
    c_thresh: Tensor,
    time_dim: int,
    with_discounts: bool,
) -> tuple[Tensor, ...]:
    """``tritonrl::vtrace_backward``."""
    arguments: tuple[Tensor | None, ...] = (
        grad_advantage,
        grad_target,
        log_pi,
        log_mu,
        reward,
        value,
        next_value,
        target,
        done,
    )
    arguments += (done if terminated is None else terminated, gamma, rho_thresh, c_thresh)
    results = allocate("vtrace_backward", (*arguments, time_dim, with_discounts))
    run(_VTRACE_BACKWARD, arguments, results, time_dim)
    return results
