"""Numba kernels for the CPU: one function per op of :mod:`tritonrl.kernels.specs`.

Read in this order: :mod:`.bodies` (what is computed), :mod:`.strategies` and :mod:`.pieces` (in which order),
:mod:`.geometry` (where it lies), :mod:`.dispatch` (one call), :mod:`.team` (threads), :mod:`.reduce` (moments) and
:mod:`.standardise` (what they are for). Below them, :mod:`.blocks`, :mod:`.memory`, :mod:`.recur`, :mod:`.masks`,
:mod:`.numbers` and :mod:`.simd` are the words that bodies are written in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..specs import ALL_SPECS, allocate, by_name, plain_names
from ..textbook import counted
from . import backward_bodies, bodies
from .dispatch import DISCOUNT, FLAG, FLOAT, RESULT, WANTED, Op, run
from .reduce import measure
from .standardise import standardised as standardised

# The ops whose masks the kernels take themselves (:mod:`tritonrl.kernels.compose`).
MASKED = frozenset(op for op, spec in ALL_SPECS.items() if spec.optional)
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


def _served_by(kernel: Op) -> Callable[..., Any]:
    """The backend function of an op: its tensors stand in front of its schema, its masks behind it."""
    op, names = kernel.name, plain_names(kernel.name)
    tensors, plain = names.index("time_dim"), len(names)
    masks = slice(plain, plain + len(set(ALL_SPECS[op].optional) & {"valid", "skip"}))
    done = names.index("done")
    terminated = names.index("terminated") if "terminated" in names else done

    def function(*args: Any) -> Any:
        results = allocate(op, args)
        arguments = list(args[:tensors])
        if arguments[terminated] is None:
            arguments[terminated] = arguments[done]
        run(kernel, arguments, results, args[tensors], args[masks])
        return results if len(results) > 1 else results[0]

    function.__name__ = function.__qualname__ = op
    function.__doc__ = f"``tritonrl::{op}``."
    return function


gae = _served_by(_GAE)
gae_backward = _served_by(_GAE_BACKWARD)
td_lambda_return = _served_by(_TD_LAMBDA_RETURN)
td_lambda_return_backward = _served_by(_TD_LAMBDA_RETURN_BACKWARD)
reward_to_go = _served_by(_REWARD_TO_GO)
reward_to_go_backward = _served_by(_REWARD_TO_GO_BACKWARD)
vtrace = _served_by(_VTRACE)
vtrace_backward = _served_by(_VTRACE_BACKWARD)


def gae_extended(*args: Any) -> tuple[Tensor, ...]:
    """``tritonrl::gae_extended``: next values derived from the values, moments of the advantages, or both."""
    results = allocate("gae_extended", args)
    advantage, target, moments = results
    named = by_name("gae_extended", args)
    time_dim, valid, skip = named["time_dim"], named["valid"], named["skip"]
    kernel, arguments = _GAE, [named[name] for name in plain_names("gae")[:-1]]
    if named["next_value"] is None:
        kernel = _GAE_DERIVED
        arguments[2] = _at_every_step(named["bootstrap_value"], advantage.shape, time_dim)
    if named["terminated"] is None:
        arguments[4] = named["done"]
    run(kernel, arguments, (advantage, target), time_dim, () if valid is None and skip is None else (valid, skip))
    if named["moments"]:
        measure(advantage, counted(valid, skip), moments)
    return results


def _at_every_step(carry: Tensor | None, shape: Sequence[int], time_dim: int) -> Tensor | None:
    """The carry with a time dimension of stride 0."""
    if carry is None:
        return None
    return carry.expand((*shape[:time_dim], *shape[len(shape) + time_dim + 1 :])).unsqueeze(time_dim)


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
