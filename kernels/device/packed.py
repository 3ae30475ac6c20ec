"""Packed sequences: which steps end one, found in the offsets by a binary search without branches.

``packed`` is ``(cu_seqlens, how many offsets)``: int32 or int64, rising from 0 to the number of steps. Step ``t`` is in the
sequence that the first offset greater than ``t`` closes, and ends it if that offset is ``t + 1``. (Empty sequences repeat an
offset, and the first of equals is as good as any.) The offsets are few and stay in the cache, and neighbouring threads ask
for the same ones; a tile asks for two bounds first, so that each of its steps has to look only among what lies between.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .memory import AS_READ, ENDED, raised
from .scan import either


@triton.constexpr_function
def reach(KINDS, TAPS, SIGN):
    """How far the taps of flags that know of ends go: back (``SIGN`` -1) or forth (+1)."""
    return max([0] + [SIGN * int(tap) for kind, tap in zip(KINDS, TAPS) if int(kind) == int(ENDED)])  # noqa: B905


@triton.jit
def advanced(offsets, low, half, t):
    """A round of the search: ``low``, or behind the next ``half`` offsets if none of them is greater than ``t``."""
    return tl.where(tl.load(offsets + (low + half - 1)) <= t, low + half, low)


@triton.jit
def span(packed, first, last):
    """Where the offsets that close the steps ``first`` to ``last`` lie: the place of the lowest, and how far the highest is."""
    low, high = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    size = tl.full((), packed[1], tl.int32)
    while size > 0:
        half = (size + 1) >> 1
        low = advanced(packed[0], low, half, first)
        high = advanced(packed[0], high, half, last)
        size = size >> 1
    return low, high - low


@triton.jit
def closing_offset(packed, low, size, t):
    """The place of the first offset greater than ``t``, between ``low`` and ``low + size``."""
    place = tl.zeros_like(t) + low
    while size > 0:
        half = (size + 1) >> 1
        place = advanced(packed[0], place, half, t)
        size = size >> 1
    return place


@triton.jit
def is_end(packed, place, t):
    """Whether a sequence ends at step ``t``, which the offset at ``place`` closes. Beyond the data none does."""
    end = tl.load(packed[0] + tl.minimum(place, packed[1] - 1))
    return (end == t + 1) & (t >= 0)


@triton.jit
def ends_of_tile(packed, first, vector, vectors, KINDS: tl.constexpr, TAPS: tl.constexpr, REVERSE: tl.constexpr,
                 V: tl.constexpr, Q: tl.constexpr):  # fmt: skip
    """For each step of a vector, and as far beside it as taps go, whether a sequence ends there: ``[1, Q]`` each.

    The tile is the ``Q`` vectors that are processed from the ``first``-th on.
    """
    lowest = vectors - first - Q if REVERSE else first
    low, size = span(packed, lowest * V - 1, (lowest + Q) * V)
    ends = ()
    for j in tl.static_range(-reach(KINDS, TAPS, -1), V + reach(KINDS, TAPS, 1)):
        t = vector[None, :] * V + j
        ends = ends + (is_end(packed, closing_offset(packed, low, size, t), t),)
    return ends


@triton.jit
def with_ends(x, packed, low, size, t, KINDS: tl.constexpr, TAPS: tl.constexpr, ACC: tl.constexpr):
    """The inputs of step ``t``, of which the flags that know of ends are still as they lie in memory, with their ends."""
    ended = ()
    for n in tl.static_range(len(KINDS)):
        if KINDS[n] == ENDED:
            s = t + TAPS[n]
            at_end = is_end(packed, closing_offset(packed, low, size, s), s)
            ended = ended + (either(raised(x[n], tl.int1, ACC), at_end),)
        elif KINDS[n] == AS_READ:
            ended = ended + (raised(x[n - 1], tl.int1, ACC),)
        else:
            ended = ended + (x[n],)
    return ended
