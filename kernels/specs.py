"""The ops of the namespace ``tritonrl``: schema, shape, layout and dtype of what they return.

One table, read by the registration (:mod:`.ops`), by the fake implementations and by every backend, so that traced and
real results cannot differ. Every backend module has one function per op, with the op's name and its arguments in schema
order; it allocates its results with :func:`allocate`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dtypes import moments_dtype, result_dtype


class OpSpec(NamedTuple):
    """What an op returns.

    ``shaped_by``: positions of the arguments that broadcast to the full shape ``S`` and whose promoted dtype is the result's.
    ``like``: position of the argument whose memory order the results take, so that nothing is transposed on the way.
    ``outputs``: how many results of shape ``S``. ``discount_outputs``: how many more come when the last argument,
    ``with_discounts``, is true; otherwise they are empty (a schema cannot say "optional" of a result).
    ``optional``: names of tensors that follow the arguments of ``schema`` and are absent by default. A backend that knows
    nothing of them is never asked to (:mod:`.compose`). The last of them, ``cu_seqlens``, has the offsets of sequences that
    are packed along time: the last step of each counts as done, but without ``terminated`` only ``done`` as given is terminal.
    ``moments``: one more result, of 3 numbers where the last argument of ``schema`` is true, else empty.
    """

    schema: str
    shaped_by: tuple[int, ...]
    like: int
    outputs: int
    discount_outputs: int = 0
    optional: tuple[str, ...] = ()
    moments: bool = False

    @property
    def registered_schema(self) -> str:
        """The schema with the optional arguments in it."""
        arguments, results = self.schema.split(")", 1)
        return arguments + "".join(f", Tensor? {name}=None" for name in self.optional) + ")" + results


_WITH_VALID = ("valid", "cu_seqlens")
_WITH_BOTH = ("valid", "skip", "cu_seqlens")


SPECS: dict[str, OpSpec] = {
    "linear_recurrence": OpSpec(
        "(Tensor a, Tensor b, Tensor? carry, int time_dim, bool reverse) -> Tensor", (0, 1), 1, 1
    ),
    "linear_recurrence_backward": OpSpec(
        "(Tensor grad, Tensor a, Tensor y, Tensor? carry, int time_dim, bool reverse) -> (Tensor, Tensor)", (2,), 2, 2
    ),
    "gae": OpSpec(
        "(Tensor reward, Tensor value, Tensor next_value, Tensor done, Tensor? terminated, Tensor gamma, Tensor lmbda,"
        " int time_dim) -> (Tensor, Tensor)",
        *((0, 1, 2), 1, 2),
        optional=_WITH_BOTH,
    ),
    "gae_backward": OpSpec(
        "(Tensor? grad_advantage, Tensor? grad_target, Tensor next_value, Tensor advantage, Tensor done,"
        " Tensor? terminated, Tensor gamma, Tensor lmbda, int time_dim, bool with_discounts)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        *((3,), 3, 3, 2),
        optional=_WITH_BOTH,
    ),
    "td_lambda_return": OpSpec(
        "(Tensor reward, Tensor next_value, Tensor done, Tensor? terminated, Tensor gamma, Tensor lmbda, int time_dim)"
        " -> Tensor",
        *((0, 1), 0, 1),
        optional=_WITH_VALID,
    ),
    "td_lambda_return_backward": OpSpec(
        "(Tensor grad, Tensor next_value, Tensor returns, Tensor done, Tensor? terminated, Tensor gamma, Tensor lmbda,"
        " int time_dim, bool with_discounts) -> (Tensor, Tensor, Tensor, Tensor)",
        *((2,), 2, 2, 2),
        optional=_WITH_VALID,
    ),
    "reward_to_go": OpSpec(
        "(Tensor reward, Tensor done, Tensor gamma, int time_dim) -> Tensor", (0,), 0, 1, optional=_WITH_VALID
    ),
    "reward_to_go_backward": OpSpec(
        "(Tensor grad, Tensor returns, Tensor done, Tensor gamma, int time_dim, bool with_discounts)"
        " -> (Tensor, Tensor)",
        *((1,), 1, 1, 1),
        optional=_WITH_VALID,
    ),
    "vtrace": OpSpec(
        "(Tensor log_pi, Tensor log_mu, Tensor reward, Tensor value, Tensor next_value, Tensor done, Tensor? terminated,"
        " Tensor gamma, Tensor rho_thresh, Tensor c_thresh, int time_dim) -> (Tensor, Tensor)",
        *((0, 1, 2, 3, 4), 3, 2),
        optional=_WITH_VALID,
    ),
    "vtrace_backward": OpSpec(
        "(Tensor? grad_advantage, Tensor? grad_target, Tensor log_pi, Tensor log_mu, Tensor reward, Tensor value,"
        " Tensor next_value, Tensor target, Tensor done, Tensor? terminated, Tensor gamma, Tensor rho_thresh,"
        " Tensor c_thresh, int time_dim, bool with_discounts)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        *((7,), 7, 4, 3),
        optional=_WITH_VALID,
    ),
}

EXTENSIONS: dict[str, OpSpec] = {
    "gae_extended": OpSpec(
        "(Tensor reward, Tensor value, Tensor? next_value, Tensor done, Tensor? terminated, Tensor gamma, Tensor lmbda,"
        " int time_dim, bool moments) -> (Tensor, Tensor, Tensor)",
        *((0, 1, 2), 1, 2),
        optional=("bootstrap_value", *_WITH_BOTH),
        moments=True,
    ),
}
"""Ops that a backend may leave to the composition of :mod:`.compose`; all others it has to have."""

ALL_SPECS = {**SPECS, **EXTENSIONS}


@functools.cache
def plain_names(op: str) -> tuple[str, ...]:
    """The arguments of ``op`` that every backend takes, in schema order."""
    return tuple(argument.split()[-1] for argument in ALL_SPECS[op].schema[1:].split(")")[0].split(","))


@functools.cache
def argument_names(op: str) -> tuple[str, ...]:
    """All arguments of ``op`` in schema order."""
    return plain_names(op) + ALL_SPECS[op].optional


def by_name(op: str, args: Sequence[Any]) -> dict[str, Any]:
    """The arguments of a call by name; optional ones that were left out are ``None``."""
    names = argument_names(op)
    return dict(zip(names, (*args, *(None,) * (len(names) - len(args))), strict=True))


def full_shape(tensors: Sequence[Tensor]) -> torch.Size:
    """The common shape of ``tensors``, at no cost when they already agree."""
    shape = tensors[0].shape
    for x in tensors:
        if x.shape != shape:
            return torch.broadcast_shapes(*(x.shape for x in tensors))
    return shape


def step_results(op: str, results: Sequence[Tensor]) -> list[Tensor]:
    """The results that have a number for every step: not the moments, and not what is empty."""
    return [x for x in (results[:-1] if ALL_SPECS[op].moments else results) if x.numel()]


def allocate(op: str, args: Sequence[Any]) -> tuple[Tensor, ...]:
    """The results of ``op`` for these arguments, uninitialised: full shape, promoted dtype, memory order of ``like``."""
    spec = ALL_SPECS[op]
    shaped_by = [args[i] for i in spec.shaped_by if args[i] is not None]
    shape, dtype, donor = full_shape(shaped_by), result_dtype(*shaped_by), args[spec.like]
    if donor.shape != shape:
        donor = donor.expand(shape)
    results = tuple(torch.empty_like(donor, dtype=dtype) for _ in range(spec.outputs))
    if not (spec.discount_outputs or spec.moments):
        return results
    wanted = args[len(plain_names(op)) - 1]
    if spec.moments:
        return (*results, donor.new_empty(3 if wanted else 0, dtype=moments_dtype(donor.device)))
    if wanted:
        return results + tuple(torch.empty_like(donor, dtype=dtype) for _ in range(spec.discount_outputs))
    return results + tuple(donor.new_empty(0, dtype=dtype) for _ in range(spec.discount_outputs))
