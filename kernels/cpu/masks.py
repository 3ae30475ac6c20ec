"""Steps that do not count: what the optional masks make of a step's coefficients and results.

A body is written once, in the words of :class:`Masks`. Compiled without masks nothing is left of them (:data:`UNMASKED`);
compiled with masks it has two more operands, ``valid`` and ``skip``, either of which may be one flag for all steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .blocks import is_last
from .memory import read_flag, read_unset, read_unset_following
from .recur import recur
from .simd import inlined, where


class Masks(NamedTuple):
    """The words.

    ``left_out(io)``: where a step does not count, to be given to the others. ``kept(left, x, nothing)``: ``x``, or nothing
    where the step is left out. ``passing(io, a, done, nothing, one)``: the coefficient ``a``, but nothing passes an invalid
    step, and everything a skipped one that is not done. ``closes(io, done)``: where nothing follows: done, the last step,
    or one in front of an invalid step. ``passed_on(io, left, x, carry, nothing, one)``: ``x``, or where the step is left out
    that of the nearest later one that counts; ``carry`` where there is none.
    """

    left_out: Callable[..., Any]
    kept: Callable[..., Any]
    passing: Callable[..., Any]
    closes: Callable[..., Any]
    passed_on: Callable[..., Any]


@inlined
def _nothing_left_out(io: Any) -> None:
    return None


@inlined
def _all_kept(left: Any, x: Any, nothing: Any) -> Any:
    return x


@inlined
def _as_it_is(io: Any, a: Any, done: Any, nothing: Any, one: Any) -> Any:
    return a


@inlined
def _done_or_last(io: Any, done: Any) -> Any:
    return done | is_last(io)


@inlined
def _own(io: Any, left: Any, x: Any, carry: Any, nothing: Any, one: Any) -> Any:
    return x


UNMASKED = Masks(_nothing_left_out, _all_kept, _as_it_is, _done_or_last, _own)


@inlined
def _kept(left: Any, x: Any, nothing: Any) -> Any:
    return where(left, nothing, x)


@inlined
def _passed_on(io: Any, left: Any, x: Any, carry: Any, nothing: Any, one: Any) -> Any:
    return recur(io, where(left, one, nothing), where(left, nothing, x), carry)


def masked_by(valid: int, skip: int) -> Masks:
    """The words for a body whose masks are the operands ``valid`` and ``skip``."""

    @inlined
    def left_out(io: Any) -> Any:
        return read_unset(io, valid) | read_flag(io, skip)

    @inlined
    def passing(io: Any, a: Any, done: Any, nothing: Any, one: Any) -> Any:
        through = where(done, nothing, one)
        return where(read_unset(io, valid), nothing, where(read_flag(io, skip), through, a))

    @inlined
    def closes(io: Any, done: Any) -> Any:
        return done | is_last(io) | read_unset_following(io, valid)

    return Masks(left_out, _kept, passing, closes, _passed_on)
