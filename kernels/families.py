"""What each op gives its Triton kernel: the stage functions, the inputs in the order they expect, the direction of time.

The strategies (:mod:`.device.rows`, :mod:`.device.lanes`) know nothing of the ops, and the stages of an op nothing of the
strategies; the functions here join them. Each takes an op's arguments in schema order. Imported only where Triton is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .device import gae as gae_stages
from .device import linear as linear_stages
from .device import td_lambda as td_lambda_stages
from .device import vtrace as vtrace_stages

Taken = tuple[Tensor | None, int]


class Recurrence(NamedTuple):
    """One launch, but for sizes and plan.

    ``inputs``: each with its tap: 0 reads the step itself, +1 the following and -1 the preceding one. ``masks``: where the
    masks stand among them (:mod:`.device.masks`). ``per_lane``: which of them have one number a lane. ``moments``: whether
    those of the first output are wanted. ``cu_seqlens``: offsets of packed sequences, of which the flags ``ended`` know the
    ends; what stands behind such a flag and is absent is the same flag without them. ``per_sequence``: which inputs have a
    number for each sequence, in the place of time; behind them stands whether one ends. ``follows``: what is derived past
    masks (:mod:`.device.following`).
    """

    coefficients: Any
    finish: Any
    reverse: bool
    inputs: tuple[Taken, ...]
    carry: Tensor | None = None
    masks: tuple[int, int, int, int] = (-1, -1, -1, -1)
    per_lane: tuple[int, ...] = ()
    moments: bool = False
    cu_seqlens: Tensor | None = None
    ended: tuple[int, ...] = ()
    per_sequence: tuple[int, ...] = ()
    follows: tuple[int, int, int] = (-1, -1, -1)


def _here(*tensors: Tensor | None) -> tuple[Taken, ...]:
    return tuple((x, 0) for x in tensors)


def _tapped(tap: int, *tensors: Tensor | None) -> tuple[Taken, ...]:
    return tuple((x, tap) for x in tensors)


def _if(wanted: bool, taken: tuple[Taken, ...]) -> tuple[Taken, ...]:
    return taken if wanted else tuple((None, 0) for _ in taken)


def _masked(
    recurrence: Recurrence, done: int, valid: Tensor | None, skip: Tensor | None = None, *, closing: bool = False
) -> Recurrence:
    """``recurrence`` with masks behind its inputs. ``closing``: a step in front of an invalid one is an end."""
    if valid is None and skip is None:
        return recurrence
    following = valid if closing else None
    n = len(recurrence.inputs)
    places = [-1 if x is None else n + i for i, x in enumerate((valid, following, skip))]
    masks = (places[0], places[1], places[2], done)
    inputs = (*recurrence.inputs, (valid, 0), (following, 1), (skip, 0))
    return recurrence._replace(inputs=inputs, masks=masks)


def _packed(recurrence: Recurrence, cu_seqlens: Tensor | None, *ended: int) -> Recurrence:
    """``recurrence`` of packed sequences: the flags ``ended`` are true at their ends, too."""
    if cu_seqlens is None:
        return recurrence
    return recurrence._replace(cu_seqlens=cu_seqlens.contiguous(), ended=ended)


def linear_recurrence(a: Tensor, b: Tensor, carry: Tensor | None, time_dim: int, reverse: bool) -> Recurrence:
    """``tritonrl::linear_recurrence``: the inputs of its stages in :mod:`.device.linear`."""
    return Recurrence(linear_stages.linear_coefficients, linear_stages.linear_finish, reverse, _here(a, b), carry)


def linear_recurrence_backward(
    grad: Tensor, a: Tensor, y: Tensor, carry: Tensor | None, time_dim: int, reverse: bool
) -> Recurrence:
    """At the edge the neighbour is the carry, which no tap reaches: the caller mends that one step."""
    stages = linear_stages.linear_backward_coefficients, linear_stages.linear_backward_finish
    return Recurrence(*stages, not reverse, _here(grad, a) + _tapped(1 if reverse else -1, y))


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor | None,
    gamma: Tensor,
    lmbda: Tensor,
    time_dim: int,
    valid: Tensor | None = None,
    skip: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Recurrence:
    """``tritonrl::gae``: the inputs of its stages in :mod:`.device.gae`."""
    inputs = _here(reward, value, next_value, done, terminated, gamma, lmbda)
    recurrence = Recurrence(gae_stages.gae_coefficients, gae_stages.gae_finish, True, inputs)
    return _packed(_masked(recurrence, 3, valid, skip), cu_seqlens, 3)


def gae_extended(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor | None,
    done: Tensor,
    terminated: Tensor | None,
    gamma: Tensor,
    lmbda: Tensor,
    time_dim: int,
    moments: bool,
    bootstrap_value: Tensor | None = None,
    valid: Tensor | None = None,
    skip: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Recurrence:
    """``tritonrl::gae_extended``: the inputs of its stages in :mod:`.device.gae`."""
    if next_value is not None:
        plain = gae(reward, value, next_value, done, terminated, gamma, lmbda, time_dim, valid, skip, cu_seqlens)
        return plain._replace(moments=moments)
    assert bootstrap_value is not None
    masked = valid is not None or skip is not None
    stages = gae_stages.gae_coefficients if masked else gae_stages.gae_derived_coefficients, gae_stages.gae_finish
    following = _here(None) if masked else _tapped(1, value)
    inputs = _here(reward, value) + following + _here(done, terminated, gamma, lmbda)
    derived = Recurrence(*stages, True, inputs, moments=moments, follows=(2, 1, 7) if masked else (-1, -1, -1))
    if cu_seqlens is not None:
        derived = derived._replace(inputs=inputs + _here(bootstrap_value, None), per_sequence=(7,))
    else:
        if bootstrap_value.dim():
            bootstrap_value = bootstrap_value.unsqueeze(time_dim)
        derived = derived._replace(inputs=inputs + _here(bootstrap_value), per_lane=(7,))
    return _packed(_masked(derived, 3, valid, skip), cu_seqlens, 3)


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
    valid: Tensor | None = None,
    skip: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Recurrence:
    """With ``skip``, ``advantage`` is the state: what passes through the skipped steps stands there."""
    inputs = _here(grad_advantage, grad_target, done, terminated, gamma, lmbda)
    inputs += _if(with_discounts, _here(next_value) + _tapped(1, advantage))
    stages = gae_stages.gae_backward_coefficients, gae_stages.gae_backward_finish
    return _packed(_masked(Recurrence(*stages, False, inputs), 2, valid, skip), cu_seqlens, 2)


def td_lambda_return(
    reward: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor | None,
    gamma: Tensor,
    lmbda: Tensor,
    time_dim: int,
    valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Recurrence:
    """``tritonrl::td_lambda_return``: the inputs of its stages in :mod:`.device.td_lambda`."""
    inputs = _here(reward, next_value, done, terminated, gamma, lmbda)
    stages = td_lambda_stages.td_lambda_coefficients, td_lambda_stages.only_state
    return _packed(_masked(Recurrence(*stages, True, inputs), 2, valid, closing=True), cu_seqlens, 2)


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
    valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Recurrence:
    """``tritonrl::td_lambda_return_backward``: the inputs of its stages in :mod:`.device.td_lambda`."""
    inputs = _here(grad, done, terminated, gamma, lmbda)
    inputs += _if(with_discounts, _here(next_value) + _tapped(1, returns))
    stages = td_lambda_stages.td_lambda_backward_coefficients, td_lambda_stages.td_lambda_backward_finish
    return _packed(_masked(Recurrence(*stages, False, inputs), 1, valid, closing=True), cu_seqlens, 1)


def reward_to_go(
    reward: Tensor,
    done: Tensor,
    gamma: Tensor,
    time_dim: int,
    valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Recurrence:
    """``tritonrl::reward_to_go``: the inputs of its stages in :mod:`.device.td_lambda`."""
    stages = td_lambda_stages.reward_to_go_coefficients, td_lambda_stages.only_state
    return _packed(_masked(Recurrence(*stages, True, _here(reward, done, gamma)), 1, valid), cu_seqlens, 1)


def reward_to_go_backward(
    grad: Tensor,
    returns: Tensor,
    done: Tensor,
    gamma: Tensor,
    time_dim: int,
    with_discounts: bool,
    valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Recurrence:
    """``tritonrl::reward_to_go_backward``: the inputs of its stages in :mod:`.device.td_lambda`."""
    inputs = _here(grad, done, gamma) + _if(with_discounts, _tapped(1, returns))
    stages = td_lambda_stages.reward_to_go_backward_coefficients, td_lambda_stages.reward_to_go_backward_finish
    return _packed(_masked(Recurrence(*stages, False, inputs), 1, valid), cu_seqlens, 1)


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
    valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Recurrence:
    """``tritonrl::vtrace``: the inputs of its stages in :mod:`.device.vtrace`."""
    inputs = _here(log_pi, log_mu, reward, value, next_value, done, terminated, gamma, rho_thresh, c_thresh)
    inputs += _tapped(1, value)
    stages = vtrace_stages.vtrace_coefficients, vtrace_stages.vtrace_finish
    return _packed(_masked(Recurrence(*stages, True, inputs), 5, valid, closing=True), cu_seqlens, 5)


def vtrace_backward(
    grad_advantage: Tensor,
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
    valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Recurrence:
    """``tritonrl::vtrace_backward``: the inputs of its stages in :mod:`.device.vtrace`."""
    inputs = _here(grad_advantage, grad_target, log_pi, log_mu, reward, value, next_value, done, terminated)
    inputs += _here(gamma, rho_thresh, c_thresh) + _tapped(1, target, value)
    inputs += _tapped(-1, grad_advantage, log_pi, log_mu, done, terminated, gamma, rho_thresh)
    if valid is not None:
        inputs += _tapped(-1, valid)
    stages = vtrace_stages.vtrace_backward_coefficients, vtrace_stages.vtrace_backward_finish
    return _packed(_masked(Recurrence(*stages, False, inputs), 7, valid, closing=True), cu_seqlens, 7, 17)
