"""Packed sequences: which steps end one, found in the offsets by a binary search without branches.

``packed`` is ``(cu_seqlens, how many offsets)``: int32 or int64, rising from 0 to the number of steps. Step ``t`` is in the
sequence that the first offset greater than ``t`` closes, and ends it if that offset is ``t + 1``. (Empty sequences repeat an
offset; the first of equals closes the one that has steps.) The offsets are few and stay in the cache, and neighbouring
threads ask for the same ones; a tile asks for two bounds first, so that its steps have to look only among what lies between.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .memory import AS_READ, ENDED, ENDS, SEQUENCES, lane_offset, raised, time_offset
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
    """Where the offsets that close the steps ``first`` to ``last`` are: the place of the first, and how far the last is."""
    low, high = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    size = tl.full((), packed[1], tl.int32)
    while size > 0:
        half = (size + 1) >> 1
        low = advanced(packed[0], low, half, first)
        high = advanced(packed[0], high, half, last)
        size = size >> 1
    return low, high - low


@triton.jit
def closing(packed, t, first, last, KINDS: tl.constexpr, TAPS: tl.constexpr, STEPS: tl.constexpr):
    """For each of ``STEPS`` steps from ``t`` on, the place of the offset that closes it, and whether a sequence ends at it.

    And for those beside them, as far as taps go; all are within ``first`` and ``last``. Beyond the data no sequence ends. The
    searches go side by side, so that their reads are under way together.
    """
    before: tl.constexpr = reach(KINDS, TAPS, -1)
    low, size = span(packed, first, last)
    places = ()
    for _ in tl.static_range(before + STEPS + reach(KINDS, TAPS, 1)):
        places = places + (tl.zeros_like(t) + low,)
    while size > 0:
        half = (size + 1) >> 1
        narrowed = ()
        for j in tl.static_range(len(places)):
            narrowed = narrowed + (advanced(packed[0], places[j], half, t + (j - before)),)
        places = narrowed
        size = size >> 1
    known = ()
    for j in tl.static_range(len(places)):
        end = tl.load(packed[0] + tl.minimum(places[j], packed[1] - 1))
        s = t + (j - before)
        known = known + ((places[j], (end == s + 1) & (s >= 0)),)
    return known


@triton.jit
def of_sequence(inputs, strides, UNITS: tl.constexpr, n: tl.constexpr, outer, inner, known, mask, ACC: tl.constexpr):
    """What the ``n``-th input has for the sequence that ends at a step, 0 where none does.

    The place of a sequence is the one in front of the offset that closes it.
    """
    x = inputs[n] + lane_offset(strides, UNITS, n, outer, inner) + time_offset(strides, UNITS, n, known[0] - 1)
    return raised(tl.load(x, mask & known[1], other=0), inputs[n].dtype.element_ty, ACC)


@triton.jit
def with_ends(x, known, j: tl.constexpr, inputs, strides, outer, inner, mask, KINDS: tl.constexpr, TAPS: tl.constexpr,
              UNITS: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """The inputs ``x`` of the ``j``-th step that is ``known``, with the ends. (Flags that are to have them may be bytes.)"""
    before: tl.constexpr = reach(KINDS, TAPS, -1)
    ended = ()
    for n in tl.static_range(len(KINDS)):
        if KINDS[n] == ENDED:
            ended = ended + (either(raised(x[n], tl.int1, ACC), known[before + j + TAPS[n]][1]),)
        elif KINDS[n] == AS_READ:
            ended = ended + (raised(x[n - 1], tl.int1, ACC),)
        elif KINDS[n] == ENDS:
            ended = ended + (known[before + j][1],)
        elif KINDS[n] == SEQUENCES:
            ended = ended + (of_sequence(inputs, strides, UNITS, n, outer, inner, known[before + j], mask, ACC),)
        else:
            ended = ended + (x[n],)
    return ended
