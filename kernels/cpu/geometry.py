"""From shapes and strides to a plan: which strategy, over which blocks, and the table of numbers that the kernel reads.

Pure functions of integers; nothing here touches memory that is not its own. The time dimension is set apart. All others
are *lane* dimensions, and are merged wherever every operand allows it. Those whose stride in the result is below that
of time lie inside a time step, the others outside. The strategy follows from the result, because every result is dense:

- nothing inside a step: rows of time (``group`` 1);
- too few lanes inside to fill a register: rows of time and those lanes together (``group`` lanes);
- otherwise: strips of lanes.

Operands may have any strides. What is not laid out like the result is gathered, not copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from . import parts as cut_up
from .parts import STATE_BYTES, Parts

# How an operand lies along a block. ONE_DOUBLE: a single float64, whatever the kernel computes in. ABSENT: a result
# that nobody asked for.
CONTIGUOUS, ONE, ONE_DOUBLE, GATHERED, ABSENT = range(5)

# The plan of a kernel, in 64-bit words. STEPS: of time. INNER: rows in the innermost dimension of rows, or lanes to be
# cut into strips of STRIP. SPLIT: lanes in the inner of the two lane dimensions of a block. GAP: from carry to carry in
# scratch memory. PIECES: that time is cut into, of PIECE steps with MARKS, EVERY so many steps. SEQUENCES: that are packed
# along time, or 0. ROWS: there are, of which EACH are computed before they are measured. NUMBERS and the following: the
# fields of Parts, where moments are wanted. Then tables with one word per operand: kind, time stride, lane stride, outer
# lane stride, stride of the INNER rows, and from sequence to sequence (of what has one step for each). Then
# OUTER_DIMENSIONS times a size and one stride per operand, the innermost first. All strides in bytes.
STEPS, INNER, STRIP, SPLIT, GAP, PIECES, PIECE, EVERY, MARKS, SEQUENCES, OUTER_DIMENSIONS, ROWS, EACH, NUMBERS = range(
    14
)
HEADER, TABLES = NUMBERS + len(Parts._fields), 6

REGISTER_BYTES = 64
# The strip's carries should stay in the second-level cache, and a row of it should be long enough for the prefetcher.
MAX_STRIP_BYTES = 64 * 1024
# A piece of time shorter than this is not worth beginning again, which takes some 300 steps (:mod:`.pieces`).
MIN_PIECE = 2048
STEPS_BETWEEN_MARKS = 256
# In strips whose rows are shorter than this, two threads take as long as one.
MIN_SHARED_STRIP_BYTES = 2 * 1024


class Operand(NamedTuple):
    """Strides in bytes, one per dimension of the full shape, 0 where broadcast; ``kind`` where it is given; the stride from
    sequence to sequence where it has one step for each."""

    strides: tuple[int, ...]
    itemsize: int
    kind: int | None = None
    each: int = 0


class Dimension(NamedTuple):
    """A dimension of the full shape and the stride of each operand along it."""

    size: int
    strides: tuple[int, ...]


class Cut(NamedTuple):
    """Time in ``pieces`` of ``piece`` steps, each with ``marks`` that are ``every`` so many steps apart."""

    pieces: int
    piece: int
    every: int
    marks: int


class Plan(NamedTuple):
    """``width`` and ``group`` make the kernel; ``group == 0`` stands for strips. ``tasks``: rows, or strips, or of rows as many
    as are in a part that is measured. ``scratch``: bytes for each carry. ``pieces``: that time is cut into, each with so many
    ``marks``. ``parts``: of which moments are to be taken. ``states``: bytes for those that are under way. ``together``:
    whether they are taken by the kernel that computes the numbers."""

    width: int
    group: int
    tasks: int
    scratch: int
    words: np.ndarray
    address: int
    pieces: int
    marks: int
    parts: int
    states: int
    together: bool


class Request(NamedTuple):
    """What a plan is wanted for, beside its shape: see :func:`make_plan`."""

    operands: Sequence[Operand]
    itemsize: int
    shares: int
    sequences: int
    measured: bool


class Unmergeable(ValueError):
    """Too many small lane dimensions that some operand keeps apart; ``operands`` says which ones to copy."""

    def __init__(self, operands: list[int]) -> None:
        self.operands = operands
        super().__init__(f"operands {operands} keep small lane dimensions apart")


def merged(dimensions: Sequence[Dimension]) -> list[Dimension]:
    """Neighbours joined wherever the outer stride of every operand is the inner one times the inner size."""
    out: list[Dimension] = []
    for d in dimensions:
        if d.size == 1:
            continue
        if out and all(outer == inner * d.size for outer, inner in zip(out[-1].strides, d.strides, strict=True)):
            d = Dimension(out.pop().size * d.size, d.strides)
        out.append(d)
    return out


def make_plan(
    shape: Sequence[int],
    time_dim: int,
    operands: Sequence[Operand],
    result: int,
    itemsize: int,
    shares: int = 1,
    sequences: int = 0,
    measured: bool = False,
) -> Plan:
    """The plan for these operands. ``result``: which of them is laid out as all results are. ``itemsize``: of a number in a
    register. ``shares``: how many tasks or pieces there should be at least, if the data are enough, for as many threads.
    ``sequences``: how many are packed along time; then a row or strip of one sequence is a task, and time is not cut.
    ``measured``: whether moments of a result are wanted.

    Raises:
        Unmergeable: if the lanes inside a time step make more than two dimensions and too few lanes.
    """
    full = REGISTER_BYTES // itemsize
    request = Request(operands, itemsize, shares, sequences, measured)
    time = Dimension(shape[time_dim], tuple(x.strides[time_dim] for x in operands))
    lanes = [
        Dimension(size, tuple(x.strides[d] for x in operands))
        for d, size in enumerate(shape)
        if d != len(shape) + time_dim and size > 1
    ]
    lanes.sort(key=lambda d: -d.strides[result])
    inside = merged([d for d in lanes if time.size == 1 or d.strides[result] < time.strides[result]])
    outside = merged([d for d in lanes if time.size > 1 and d.strides[result] > time.strides[result]])
    packed, rest = _innermost(inside, full)
    count = math.prod(d.size for d in packed)
    if count >= full:
        return _strips(time, packed, rest, outside, full, request)
    if rest:
        raise Unmergeable(_culprits(inside))
    width = full // count * count
    while count == 1 and width > 4 and width > time.size:
        width //= 2
    return _rows(time, packed, outside, width, count, request)


def _innermost(inside: list[Dimension], full: int) -> tuple[list[Dimension], list[Dimension]]:
    """The lane dimensions that blocks are made of, at most two, and those that are left."""
    take = 1 if inside and inside[-1].size >= full else 2
    return inside[-take:], inside[:-take]


def _culprits(inside: list[Dimension]) -> list[int]:
    """The operands for which these dimensions cannot be merged into one."""
    return [
        k
        for k in range(len(inside[0].strides))
        if len(merged([Dimension(d.size, (d.strides[k],)) for d in inside])) > 1
    ]


def _kinds(
    operands: Sequence[Operand], time: Dimension, packed: list[Dimension], group: int, across: bool
) -> tuple[int, ...]:
    kinds = []
    for k, x in enumerate(operands):
        strides = [d.strides[k] for d in packed] + ([] if across else [time.strides[k]])
        dense: list[int] = []
        size = x.itemsize
        for d in reversed(packed):
            dense.insert(0, size)
            size *= d.size
        dense += [] if across else [size]
        if x.kind is not None:
            kinds.append(x.kind)
        elif strides == dense or (time.size == 1 and strides[: len(packed)] == dense[: len(packed)]):
            kinds.append(CONTIGUOUS)
        else:
            kinds.append(ONE if not any(strides) else GATHERED)
    return tuple(kinds)


def _words(
    time: Dimension,
    packed: list[Dimension],
    kinds: tuple[int, ...],
    inner: Dimension,
    strip: int,
    outer: list[Dimension],
    gap: int,
    cut: Cut,
    rows: tuple[int, int],
    parts: Parts | None,
    request: Request,
) -> np.ndarray:
    nothing = (0,) * len(kinds)
    lane = packed[-1] if packed else Dimension(1, nothing)
    outer_lane = packed[0] if len(packed) > 1 else Dimension(1, nothing)
    words = [time.size, inner.size, strip, lane.size, gap, *cut, request.sequences, len(outer), *rows]
    words += parts if parts else (0,) * len(Parts._fields)
    words += [*kinds, *time.strides, *lane.strides, *outer_lane.strides, *inner.strides]
    words += [x.each for x in request.operands]
    for d in reversed(outer):
        words += [d.size, *d.strides]
    return np.array(words, dtype=np.int64)


def _rows(
    time: Dimension, packed: list[Dimension], outside: list[Dimension], width: int, group: int, request: Request
) -> Plan:
    _, itemsize, shares, sequences, measured = request
    *outer, inner = outside or [Dimension(1, (0,) * len(request.operands))]
    rows, gap = math.prod(d.size for d in outside), group * itemsize
    tasks = rows * max(1, sequences)
    cut = cut_time(time.size, tasks, 1 if sequences else shares, width // group)
    cut_row = cut_up.of_rows(rows, time.size * group, width)
    parts = _parts(cut_row, request)
    together = measured and cut.pieces == 1 and not sequences
    each = max(1, cut_row.across // (time.size * group))
    if together:
        tasks = -(-rows // each)
    kinds = _kinds(request.operands, time, packed, group, False)
    words = _words(time, packed, kinds, inner, 0, outer, gap, cut, (rows, each), parts, request)
    return Plan(
        width=width,
        group=group,
        tasks=tasks,
        scratch=gap if cut.pieces > 1 else 0,
        words=words,
        address=words.ctypes.data,
        pieces=cut.pieces,
        marks=cut.marks,
        parts=parts.how_many if parts else 0,
        states=0,
        together=together,
    )


def _strips(
    time: Dimension,
    packed: list[Dimension],
    rest: list[Dimension],
    outside: list[Dimension],
    width: int,
    request: Request,
) -> Plan:
    _, itemsize, shares, sequences, measured = request
    total, outer = math.prod(d.size for d in packed), outside + rest
    others = math.prod(d.size for d in outer) * max(1, sequences)
    least, most = MIN_SHARED_STRIP_BYTES // itemsize, MAX_STRIP_BYTES // itemsize
    # Of a part that is measured every lane is in one strip.
    unit = strip_size(total, width, max(least, min(most, cut_up.PART // time.size))) if measured else width
    share = max(-(-total // max(1, -(-shares // others))), least)
    strip = strip_size(total, width, min(most, share), unit)
    inner = Dimension(total, (0,) * len(request.operands))
    tasks, gap = others * -(-total // strip), strip * itemsize
    cut = cut_time(time.size, tasks, 1 if sequences else shares, 1)
    together = measured and cut.pieces == 1 and not sequences
    around, blocks = (math.prod(d.size for d in dimensions) for dimensions in (rest, outside))
    parts = _parts(cut_up.of_lanes(time.size, around, total, unit, blocks), request)
    kinds = _kinds(request.operands, time, packed, width, True)
    words = _words(time, packed, kinds, inner, strip, outer, gap, cut, (0, 0), parts, request)
    return Plan(
        width=width,
        group=0,
        tasks=tasks,
        scratch=gap,
        words=words,
        address=words.ctypes.data,
        pieces=cut.pieces,
        marks=cut.marks,
        parts=parts.how_many if parts else 0,
        states=STATE_BYTES * -(-strip // unit) if together else 0,
        together=together,
    )


def _parts(parts: Parts, request: Request) -> Parts | None:
    """Those of which moments are taken. Packed sequences end where the data say, not the shape."""
    if not request.measured:
        return None
    return cut_up.of_numbers(parts.numbers) if request.sequences else parts


def cut_time(steps: int, tasks: int, shares: int, stride: int) -> Cut:
    """Pieces so that all of ``shares`` threads have as many of them, where there are too few tasks for that.

    Pieces are whole multiples of ``stride`` steps. The first takes those as well that are left over.
    """
    wanted = 1 if tasks >= 4 * shares else shares // math.gcd(tasks, shares)
    every = STEPS_BETWEEN_MARKS // stride * stride
    marks = -(-(steps // max(1, min(wanted, steps // MIN_PIECE))) // every)
    pieces = max(1, -(-(steps - steps % stride) // (marks * every)))
    return Cut(pieces, marks * every, every, marks)


def strip_size(total: int, width: int, limit: int, unit: int | None = None) -> int:
    """Lanes per strip: whole registers, at most about ``limit``, and never a last strip too small for one register.

    ``unit``: what it is a multiple of, if not of a register. Where strips end makes no difference to a result: every lane is
    computed by the same instructions in any of them.
    """
    unit = width if unit is None else unit
    strip = -(-min(total, limit) // unit) * unit
    while total > strip and 0 < total % strip < width:
        strip += unit
    return strip
