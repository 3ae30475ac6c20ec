"""The two ways to walk through memory, each written once for all recurrences.

A kernel is made from a *body* (one block of one recurrence, see :mod:`.bodies`) and a strategy:

- :func:`rows`: time is contiguous, or very few lanes and then time. A task is one row of steps. Registers lie along
  time, so that even a single row uses them.
- :func:`strips`: many lanes are contiguous. A task is a strip of lanes. Registers lie across lanes, time is walked step
  by step.

Of packed sequences each is a row or strip of its own, from one offset to the next; the address of the offsets stands behind
the pointers of the operands. Where there are fewer tasks than threads, :mod:`.pieces` cuts time as well.

A kernel gets the address of a plan (sizes and strides, :mod:`.geometry`), the address of one pointer per operand, the
address of scratch memory, and the range of tasks to do. It allocates nothing and cannot fail.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from .blocks import Block, block_constant, zeros
from .geometry import GAP, HEADER, INNER, OUTER_DIMENSIONS, SEQUENCES, SPLIT, STEPS, STRIP, TABLES
from .masks import UNMASKED, Masks, masked_by
from .memory import advance, load_carries, load_words, read, store_carries
from .numbers import Number
from .simd import inlined

Kernel = Callable[[int, int, int, int, int], None]


class Body:
    """One recurrence, independent of where its data lie.

    ``written(masks)`` is the function ``(io, carries) -> carries`` that computes a block and returns the carries of the next
    one, in the words of :class:`.masks.Masks`. ``operands``: how many, results included; masks come behind them.
    ``carries``: how many. ``reverse``: the order of processing. ``initial``: the operand that holds the last of the carries
    at the start, for a body with one; all others begin as zero.
    """

    def __init__(
        self,
        written: Callable[[Masks], Callable[..., Any]],
        operands: int,
        carries: int,
        reverse: bool,
        initial: int | None = None,
        masks: Masks = UNMASKED,
    ) -> None:
        self.written, self.function = written, inlined(written(masks))
        self.operands, self.carries = operands, carries
        self.reverse, self.initial = reverse, initial

    def masked(self) -> Body:
        """The same recurrence with the operands ``valid`` and ``skip`` behind the others."""
        masks = masked_by(self.operands, self.operands + 1)
        return Body(self.written, self.operands + 2, self.carries, self.reverse, self.initial, masks)


@inlined
def word(plan: int, index: int) -> int:
    """A word of the plan."""
    return load_words(plan + 8 * index, 1)[0]


# These and others that depend on no more than the number of operands are compiled once for all kernels with as many.
@functools.cache
def layout_of(operands: int) -> Callable[..., Any]:
    """The fields of ``io`` that stay the same through a whole kernel."""

    @inlined
    def layout(plan: int) -> Any:
        table = plan + 8 * HEADER
        kinds, times = load_words(table, operands), load_words(table + 8 * operands, operands)
        lanes, outer_lanes = load_words(table + 16 * operands, operands), load_words(table + 24 * operands, operands)
        return kinds, times, lanes, outer_lanes, word(plan, SPLIT)

    return layout


@functools.cache
def _origin(operands: int) -> Callable[..., Any]:
    """Where each operand begins at ``position``, which counts through all outer dimensions, the innermost fastest."""

    @inlined
    def origin(plan: int, pointers: int, position: int) -> Any:
        addresses = load_words(pointers, operands)
        at = HEADER + TABLES * operands
        for _ in range(word(plan, OUTER_DIMENSIONS)):
            size = word(plan, at)
            addresses = advance(addresses, load_words(plan + 8 * (at + 1), operands), position % size)
            position = position // size
            at += 1 + operands
        return addresses

    return origin


def _first_carries(body: Body) -> Callable[..., Any]:
    """A function that gives the carries at the start."""
    count, initial, others = body.carries, body.initial, body.carries - 1

    @inlined
    def all_zero(io: Any) -> Any:
        return zeros(io, count)

    @inlined
    def last_given(io: Any) -> Any:
        return (*zeros(io, others), read(io, initial))

    return all_zero if initial is None else last_given


class Walk(NamedTuple):
    """How to go through the data of one task, with the carries in scratch memory, ``gap`` bytes apart.

    ``locate(plan, pointers, task)`` gives where its operands begin, its first lane, and how many lanes it has; ``lane`` stands
    for these three. ``enter(lane, layout, scratch, gap)`` writes the first carries. ``go(lane, layout, steps, begin, end,
    scratch, gap)`` computes the ``begin``-th to ``end``-th step in the order of processing: ``begin`` is zero, or the distances
    from it to ``end`` and to the last of all steps are multiples of ``stride``.
    """

    locate: Callable[..., Any]
    enter: Callable[..., None]
    go: Callable[..., None]
    stride: int


def _some_steps(body: Body, number: Number, width: int, group: int) -> Callable[..., Any]:
    """Some steps of one row. Those that do not fill a register are computed one by one, before the others."""
    function, reverse, stride = body.function, body.reverse, width // group
    block = block_constant(Block(number, width, group, False, reverse))
    step = block_constant(Block(number, group, group, False, reverse))

    @inlined
    def some_steps(bases: Any, layout: Any, steps: int, begin: int, end: int, carries: Any) -> Any:
        odd = steps % stride
        for i in range(begin, odd):
            t = steps - 1 - i if reverse else i
            carries = function((bases, *layout, t * group, i == 0, i == steps - 1, step()), carries)
        for i in range(max(begin, odd), end, stride):
            t = steps - i - stride if reverse else i
            carries = function((bases, *layout, t * group, i == 0, i == steps - stride, block()), carries)
        return carries

    return some_steps


@functools.cache
def _inner_strides(operands: int) -> Callable[..., Any]:
    """The strides from row to row of the innermost dimension that is neither time nor in a block."""

    @inlined
    def inner_strides(plan: int) -> Any:
        return load_words(plan + 8 * (HEADER + (TABLES - 2) * operands), operands)

    return inner_strides


@functools.cache
def _sequence(operands: int) -> Callable[..., Any]:
    """Where a sequence begins whose row or strip, with all sequences in it, begins at ``start``, and how many steps it has."""

    @inlined
    def sequence(plan: int, pointers: int, start: Any, times: Any, i: int) -> Any:
        first, behind = load_words(load_words(pointers + 8 * operands, 1)[0] + 8 * i, 2)
        each = load_words(plan + 8 * (HEADER + (TABLES - 1) * operands), operands)
        return advance(advance(start, times, first), each, i), behind - first

    return sequence


def rows(body: Body, number: Number, width: int, group: int) -> Kernel:
    """The kernel of ``body`` for data in which ``group`` lanes and then time are contiguous. A task is one row."""
    reverse, n = body.reverse, body.operands
    layout_at, origin, inner_strides_at, sequence_at = layout_of(n), _origin(n), _inner_strides(n), _sequence(n)
    first_carries = _first_carries(body)
    some_steps = _some_steps(body, number, width, group)
    step = block_constant(Block(number, group, group, False, reverse))

    def kernel(plan: int, pointers: int, scratch: int, begin: int, end: int) -> None:
        layout, steps, inner_size = layout_at(plan), word(plan, STEPS), word(plan, INNER)
        inner_strides, sequences = inner_strides_at(plan), word(plan, SEQUENCES)
        # Backwards through memory as a whole, not only within rows: the processor prefetches one direction at a time.
        task, onwards = (end - 1, -1) if reverse else (begin, 1)
        row = task // max(1, sequences)
        # Counted on, not divided for each row: short rows are soon done.
        outer, inner, i = row // inner_size, row % inner_size, task % max(1, sequences)
        bases = origin(plan, pointers, outer)
        for _ in range(begin, end):
            start = advance(bases, inner_strides, inner)
            if sequences:
                start, steps = sequence_at(plan, pointers, start, layout[1], i)
            carries = first_carries((start, *layout, 0, False, False, step()))
            some_steps(start, layout, steps, 0, steps, carries)
            i += onwards
            if 0 <= i < sequences:
                continue
            i = sequences - 1 if reverse else 0
            inner += onwards
            if inner < 0 or inner == inner_size:
                inner = inner_size - 1 if reverse else 0
                outer += onwards
                bases = origin(plan, pointers, outer)

    return kernel


def row_walk(body: Body, number: Number, width: int, group: int) -> Walk:
    """One row, as in :func:`rows`."""
    count, origin, inner_strides_at = body.carries, _origin(body.operands), _inner_strides(body.operands)
    first_carries = _first_carries(body)
    some_steps = _some_steps(body, number, width, group)
    step = block_constant(Block(number, group, group, False, body.reverse))

    @inlined
    def locate(plan: int, pointers: int, task: int) -> Any:
        outer, inner = task // word(plan, INNER), task % word(plan, INNER)
        return advance(origin(plan, pointers, outer), inner_strides_at(plan), inner), 0, group

    @inlined
    def enter(lane: Any, layout: Any, scratch: int, gap: int) -> None:
        io = (lane[0], *layout, 0, False, False, step())
        store_carries(io, scratch, gap, first_carries(io))

    @inlined
    def go(lane: Any, layout: Any, steps: int, begin: int, end: int, scratch: int, gap: int) -> None:
        io = (lane[0], *layout, 0, False, False, step())
        carries = load_carries(io, scratch, count, gap)
        store_carries(io, scratch, gap, some_steps(lane[0], layout, steps, begin, end, carries))

    return Walk(locate, enter, go, width // group)


def _one_step(body: Body, number: Number, width: int) -> Callable[..., None]:
    """One time step of a strip of at least ``width`` lanes, whose carries rest in scratch memory between two steps."""
    function, reverse, count, size = body.function, body.reverse, body.carries, number.element.bitwidth // 8
    block = block_constant(Block(number, width, width, True, reverse))

    @inlined
    def one_step(
        bases: Any, layout: Any, begin: int, lanes: int, first: bool, final: bool, scratch: int, gap: int
    ) -> None:
        # Lanes that do not fill a register are computed together with some that are also in the last full one. Their
        # carries go to memory last, so that both find the carries of the step before.
        i = lanes - width
        tail_io, tail_at = (bases, *layout, begin + i, first, final, block()), scratch + i * size
        tail = load_carries(tail_io, tail_at, count, gap)
        if lanes % width:
            tail = function(tail_io, tail)
        for k in range(0, lanes - lanes % width, width):
            i = lanes - lanes % width - width - k if reverse else k
            io, at = (bases, *layout, begin + i, first, final, block()), scratch + i * size
            store_carries(io, at, gap, function(io, load_carries(io, at, count, gap)))
        if lanes % width:
            store_carries(tail_io, tail_at, gap, tail)

    return one_step


@functools.cache
def _strip(operands: int) -> Callable[..., Any]:
    """Where the operands of a strip begin, its first lane, and how many it has."""
    origin = _origin(operands)

    @inlined
    def locate(plan: int, pointers: int, task: int) -> Any:
        total, strip = word(plan, INNER), word(plan, STRIP)
        per_row = (total + strip - 1) // strip
        first_lane = task % per_row * strip
        return origin(plan, pointers, task // per_row), first_lane, min(strip, total - first_lane)

    return locate


def strip_walk(body: Body, number: Number, width: int) -> Walk:
    """A strip of at least ``width`` contiguous lanes."""
    reverse, size = body.reverse, number.element.bitwidth // 8
    block = block_constant(Block(number, width, width, True, reverse))
    locate, first_carries = _strip(body.operands), _first_carries(body)
    one_step = _one_step(body, number, width)

    @inlined
    def enter(lane: Any, layout: Any, scratch: int, gap: int) -> None:
        start, first_lane, lanes = lane
        for k in range(0, lanes, width):
            i = min(k, lanes - width)
            io = (start, *layout, first_lane + i, False, False, block())
            store_carries(io, scratch + i * size, gap, first_carries(io))

    @inlined
    def go(lane: Any, layout: Any, steps: int, begin: int, end: int, scratch: int, gap: int) -> None:
        start, first_lane, lanes = lane
        times = layout[1]
        for i in range(begin, end):
            bases = advance(start, times, steps - 1 - i if reverse else i)
            one_step(bases, layout, first_lane, lanes, i == 0, i == steps - 1, scratch, gap)

    return Walk(locate, enter, go, 1)


def strips(body: Body, number: Number, width: int) -> Kernel:
    """The kernel of ``body`` for data of which at least ``width`` lanes are contiguous. A task is a strip of lanes."""
    layout_at, sequence_at = layout_of(body.operands), _sequence(body.operands)
    locate, enter, go, _ = strip_walk(body, number, width)

    def kernel(plan: int, pointers: int, scratch: int, begin: int, end: int) -> None:
        layout, steps, gap, sequences = layout_at(plan), word(plan, STEPS), word(plan, GAP), word(plan, SEQUENCES)
        for task in range(begin, end):
            start, first_lane, lanes = locate(plan, pointers, task // max(1, sequences))
            if sequences:
                start, steps = sequence_at(plan, pointers, start, layout[1], task % sequences)
            lane = start, first_lane, lanes
            enter(lane, layout, scratch, gap)
            go(lane, layout, steps, 0, steps, scratch, gap)

    return kernel
