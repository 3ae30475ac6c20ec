"""Which strategy runs, and with what block sizes: a pure function of sizes, strides and the device, tested without a GPU.

Nothing is tuned at run time: that would be unsafe under CUDA-graph capture and slow on the first call. The numbers to decide
by come from a table (:mod:`.tables`), looked up by the name of the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .geometry import Lanes, Strides
from .tables import Table, table_for


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
    device_name: str | None = None,
) -> Plan:
    """The plan for one launch.

    Args:
        sizes: lanes and steps.
        strides: of every input that is read step by step and of every output.
        out_strides: of the first output; its memory order is that of the data.
        widest_item: bytes of the widest floating dtype read or written.
        multiprocessors: of the device.
        streams: how many inputs and outputs there are at each step (7 for GAE); they all stand in registers at once.
        device_name: whose table to decide by; ``None`` for the default.
    """
    return decide(sizes, strides, out_strides, widest_item, multiprocessors, streams, device_name)[0]


def decide(
    sizes: Lanes,
    strides: Sequence[Strides],
    out_strides: Strides,
    widest_item: int,
    multiprocessors: int,
    streams: int = 7,
    device_name: str | None = None,
) -> tuple[Plan, str]:
    """:func:`choose_plan`, and why, in words."""
    table = table_for(device_name)
    numbers = streams * (2 if widest_item > 4 else 1)
    time_is_contiguous = out_strides[1] <= 1 and (sizes.steps > 1 or sizes.lanes == 1)
    if time_is_contiguous:
        vector = vector_width(sizes.steps, strides, widest_item)
        per_thread = _power_of_two_within(table.registers // (vector * numbers), 1, table.rows_vectors)
        plan = _rows(sizes, vector, per_thread, multiprocessors, table)
        vectors = 32 * table.split_rows_warps * per_thread
        enough = plan.grid[0] >= table.programs * multiprocessors
        if not enough and sizes.steps >= table.split_tiles * vectors * vector:
            why = (
                f"time is contiguous, and {plan.grid[0]} programs that walk {sizes.steps} steps would leave most of "
                f"{multiprocessors} multiprocessors idle: time is cut into tiles that run all at once"
            )
            return _split(sizes, 1, vector, vectors, table.split_rows_warps), why
        why = "time is contiguous" + ("" if enough else ", and too short to be worth cutting into tiles")
        return plan, why + _packed_rows(plan)
    # A strip keeps but a few steps in flight: with few lanes the card is busy only when time is cut too.
    if sizes.lanes < table.split_lanes * multiprocessors and sizes.steps >= table.split_steps:
        rows = min(table.split_rows, next_power_of_two(sizes.lanes))
        per_thread = _power_of_two_within(table.registers // numbers, 1, table.split_vectors)
        warps = table.split_lanes_warps
        why = (
            f"lanes are contiguous, but {sizes.lanes} of them are too few to keep {multiprocessors} multiprocessors busy "
            f"for {sizes.steps} steps: time is cut into tiles that run all at once"
        )
        return _split(sizes, rows, 1, 32 * warps * per_thread // rows, warps), why
    why = (
        "lanes are contiguous, and there are enough of them"
        if sizes.steps >= table.split_steps
        else ("lanes are contiguous, and time is too short to be worth cutting into tiles")
    )
    return _lanes(sizes, widest_item, multiprocessors, streams, table), why


def _packed_rows(plan: Plan) -> str:
    return f"; {plan.lanes} short rows share a program" if plan.lanes > 1 else ""


def _power_of_two_within(n: int, low: int, high: int) -> int:
    """The largest power of two up to ``n``, between ``low`` and ``high``."""
    return min(high, max(low, 1 << max(0, n.bit_length() - 1)))


def _rows(sizes: Lanes, vector: int, per_thread: int, multiprocessors: int, table: Table) -> Plan:
    """``per_thread`` vectors a thread; short rows share a program, as long as there is a program for every processor."""
    warps = table.rows_warps
    tile = 32 * warps * per_thread
    vectors = min(next_power_of_two(ceil_div(sizes.steps, vector)), tile)
    rows = tile // vectors
    # Not below a vector for every thread of a warp: smaller tiles are laid out badly (255 registers, spills).
    while rows * vectors > 32 and rows > 1 and ceil_div(sizes.lanes, rows) < table.programs * multiprocessors:
        rows //= 2
    warps = max(1, min(warps, rows * vectors // 32))
    return Plan("rows", (ceil_div(sizes.lanes, rows),), rows, warps, vector=vector, vectors=vectors)


def _lanes(sizes: Lanes, widest_item: int, multiprocessors: int, streams: int, table: Table) -> Plan:
    """As many lanes a thread as make a 16-byte access, unless that leaves processors idle."""
    by_outer = sizes.inner >= 32 and sizes.outer <= 65535
    width = sizes.inner if by_outer else sizes.lanes
    repeats = sizes.outer if by_outer else 1
    warps = table.lanes_warps
    strip = 32 * warps * max(1, 16 // widest_item)
    while strip > 32 and (strip >= 2 * width or ceil_div(width, strip) * repeats < table.programs * multiprocessors):
        strip //= 2
    warps = max(1, min(warps, strip // 32))
    numbers = strip // (32 * warps) * streams * (2 if widest_item > 4 else 1)
    unroll = min(_power_of_two_within(2 * table.registers // numbers, 1, table.unroll), next_power_of_two(sizes.steps))
    grid = (ceil_div(width, strip), repeats)
    return Plan("lanes", grid, strip, warps, unroll=unroll, by_outer=by_outer)


def _split(sizes: Lanes, rows: int, vector: int, vectors: int, warps: int) -> Plan:
    """One program for every tile of every block of rows."""
    tiles = ceil_div(sizes.steps, vector * vectors)
    return Plan("split", (tiles * ceil_div(sizes.lanes, rows),), rows, warps, vector=vector, vectors=vectors)
