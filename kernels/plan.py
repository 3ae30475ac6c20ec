"""Which strategy runs, and with what block sizes: a pure function of sizes, strides and the device, tested without a GPU.

Nothing is tuned at run time: that would be unsafe under CUDA-graph capture and slow on the first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .geometry import Lanes, Strides


class Plan(NamedTuple):
    """How a kernel is launched.

    ``strategy``: ``"rows"`` (time contiguous: tiles of ``lanes`` rows x ``vectors`` vectors of ``vector`` steps) or
    ``"lanes"`` (strips of ``lanes`` lanes, ``unroll`` steps in flight). ``by_outer``: the strips do not cross the outer index.
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
    sizes: Lanes, strides: Sequence[Strides], out_strides: Strides, widest_item: int, multiprocessors: int
) -> Plan:
    """The plan for one launch.

    Args:
        sizes: lanes and steps.
        strides: of every input that is read step by step and of every output.
        out_strides: of the first output; its memory order is that of the data.
        widest_item: bytes of the widest floating dtype read or written.
        multiprocessors: of the device.
    """
    time_is_contiguous = out_strides[1] <= 1 and (sizes.steps > 1 or sizes.lanes == 1)
    if time_is_contiguous:
        return _rows(sizes, vector_width(sizes.steps, strides, widest_item), multiprocessors)
    return _lanes(sizes, widest_item, multiprocessors)


def _rows(sizes: Lanes, vector: int, multiprocessors: int) -> Plan:
    """Two vectors a thread; when rows are short a program takes several, as long as there is a program for every processor."""
    warps = 4
    vectors = min(next_power_of_two(ceil_div(sizes.steps, vector)), 64 * warps)
    rows = 64 * warps // vectors
    # Not below a vector for every thread of a warp: smaller tiles are laid out badly (255 registers, spills).
    while rows * vectors > 32 and rows > 1 and ceil_div(sizes.lanes, rows) < 2 * multiprocessors:
        rows //= 2
    warps = max(1, min(warps, rows * vectors // 32))
    return Plan("rows", (ceil_div(sizes.lanes, rows),), rows, warps, vector=vector, vectors=vectors)


def _lanes(sizes: Lanes, widest_item: int, multiprocessors: int) -> Plan:
    """As many lanes a thread as make a 16-byte access, unless that leaves processors idle."""
    by_outer = sizes.inner >= 32 and sizes.outer <= 65535
    width = sizes.inner if by_outer else sizes.lanes
    repeats = sizes.outer if by_outer else 1
    warps = 4
    strip = 32 * warps * max(1, 16 // widest_item)
    while strip > 32 and (strip >= 2 * width or ceil_div(width, strip) * repeats < 2 * multiprocessors):
        strip //= 2
    warps = max(1, min(warps, strip // 32))
    grid = (ceil_div(width, strip), repeats)
    return Plan("lanes", grid, strip, warps, unroll=4 if sizes.steps >= 4 else 1, by_outer=by_outer)
