"""Numba kernels for the CPU: one function per op of :mod:`tritonrl.kernels.specs`.

Read in this order: :mod:`.bodies` (what is computed), :mod:`.strategies` and :mod:`.pieces` (in which order),
:mod:`.geometry` (where it lies), :mod:`.dispatch` (one call), :mod:`.served` (one more like it), :mod:`.sequences`
(packed), :mod:`.team` (threads), :mod:`.reduce` (moments) and :mod:`.standardise` (what they are for). Below them,
:mod:`.blocks`, :mod:`.memory`, :mod:`.recur`, :mod:`.masks`, :mod:`.numbers` and :mod:`.simd` are the words that bodies are
written in.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from torch import Tensor

from ..repeat import Key, Repeat, Serve
from ..results import Results
from ..specs import ALL_SPECS, allocate
from ..textbook import counted
from . import backward_bodies, bodies, served
from .dispatch import DISCOUNT, FLAG, FLOAT, RESULT, WANTED, Op, execute, operands_of, prepared_for, run
from .reduce import measure
from .sequences import compute, offsets_of
from .sequences import is_better_as_one as is_better_as_one
from .served import Served, noting
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


gae = Served(_GAE, linear_recurrence)
gae_backward = Served(_GAE_BACKWARD, linear_recurrence)
td_lambda_return = Served(_TD_LAMBDA_RETURN, linear_recurrence)
td_lambda_return_backward = Served(_TD_LAMBDA_RETURN_BACKWARD, linear_recurrence)
reward_to_go = Served(_REWARD_TO_GO, linear_recurrence)
reward_to_go_backward = Served(_REWARD_TO_GO_BACKWARD, linear_recurrence)
vtrace = Served(_VTRACE, linear_recurrence)
vtrace_backward = Served(_VTRACE_BACKWARD, linear_recurrence)


class _Extended(NamedTuple):
    """A call of ``gae_extended``: the family and the operands of its kernel, and what is wanted beside the advantages."""

    kernel: Op
    arguments: list[Tensor | None]
    masks: tuple[Tensor | None, ...]
    time_dim: int
    moments: bool


def _extended(args: Sequence[Any], shape: Sequence[int]) -> _Extended:
    """Next values derived from the values, or not; ``shape``: of the results."""
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
    return _Extended(kernel, arguments, () if valid is None and skip is None else (valid, skip), time_dim, moments)


@noting
def gae_extended(*args: Any) -> tuple[Tensor, ...]:
    """``tritonrl::gae_extended``: next values derived from the values, moments of the advantages, or both."""
    results = allocate("gae_extended", args)

    def fill(args: tuple[Any, ...]) -> None:
        call = _extended(args, results[0].shape)
        offsets = offsets_of("gae_extended", args)
        run(call.kernel, call.arguments, results[:2], call.time_dim, call.masks, offsets, call.moments)

    compute("gae_extended", args, results, linear_recurrence, fill)
    call = _extended(args, results[0].shape)
    if call.moments:
        measure(results[0], counted(*call.masks) if call.masks else None, results[2])
    return results


def _repeated_extended(repeat: Repeat) -> Serve:
    """What computes a call of ``gae_extended`` like one before it with the kernel that was prepared for that."""
    _, args, results = repeat.noted
    made, shape = Results(ALL_SPECS["gae_extended"].like, args, results), results[0].shape
    first = _extended(args, shape)
    given = first.kernel, first.arguments, results[:2], first.time_dim, first.masks
    prepared = prepared_for(*given, read_again=first.moments)
    # Not of `repeat` itself, which holds the tensors of the call.
    arguments, constants, returned = itemgetter(*repeat.places), repeat.constants, slice(repeat.returned)

    def again(values: Sequence[Any]) -> Any:
        args = arguments((*values, *constants))
        results, call = made.allocate(args), _extended(args, shape)
        execute(prepared, operands_of(call.arguments, results[:2], call.masks))
        if call.moments:
            measure(results[0], counted(*call.masks) if call.masks else None, results[2])
        return results[returned]

    return again


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
    op, args, results = repeat.noted
    if op == "gae_extended" and results[0].numel() and offsets_of(op, args) is None:
        return served.keep(key, _repeated_extended(repeat))
    return served.keep_repeat(key, repeat, globals()[op])
