"""Which strategy runs, and with what block sizes: a pure function of sizes, strides and the device, tested without a GPU.

Nothing is tuned at run time: that would be unsafe under CUDA-graph capture and slow on the first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .geometry import Lanes, Strides


class Plan(NamedTuple):
    """How a kernel is launched.

    ``strategy``: ``"rows"`` (time contiguous: tiles of ``lanes`` rows x ``vectors`` vectors of ``vector`` steps, one after
    the other), ``"lanes"`` (strips of ``lanes`` lanes, ``unroll`` steps in flight) or ``"split"`` (the tiles of rows, all at
    once). ``by_outer``: the strips do not cross the outer index.
    """

    strategy: str
    grid: tuple[int, ...]
    lanes: int
    warps: int
    vector: int = 1
    vectors: int = 1
    unroll: int = 1
    by_outer: bool = False


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()


def ceil_div(n: int, d: int) -> int:
    """``n / d`` rounded up."""
    return -(-n // d)


def vector_width(steps: int, strides: Sequence[Strides], widest_item: int) -> int:
    """How many neighbouring steps fit a 16-byte access of the widest dtype, and keep every row aligned."""
    contiguous = [s for s in strides if s[1] == 1]
    vector = min(8, max(1, 16 // widest_item))
    while vector > 1 and (steps % vector or any(s[0] % vector or s[2] % vector for s in contiguous)):
        vector //= 2
    return vector


def choose_plan(
    sizes: Lanes,
    strides: Sequence[Strides],
    out_strides: Strides,
    widest_item: int,
    multiprocessors: int,
    streams: int = 7,
) -> Plan:
    """The plan for one launch.

    Args:
        sizes: lanes and steps.
        strides: of every input that is read step by step and of every output.
        out_strides: of the first output; its memory order is that of the data.
        widest_item: bytes of the widest floating dtype read or written.
        multiprocessors: of the device.
        streams: how many inputs and outputs there are at each step (7 for GAE); they all stand in registers at once.
    """
    wide = widest_item > 4
    time_is_contiguous = out_strides[1] <= 1 and (sizes.steps > 1 or sizes.lanes == 1)
    if time_is_contiguous:
        vector = vector_width(sizes.steps, strides, widest_item)
        per_thread = _power_of_two_within(_REGISTERS // (vector * streams * (2 if wide else 1)), 1, 2)
        plan = _rows(sizes, vector, per_thread, multiprocessors)
        vectors = 256 * per_thread
        if plan.grid[0] < 2 * multiprocessors and sizes.steps >= 4 * vectors * vector:
            return _split(sizes, 1, vector, vectors, 8)
        return plan
    # A strip keeps but a few steps in flight: with few lanes the card is busy only when time is cut too.
    if sizes.lanes < 64 * multiprocessors and sizes.steps >= 128:
        rows = min(32, next_power_of_two(sizes.lanes))
        per_thread = _power_of_two_within(_REGISTERS // (streams * (2 if wide else 1)), 1, 4)
        return _split(sizes, rows, 1, 128 * per_thread // rows, 4)
    return _lanes(sizes, widest_item, multiprocessors, streams)


_REGISTERS = 64  # a thread's share for the data of its steps, in numbers of 4 bytes; the scan needs as much again


def _power_of_two_within(n: int, low: int, high: int) -> int:
    """The largest power of two up to ``n``, between ``low`` and ``high``."""
    return min(high, max(low, 1 << max(0, n.bit_length() - 1)))


def _rows(sizes: Lanes, vector: int, per_thread: int, multiprocessors: int) -> Plan:
    """``per_thread`` vectors a thread; short rows share a program, as long as there is a program for every processor."""
    warps = 4
    tile = 32 * warps * per_thread
    vectors = min(next_power_of_two(ceil_div(sizes.steps, vector)), tile)
    rows = tile // vectors
    # Not below a vector for every thread of a warp: smaller tiles are laid out badly (255 registers, spills).
    while rows * vectors > 32 and rows > 1 and ceil_div(sizes.lanes, rows) < 2 * multiprocessors:
        rows //= 2
    warps = max(1, min(warps, rows * vectors // 32))
    return Plan("rows", (ceil_div(sizes.lanes, rows),), rows, warps, vector=vector, vectors=vectors)


def _lanes(sizes: Lanes, widest_item: int, multiprocessors: int, streams: int) -> Plan:
    """As many lanes a thread as make a 16-byte access, unless that leaves processors idle."""
    by_outer = sizes.inner >= 32 and sizes.outer <= 65535
    width = sizes.inner if by_outer else sizes.lanes
    repeats = sizes.outer if by_outer else 1
    warps = 4
    strip = 32 * warps * max(1, 16 // widest_item)
    while strip > 32 and (strip >= 2 * width or ceil_div(width, strip) * repeats < 2 * multiprocessors):
        strip //= 2
    warps = max(1, min(warps, strip // 32))
    numbers = strip // (32 * warps) * streams * (2 if widest_item > 4 else 1)
    unroll = min(_power_of_two_within(2 * _REGISTERS // numbers, 1, 8), next_power_of_two(sizes.steps))
    grid = (ceil_div(width, strip), repeats)
    return Plan("lanes", grid, strip, warps, unroll=unroll, by_outer=by_outer)


def _split(sizes: Lanes, rows: int, vector: int, vectors: int, warps: int) -> Plan:
    """One program for every tile of every block of rows."""
    tiles = ceil_div(sizes.steps, vector * vectors)
    return Plan("split", (tiles * ceil_div(sizes.lanes, rows),), rows, warps, vector=vector, vectors=vectors)
