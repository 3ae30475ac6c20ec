"""Which strategy runs, and with what block sizes: a pure function of sizes, strides and the device, tested without a GPU.

Nothing is tuned at run time: that would be unsafe under CUDA-graph capture and slow on the first call. The numbers to decide
by come from a table (:mod:`.tables`), looked up by the name of the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .geometry import Lanes, Strides
from .tables import Table, table_for

_REGISTERS = 65_536
"""Of a multiprocessor, and the most that a program can have."""
_MOST_OF_A_THREAD = 255


class Plan(NamedTuple):
    """How a kernel is launched.

    ``strategy``: ``"rows"`` (tiles of ``lanes`` lanes x ``vectors`` vectors of ``vector`` steps, one after the other),
    ``"lanes"`` (strips of ``lanes`` lanes, ``unroll`` steps in flight) or ``"split"`` (the tiles of rows, all at once).
    ``by_outer``: the strips do not cross the outer index. ``width``: how many neighbouring lanes one access takes where lanes
    are contiguous, and then vectors are ``stacked``: their steps lie apart. Where time is contiguous, an access takes a vector.
    ``ahead``: in rows, the next tile is fetched before one is computed. ``limit``: how many registers a thread may have.
    """

    strategy: str
    grid: tuple[int, ...]
    lanes: int
    warps: int
    vector: int = 1
    vectors: int = 1
    unroll: int = 1
    by_outer: bool = False
    width: int = 1
    stacked: bool = False
    ahead: bool = False
    limit: int = _MOST_OF_A_THREAD


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()


def ceil_div(n: int, d: int) -> int:
    """``n / d`` rounded up."""
    return -(-n // d)


def access_width(extent: int, strides: Sequence[Strides], widest_item: int, along: int) -> int:
    """How many neighbours fit a 16-byte access of the widest dtype, and keep every access aligned.

    Args:
        extent: how many neighbours there are.
        strides: of everything that is read or written.
        widest_item: bytes of the widest floating dtype.
        along: which of the three strides the neighbours lie along: 1 for time, 2 for the inner lanes.
    """
    others = [s[i] for s in strides if s[along] == 1 for i in range(3) if i != along]
    width = min(8, max(1, 16 // widest_item))
    while width > 1 and (extent % width or any(s % width for s in others)):
        width //= 2
    return width


def choose_plan(
    sizes: Lanes,
    strides: Sequence[Strides],
    out_strides: Strides,
    widest_item: int,
    multiprocessors: int,
    streams: int = 7,
    device_name: str | None = None,
    spare: int = 0,
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
        spare: how many registers of a thread the kernel needs beside those for its streams.
    """
    return decide(sizes, strides, out_strides, widest_item, multiprocessors, streams, device_name, spare)[0]


def decide(
    sizes: Lanes,
    strides: Sequence[Strides],
    out_strides: Strides,
    widest_item: int,
    multiprocessors: int,
    streams: int = 7,
    device_name: str | None = None,
    spare: int = 0,
) -> tuple[Plan, str]:
    """:func:`choose_plan`, and why, in words."""
    table = table_for(device_name)
    moved = Moved(widest_item, streams, spare)
    if out_strides[1] <= 1 and (sizes.steps > 1 or sizes.lanes == 1):
        return _along_time(sizes, strides, moved, multiprocessors, table)
    return _along_lanes(sizes, strides, out_strides, moved, multiprocessors, table)


class Moved(NamedTuple):
    """What a step moves: ``streams`` inputs and outputs of ``item`` bytes at most. ``spare``: see :func:`choose_plan`."""

    item: int
    streams: int
    spare: int

    @property
    def numbers(self) -> int:
        """Registers of 4 bytes for the data of a step."""
        return self.streams * (2 if self.item > 4 else 1)

    def fits_ahead(self, width: int, table: Table) -> bool:
        """Whether the registers have room for a second tile, of ``width`` numbers an access.

        Else a tile has so many streams that it alone is enough to have in flight.
        """
        return width * self.numbers <= table.ahead_numbers

    def limit(self, width: int, limits: Sequence[tuple[int, int]]) -> int:
        """The first of the ``limits`` on registers that a tile of split fits, else all that a thread can have."""
        if self.item != 4:  # not looked into
            return _MOST_OF_A_THREAD
        fitting = (limit for numbers, limit in limits if width * self.numbers + self.spare <= numbers)
        return next(fitting, _MOST_OF_A_THREAD)

    @property
    def loaded(self) -> int:
        """Bytes that are read, roughly: half of the streams. Outputs are not, and flags are small (GAE: 14 of 28)."""
        return self.streams * self.item // 2


def _along_time(
    sizes: Lanes, strides: Sequence[Strides], moved: Moved, multiprocessors: int, table: Table
) -> tuple[Plan, str]:
    vector = access_width(sizes.steps, strides, moved.item, 1)
    whole = next_power_of_two(ceil_div(sizes.steps, vector))
    if whole <= _power_of_two_within(table.row_numbers // (vector * moved.numbers), 32, 512):
        plan = _whole_rows(sizes, vector, whole, multiprocessors, table)
    else:
        plan = _walked_rows(sizes, vector, moved, multiprocessors, table)
    per_thread = _power_of_two_within(table.registers // (vector * moved.numbers), 1, table.split_rows_vectors)
    vectors = 32 * table.split_rows_warps * per_thread
    enough = plan.grid[0] >= table.programs * multiprocessors
    if not enough and sizes.steps >= table.split_tiles * vectors * vector:
        why = (
            f"time is contiguous, and {plan.grid[0]} programs that walk {sizes.steps} steps would leave most of "
            f"{multiprocessors} multiprocessors idle: time is cut into tiles that run all at once"
        )
        tile = Plan("rows", (), 1, table.split_rows_warps, vector, vectors)
        return _split(sizes, tile, moved.limit(vector, table.split_rows_limits)), why
    why = "time is contiguous" + ("" if enough else ", and too short to be worth cutting into tiles")
    return plan, why + _packed_rows(plan)


def _along_lanes(
    sizes: Lanes, strides: Sequence[Strides], out_strides: Strides, moved: Moved, multiprocessors: int, table: Table
) -> tuple[Plan, str]:
    """Strips where they keep enough bytes in flight; else tiles of lanes x steps, which have more threads to ask for them.

    Memory answers after some 700 ns, in which an H100 could have read 2.3 MB (3.35 TB/s), 18 KB on each of its 132
    multiprocessors: less in flight than that means waiting, and as measured it takes twice as much (``table.bytes_in_flight``).
    A strip has ``unroll`` steps of its lanes in flight, so GAE in float32, 14 bytes and at most 8 steps, needs 42 000 lanes; a
    tile has all of its steps.
    """
    width = access_width(sizes.inner, strides, moved.item, 2)
    wanted = table.bytes_in_flight * multiprocessors
    apart = out_strides[1] < out_strides[0] and sizes.inner < 32  # a few lanes, and their next step behind them
    unroll = _unroll(sizes, width, moved, 2 * wanted, table)
    crowded = width * moved.numbers > table.tile_numbers
    enough = (2 if crowded else 1) * sizes.lanes * unroll * moved.loaded >= wanted
    if sizes.steps <= table.least_steps or (enough and not apart):
        return _lanes(sizes, width, unroll, multiprocessors, table), (
            "lanes are contiguous, and there are enough of them"
            if sizes.steps > table.least_steps
            else "lanes are contiguous, and time is too short for a scan"
        )
    tile = _tile(sizes, width, moved, multiprocessors, table, apart)
    programs = ceil_div(sizes.lanes, tile.lanes)
    in_flight = (1 + tile.ahead) * programs * tile.lanes * tile.vectors * tile.vector * moved.loaded
    few = f"lanes are contiguous, but {sizes.lanes} of them are too few to keep {multiprocessors} multiprocessors busy"
    if apart:
        few = f"lanes are contiguous, but only {sizes.inner} of them, with their next step behind them"
    few_tiles = sizes.steps <= table.split_tiles * tile.vectors * tile.vector
    # A loop over tiles holds more in registers than one tile does, and what is crowded would spill there.
    looped = not crowded or sizes.steps <= tile.vectors * tile.vector
    if looped and (few_tiles or (in_flight >= wanted and 4 * programs >= 3 * multiprocessors)):
        return tile._replace(grid=(programs,)), f"{few}: the threads of a tile share its steps too"
    lean = moved.item == 4 and width * moved.numbers + moved.spare <= table.split_tile_numbers
    tile = _tile(sizes, width, moved, 1, _table_of_split(table) if lean else table, apart)
    plan = _split(sizes, tile, table.split_tile_limit if lean else _MOST_OF_A_THREAD)
    return plan, f"{few} for {sizes.steps} steps: time is cut into tiles that run all at once"


def _packed_rows(plan: Plan) -> str:
    return f"; {plan.lanes} short rows share a program" if plan.lanes > 1 else ""


def _power_of_two_within(n: int, low: int, high: int) -> int:
    """The largest power of two up to ``n``, between ``low`` and ``high``."""
    return min(high, max(low, 1 << max(0, n.bit_length() - 1)))


def _whole_rows(sizes: Lanes, vector: int, vectors: int, multiprocessors: int, table: Table) -> Plan:
    """A row is one tile, with a vector for every thread: nothing is carried, and the programs of a multiprocessor take turns
    in loading, scanning and storing. Short rows share a program, as long as there is a program for every processor."""
    rows = max(1, 32 * table.rows_warps // vectors)
    # Not below a vector for every thread of a warp: smaller tiles are laid out badly (255 registers, spills).
    while rows * vectors > 32 and rows > 1 and ceil_div(sizes.lanes, rows) < table.rows_programs * multiprocessors:
        rows //= 2
    warps = max(1, rows * vectors // 32)
    limit = min(_MOST_OF_A_THREAD, _REGISTERS // (32 * warps))
    return Plan("rows", (ceil_div(sizes.lanes, rows),), rows, warps, vector=vector, vectors=vectors, limit=limit)


def _walked_rows(sizes: Lanes, vector: int, moved: Moved, multiprocessors: int, table: Table) -> Plan:
    """A row is walked tile by tile, with the next one on its way. The fewer rows, the larger the tiles have to be."""
    threads = 32 * table.walk_warps
    most = _power_of_two_within(table.walk_registers // (vector * moved.numbers), 1, table.walk_vectors)
    at_once = min(ceil_div(sizes.lanes, multiprocessors), table.walk_programs) * threads * vector * moved.loaded
    per_thread = 1
    while per_thread < most and per_thread * at_once < table.bytes_in_flight:
        per_thread *= 2
    vectors = threads * per_thread
    ahead = sizes.steps > vector * vectors and moved.fits_ahead(vector, table)
    return Plan("rows", (sizes.lanes,), 1, table.walk_warps, vector=vector, vectors=vectors, ahead=ahead)


def _unroll(sizes: Lanes, width: int, moved: Moved, wanted: int, table: Table) -> int:
    """Steps in flight: as many as it takes to have ``wanted`` bytes in flight, as far as registers go."""
    most = _power_of_two_within(table.lanes_numbers // (width * moved.numbers), 1, table.unroll)
    unroll = min(4, most)
    while unroll < most and sizes.lanes * unroll * moved.loaded < wanted:
        unroll *= 2
    return min(unroll, next_power_of_two(sizes.steps))


def _lanes(sizes: Lanes, width: int, unroll: int, multiprocessors: int, table: Table) -> Plan:
    """A 16-byte access for every thread; smaller programs, down to a warp, where there would be too few of them."""
    by_outer = sizes.inner >= 32 and sizes.outer <= 65535
    across = sizes.inner if by_outer else sizes.lanes
    repeats = sizes.outer if by_outer else 1
    warps = table.lanes_warps
    while warps > 1 and (
        32 * warps * width >= 2 * across
        or ceil_div(across, 32 * warps * width) * repeats < table.programs * multiprocessors
    ):
        warps //= 2
    strip = 32 * warps * width
    return Plan(
        "lanes", (ceil_div(across, strip), repeats), strip, warps, unroll=unroll, by_outer=by_outer, width=width
    )


def _tile(sizes: Lanes, width: int, moved: Moved, multiprocessors: int, table: Table, apart: bool) -> Plan:
    """A tile of contiguous lanes x steps, an access for every thread.

    A line of 128 bytes from every step, or down to a sector of 32 where that leaves multiprocessors without a program; where
    the lanes of a step are few and the next step lies behind them, those lanes.
    """
    vector = _power_of_two_within(2 * table.registers // (width * moved.numbers), 1, table.tile_steps)
    while sizes.steps % vector:
        vector //= 2
    vectors = next_power_of_two(sizes.steps // vector)
    line, sector = (max(width, size // moved.item) for size in (128, 32))
    lanes = min(line, next_power_of_two(sizes.inner if apart else sizes.lanes))
    while not apart and lanes > sector and ceil_div(sizes.lanes, lanes) < multiprocessors:
        lanes //= 2
    whole = 32 * table.tile_warps * width
    vectors = min(vectors, whole // lanes)
    while lanes * vectors < whole and (
        lanes * vectors < 32 * width or sizes.lanes >= 2 * lanes * table.programs * multiprocessors
    ):
        lanes *= 2
    warps = lanes * vectors // (32 * width)
    ahead = sizes.steps > vector * vectors and moved.fits_ahead(width, table)
    return Plan("rows", (), lanes, warps, vector, vectors, width=width, stacked=True, ahead=ahead)


def _table_of_split(table: Table) -> Table:
    """The table with what it says of tiles of contiguous lanes in split in the place of what it says of them elsewhere."""
    return table._replace(
        registers=table.split_tile_registers, tile_warps=table.split_tile_warps, tile_steps=table.split_tile_steps
    )


def _split(sizes: Lanes, tile: Plan, limit: int) -> Plan:
    """One program for every tile of every block of lanes.

    What keeps memory busy is how many tiles a multiprocessor has under way, hence the ``limit`` on registers.
    """
    tiles = ceil_div(sizes.steps, tile.vector * tile.vectors)
    grid = (tiles * ceil_div(sizes.lanes, tile.lanes),)
    return tile._replace(strategy="split", ahead=False, grid=grid, limit=limit)
