"""Numba kernels for the CPU: one function per op of :mod:`tritonrl.kernels.specs`.

Read in this order: :mod:`.bodies` (what is computed), :mod:`.strategies` and :mod:`.pieces` (in which order),
:mod:`.geometry` (where it lies), :mod:`.dispatch` (one call), :mod:`.served` (one more like it), :mod:`.sequences`
(packed), :mod:`.team` (threads), :mod:`.reduce` (moments) and :mod:`.standardise` (what they are for). Below them,
:mod:`.blocks`, :mod:`.memory`, :mod:`.recur`, :mod:`.masks`, :mod:`.numbers` and :mod:`.simd` are the words that bodies are
written in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..repeat import Key, Repeat
from ..specs import ALL_SPECS, allocate
from . import backward_bodies, bodies, served
from .dispatch import DISCOUNT, FLAG, FLOAT, RESULT, WANTED, Op, run
from .sequences import is_better_as_one as is_better_as_one
from .served import Call, Served, as_they_come, noting
from .served import repeated as repeated
from .standardise import standardised as standardised

# The ops whose masks the kernels take themselves (:mod:`tritonrl.kernels.compose`).
MASKED = frozenset(op for op, spec in ALL_SPECS.items() if spec.optional)
# The ops whose kernels compute each packed sequence alone.
PACKED = MASKED
# They look at the offsets in every call, whoever makes it.
CHECKS_OFFSETS = True
# The kernel of derived next values looks past the steps that do not count.
DERIVES_PAST_MASKS = True

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
_GAE_ROLES = (*(FLOAT,) * 3, *(FLAG,) * 2, *(DISCOUNT,) * 2, *(RESULT,) * 2)
_GAE = Op("gae", bodies.GAE, _GAE_ROLES)
_GAE_DERIVED = Op("gae_derived", bodies.GAE_DERIVED, _GAE_ROLES)
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


def _at_every_step(carry: Tensor | None, shape: Sequence[int], time_dim: int) -> Tensor | None:
    """The carry with a time dimension of stride 0."""
    if carry is None:
        return None
    return carry.expand((*shape[:time_dim], *shape[len(shape) + time_dim + 1 :])).unsqueeze(time_dim)


@noting
def linear_recurrence(a: Tensor, b: Tensor, carry: Tensor | None, time_dim: int, reverse: bool) -> Tensor:
    """``tritonrl::linear_recurrence``."""
    results = allocate("linear_recurrence", (a, b, carry, time_dim, reverse))
    entering = _at_every_step(carry, results[0].shape, time_dim)
    run(_LINEAR_RECURRENCE[reverse], (a, b, entering), results, time_dim)
    return results[0]


def _extended(args: Sequence[Any], shape: torch.Size) -> Call:
    """Of ``gae_extended``: next values derived from the values, moments of the advantages, or both."""
    reward, value, next_value, done, terminated, gamma, lmbda, time_dim, moments, *optional = args
    optional += [None] * (4 - len(optional))
    bootstrap_value, valid, skip, offsets = optional
    kernel = _GAE
    if next_value is None:
        kernel, next_value = _GAE_DERIVED, bootstrap_value
        if offsets is None:
            next_value = _at_every_step(next_value, shape, time_dim)
    terminated = done if terminated is None else terminated
    arguments: list[Tensor | None] = [reward, value, next_value, done, terminated, gamma, lmbda]
    return Call(kernel, arguments, () if valid is None and skip is None else (valid, skip), time_dim, moments)


def _served(kernel: Op) -> Served:
    return Served(kernel.name, as_they_come(kernel), linear_recurrence)


gae = _served(_GAE)
gae_backward = _served(_GAE_BACKWARD)
gae_extended = Served("gae_extended", _extended, linear_recurrence)
td_lambda_return = _served(_TD_LAMBDA_RETURN)
td_lambda_return_backward = _served(_TD_LAMBDA_RETURN_BACKWARD)
reward_to_go = _served(_REWARD_TO_GO)
reward_to_go_backward = _served(_REWARD_TO_GO_BACKWARD)
vtrace = _served(_VTRACE)
vtrace_backward = _served(_VTRACE_BACKWARD)


def linear_recurrence_backward(
    grad: Tensor, a: Tensor, y: Tensor, carry: Tensor | None, time_dim: int, reverse: bool
) -> tuple[Tensor, ...]:
    """``tritonrl::linear_recurrence_backward``."""
    results = allocate("linear_recurrence_backward", (grad, a, y, carry, time_dim, reverse))
    entering = _at_every_step(carry, results[0].shape, time_dim)
    run(_LINEAR_RECURRENCE_BACKWARD[reverse], (grad, a, y, entering), results, time_dim)
    return results


def keep_repeat(key: Key, repeat: Repeat) -> bool:
    """Keep how a public call is repeated; returns whether that can be."""
    return served.keep_repeat(key, repeat, globals()[repeat.noted.op])
