"""The two ways to walk through memory, each written once for all recurrences.

A kernel is made from a *body* (one block of one recurrence, see :mod:`.bodies`) and a strategy:

- :func:`rows`: time is contiguous, or very few lanes and then time. A task is one row of steps. Registers lie along
  time, so that even a single row uses them.
- :func:`strips`: many lanes are contiguous. A task is a strip of lanes. Registers lie across lanes, time is walked step
  by step.

A kernel gets the address of a plan (sizes and strides, :mod:`.geometry`), the address of one pointer per operand, the
address of scratch memory, and the range of tasks to do. It allocates nothing and cannot fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .blocks import Block, block_constant, zeros
from .geometry import HEADER, INNER, OUTER_DIMENSIONS, SPLIT, STEPS, STRIP, TABLES
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
def _word(plan: int, index: int) -> int:
    return load_words(plan + 8 * index, 1)[0]


def _layout(operands: int) -> Callable[..., Any]:
    """The fields of ``io`` that stay the same through a whole kernel."""

    @inlined
    def layout(plan: int) -> Any:
        table = plan + 8 * HEADER
        kinds, times = load_words(table, operands), load_words(table + 8 * operands, operands)
        lanes, outer_lanes = load_words(table + 16 * operands, operands), load_words(table + 24 * operands, operands)
        return kinds, times, lanes, outer_lanes, _word(plan, SPLIT)

    return layout


def _origin(operands: int) -> Callable[..., Any]:
    """Where each operand begins at ``position``, which counts through all outer dimensions, the innermost fastest."""

    @inlined
    def origin(plan: int, pointers: int, position: int) -> Any:
        addresses = load_words(pointers, operands)
        at = HEADER + TABLES * operands
        for _ in range(_word(plan, OUTER_DIMENSIONS)):
            size = _word(plan, at)
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


def _one_row(body: Body, number: Number, width: int, group: int) -> Callable[..., None]:
    """All steps of one row. Those that do not fill a register are computed one by one, before the others."""
    function, reverse, stride = body.function, body.reverse, width // group
    block = block_constant(Block(number, width, group, False, reverse))
    step = block_constant(Block(number, group, group, False, reverse))
    first_carries = _first_carries(body)

    @inlined
    def one_row(bases: Any, layout: Any, steps: int) -> None:
        carries = first_carries((bases, *layout, 0, False, False, step()))
        odd = steps % stride
        for i in range(odd):
            t = steps - 1 - i if reverse else i
            carries = function((bases, *layout, t * group, i == 0, i == steps - 1, step()), carries)
        for i in range(odd, steps, stride):
            t = steps - i - stride if reverse else i
            carries = function((bases, *layout, t * group, i == 0, i == steps - stride, block()), carries)

    return one_row


def rows(body: Body, number: Number, width: int, group: int) -> Kernel:
    """The kernel of ``body`` for data in which ``group`` lanes and then time are contiguous. A task is one row."""
    reverse, n = body.reverse, body.operands
    layout_of, origin, one_row = _layout(n), _origin(n), _one_row(body, number, width, group)

    def kernel(plan: int, pointers: int, scratch: int, begin: int, end: int) -> None:
        layout, steps, inner_size = layout_of(plan), _word(plan, STEPS), _word(plan, INNER)
        inner_strides = load_words(plan + 8 * (HEADER + (TABLES - 1) * n), n)
        # Backwards through memory as a whole, not only within rows: the processor prefetches one direction at a time.
        task, onwards = (end - 1, -1) if reverse else (begin, 1)
        outer, inner = task // inner_size, task % inner_size
        start = origin(plan, pointers, outer)
        for _ in range(begin, end):
            one_row(advance(start, inner_strides, inner), layout, steps)
            inner += onwards
            if inner < 0 or inner == inner_size:
                inner = inner_size - 1 if reverse else 0
                outer += onwards
                start = origin(plan, pointers, outer)

    return kernel


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


def strips(body: Body, number: Number, width: int) -> Kernel:
    """The kernel of ``body`` for data of which at least ``width`` lanes are contiguous. A task is a strip of lanes."""
    reverse, n, size = body.reverse, body.operands, number.element.bitwidth // 8
    block = block_constant(Block(number, width, width, True, reverse))
    layout_of, origin, first_carries = _layout(n), _origin(n), _first_carries(body)
    one_step = _one_step(body, number, width)

    def kernel(plan: int, pointers: int, scratch: int, begin: int, end: int) -> None:
        layout, steps, total, strip = layout_of(plan), _word(plan, STEPS), _word(plan, INNER), _word(plan, STRIP)
        times, gap, per_row = layout[1], strip * size, (total + strip - 1) // strip
        for task in range(begin, end):
            start, first_lane = origin(plan, pointers, task // per_row), task % per_row * strip
            lanes = min(strip, total - first_lane)
            for k in range(0, lanes, width):
                i = min(k, lanes - width)
                io = (start, *layout, first_lane + i, False, False, block())
                store_carries(io, scratch + i * size, gap, first_carries(io))
            for i in range(steps):
                bases = advance(start, times, steps - 1 - i if reverse else i)
                one_step(bases, layout, first_lane, lanes, i == 0, i == steps - 1, scratch, gap)

    return kernel
