"""Numba kernels for the CPU: one function per op of :mod:`tritonrl.kernels.specs`.

Read in this order: :mod:`.bodies` (what is computed), :mod:`.strategies` and :mod:`.pieces` (in which order),
:mod:`.geometry` (where it lies), :mod:`.dispatch` (one call), :mod:`.served` (one more like it), :mod:`.sequences`
(packed), :mod:`.team` (threads), :mod:`.reduce` (moments) and :mod:`.standardise` (what they are for). Below them,
:mod:`.blocks`, :mod:`.memory`, :mod:`.recur`, :mod:`.masks`, :mod:`.numbers` and :mod:`.simd` are the words that bodies are
written in.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..repeat import Key, Repeat
from ..specs import ALL_SPECS, allocate, by_name, plain_names
from ..textbook import counted
from . import backward_bodies, bodies, served
from .dispatch import DISCOUNT, FLAG, FLOAT, RESULT, WANTED, Op, run
from .reduce import measure
from .sequences import compute
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


@noting
def gae_extended(*args: Any) -> tuple[Tensor, ...]:
    """``tritonrl::gae_extended``: next values derived from the values, moments of the advantages, or both."""
    results = allocate("gae_extended", args)
    compute("gae_extended", args, results, linear_recurrence, functools.partial(_fill_extended, results[:2]))
    named = by_name("gae_extended", args)
    if named["moments"]:
        measure(results[0], counted(named["valid"], named["skip"]), results[2])
    return results


def _fill_extended(results: tuple[Tensor, ...], args: tuple[Any, ...]) -> None:
    named = by_name("gae_extended", args)
    time_dim, valid, skip, offsets = (named[name] for name in ("time_dim", "valid", "skip", "cu_seqlens"))
    kernel, arguments = _GAE, [named[name] for name in plain_names("gae")[:-1]]
    if named["next_value"] is None:
        kernel, arguments[2] = _GAE_DERIVED, named["bootstrap_value"]
        if offsets is None:
            arguments[2] = _at_every_step(arguments[2], results[0].shape, time_dim)
    if named["terminated"] is None:
        arguments[4] = named["done"]
    run(kernel, arguments, results, time_dim, () if valid is None and skip is None else (valid, skip), offsets)


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
