"""The split strategy: few lanes and a long time. Tiles of time run all over the card, in one pass (decoupled look-back).

Every program composes its tile into one map ``(A, B)``, publishes it, and asks the tiles before it (in processing order) for
the state that enters. Each input is read once and each output written once; reduce - carry - apply would read the inputs
twice (36 instead of 22 bytes a step for GAE) and launch three kernels instead of one, which is why it is not used.

Tiles are numbered as numbers are, in digits: ``WINDOW`` tiles make a window, ``WINDOW`` windows a span. What enters a tile is
the state that enters its span, taken through the windows before its own, then through the tiles before it in its window:

    state = apply(tiles of the window, apply(windows of the span, state that enters the span))

The last tile of a window publishes the map of the window, that of a span the state that leaves the span; every other tile its
own map. So each publishes once, and each reads at most twice ``WINDOW - 1`` maps and one state.

- *Progress*: tiles are handed out by a ticket, an atomic counter, so a program only ever waits for tiles that earlier tickets,
  hence running programs, own. Nothing is assumed about the order in which blocks are scheduled.
- *Visibility*: values are stored, all threads meet at a barrier, then one thread raises a bit with release at the scope of the
  GPU; a waiting program reads the bit with acquire in one thread, and all meet at a barrier before they load. The PTX memory
  model makes this causality order: stores of the other threads are ordered before the release, and their loads behind the
  acquire, because ``bar.sync`` synchronizes ("Causality order", base causality order is transitive through it). Bits of a word
  are raised by read-modify-writes, so who reads the last of them is behind all of them ("Observation order").
- *Determinism*: which maps are composed, and in which order, depends on the tile alone, so results do not depend on timing.
- *Cuts*: where the tiles before it in its window already cut (a done in every lane, or a product that underflows, as with
  usual discounts in a tile of 2048 steps), a tile needs nothing from beyond and doesn't wait for it.
- *Words*: a bit is never lowered, and the words are zero at each launch, so there is no ABA. All bits of a window are one word,
  so that a look at all of them is one load by one thread, whose answer every thread gets: they take the same branch.
- *Why windows*: who walks back one tile at a time pays some ``c`` = 0.2 us of dependent loads for each. What it looks for is
  published by programs that walk too, so if none of the tiles cuts, tiles leave at one in ``c`` at best, however many run at
  once; a card that copies a tile of 2048 steps (45 KB) in 15 ns has to see one in 22 ns for 70 % of that. Here a tile waits for
  three words one after the other at most, some 4 us, and what is serial is one state a span: 2 us for 256 tiles. (Estimated
  for an H100, from 0.3 to 0.5 us for a load from L2 under load and 0.7 us for a release.)
- *Under way*: what a multiprocessor moves is its tiles over the time that one takes from ticket to store, most of which it
  waits. Measured on an H100, GAE, 64 x 131072: with 2, 3 and 4 programs of 2048 steps to a multiprocessor (86, 79 and 64
  registers a thread) 61, 78 and 81 % of the speed of a copy. That is what plans limit registers for.
- *Limits*: where ``abs(a) > 1`` over long stretches, the map of a window may overflow where no state does, and an infinite
  coefficient makes a NaN of a state of zero. So may the map of a tile, in every strategy that scans; a span has more steps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .following import counted_in, follow_tile, held_from
from .memory import load_lanes, load_uniforms
from .moments import finish_moments
from .rows import (
    at_end,
    compose_tile,
    fetch_vectors,
    open_tile,
    rows_at,
    store_vectors,
    tile_moments,
    vectors_at,
    walk_tile,
)
from .scan import apply, combine

# Tiles in a window, and windows in a span. At most 32, the bits of a word. With 16, a chain of states takes 256 tiles a step,
# and the maps of a window so few registers that three programs of GAE fit a multiprocessor (compiled with 32, only two).
WINDOW = tl.constexpr(16)
# Flags that are looked at together where a hole begins at the edge of a tile: in one row, and in several. More would take
# registers of the whole kernel, and with them a program of each multiprocessor.
SEARCHED_IN_ONE = tl.constexpr(2048)
SEARCHED = tl.constexpr(512)


@triton.jit
def of_tile(x, ROWS: tl.constexpr, Q: tl.constexpr):
    """What stands at the end of the tile: ``[ROWS, 1]``, or a scalar for a single row.

    (Of a ``[1, 1]`` block Triton would make a layout with all threads along the rows, and compute the scan again in it.)
    """
    if ROWS == 1:
        return tl.sum(tl.sum(tl.where(tl.arange(0, Q)[None, :] == Q - 1, x, 0.0), axis=1), axis=0)
    else:
        return at_end(x, Q)


@triton.jit
def rows_of(ROWS: tl.constexpr):
    """The numbers of the rows in a block, in the shape of :func:`of_tile`."""
    if ROWS == 1:
        return 0
    else:
        return tl.arange(0, ROWS)[:, None]


@triton.jit
def take_ticket(counter):
    """How many programs took one before: the order in which programs really started."""
    return tl.atomic_add(counter, 1, sem="relaxed", scope="gpu")


@triton.jit
def raise_bit(word, bit):
    """Raise a bit once everything that was stored before, by any thread, is visible to whoever reads the bit."""
    tl.debug_barrier()
    tl.atomic_or(word, 1 << bit, sem="release", scope="gpu")


@triton.jit
def wait_for(word, count):
    """Wait until the lowest ``count`` bits of a word are raised. (Adding zero is a load, which Triton knows.)"""
    wanted = ~(-1 << count)
    while (tl.atomic_add(word, 0, sem="acquire", scope="gpu") & wanted) != wanted:
        pass
    tl.debug_barrier()


@triton.jit
def publish(to, distance, a, b, word, bit):
    """Store a map, its ``B`` at some distance from its ``A``, and say so."""
    tl.store(to, a)
    tl.store(to + distance, b)
    raise_bit(word, bit)


@triton.jit
def identity(ROWS: tl.constexpr, ACC: tl.constexpr):
    """The map that changes nothing, in the shape of :func:`of_tile`."""
    if ROWS == 1:
        return tl.full((), 1.0, ACC), tl.full((), 0.0, ACC)
    else:
        return tl.full((ROWS, 1), 1.0, ACC), tl.zeros((ROWS, 1), ACC)


@triton.jit
def composed(maps, distance, count, word, ROWS: tl.constexpr, ACC: tl.constexpr):
    """The composite of the first ``count`` maps of a window (or span), as soon as the bits of its word say they are there.

    By a scan, because ``tl.reduce`` may swap what it combines.
    """
    a, b = identity(ROWS, ACC)
    if count > 0:
        wait_for(word, count)
        place = tl.arange(0, WINDOW)[None, :]
        at = maps + place * ROWS + tl.arange(0, ROWS)[:, None]
        # Not through L1, which may hold what was there before.
        each_a = tl.load(at, place < count, other=1.0, cache_modifier=".cg")
        each_b = tl.load(at + distance, place < count, other=0.0, cache_modifier=".cg")
        up_to_a, up_to_b = tl.associative_scan((each_a, each_b), 1, combine)
        a, b = of_tile(up_to_a, ROWS, WINDOW), of_tile(up_to_b, ROWS, WINDOW)
    return a, b


@triton.jit
def cuts(a, in_range, ROWS: tl.constexpr):
    """Whether nothing that enters a map matters, in any row."""
    if ROWS == 1:
        return a == 0
    else:
        return tl.max(tl.where(in_range & (a != 0), 1, 0)) == 0


@triton.jit
def look_back(flags, published, tile, tiles, block, blocks, a_tile, b_tile, carry, in_range, ROWS: tl.constexpr,
              ACC: tl.constexpr, LAZY: tl.constexpr):  # fmt: skip
    """Publish the map of a tile, and return the state that enters it. ``carry``: what enters the first tile.

    Each tile of each block of rows has a word in ``flags``. A window has its bits in the word of its first tile, a span in that
    of its second; the last tile of a span raises its own. ``published`` begins with the maps of the tiles, for each block
    those of its tiles in order; then come those of the windows. The last window of a span has a state in the place of ``A``.
    """
    window, span = tile // WINDOW, tile // (WINDOW * WINDOW)
    in_window, in_span = tile % WINDOW, window % WINDOW
    windows = tiles // WINDOW
    words = flags + block
    window_word = words + window * WINDOW * blocks
    span_word = words + (span * WINDOW * WINDOW + 1) * blocks
    distance, window_distance = tiles * blocks * ROWS, windows * blocks * ROWS
    maps = published + block * tiles * ROWS
    window_maps = published + 2 * distance + block * windows * ROWS
    ends_window = in_window == WINDOW - 1
    ends_span = ends_window & (in_span == WINDOW - 1)

    if not ends_window:
        publish(maps + tile * ROWS + rows_of(ROWS), distance, a_tile, b_tile, window_word, in_window)
    a, b = composed(maps + window * WINDOW * ROWS, distance, in_window, window_word, ROWS, ACC)
    if ends_window & (in_span != WINDOW - 1):
        a_window, b_window = combine(a, b, a_tile, b_tile)
        publish(window_maps + window * ROWS + rows_of(ROWS), window_distance, a_window, b_window, span_word, in_span)
    cut = cuts(a, in_range, ROWS)
    if LAZY:
        cut = False
    if not cut:
        a_span, b_span = composed(window_maps + span * WINDOW * ROWS, window_distance, in_span, span_word, ROWS, ACC)
        if span > 0:
            wait_for(words + (span * WINDOW * WINDOW - 1) * blocks, 1)
            carry = tl.load(window_maps + (span * WINDOW - 1) * ROWS + rows_of(ROWS), cache_modifier=".cg")
        carry = apply(a_span, b_span, carry)
    carry = apply(a, b, carry)
    if ends_span:
        tl.store(window_maps + window * ROWS + rows_of(ROWS), apply(a_tile, b_tile, carry))
        raise_bit(words + tile * blocks, 0)
    return carry


@triton.jit
def first_state(carry_in, carry_strides, outer, inner, in_range, ROWS: tl.constexpr, ACC: tl.constexpr):
    """The state that enters the very first tile, in the shape of :func:`of_tile`."""
    if ROWS == 1:
        state = tl.full((), 0.0, ACC)
        if carry_in is not None:
            start = tl.sum(outer, axis=0) * carry_strides[0] + tl.sum(inner, axis=0) * carry_strides[1]
            state = tl.load(carry_in + start).to(ACC)
        return state
    else:
        state = tl.zeros((ROWS, 1), ACC)
        if carry_in is not None:
            start = outer[:, None] * carry_strides[0] + inner[:, None] * carry_strides[1]
            state = tl.load(carry_in + start, in_range, other=0).to(ACC)
        return state


@triton.jit
def split(inputs, strides, outputs, out_strides, carry_in, carry_strides, packed, moments, flags, published,
          lanes, inner_size, vectors, blocks,
          COEFFICIENTS: tl.constexpr, FINISH: tl.constexpr, KINDS: tl.constexpr, TAPS: tl.constexpr,
          MASKS: tl.constexpr, FOLLOWS: tl.constexpr, UNITS: tl.constexpr, OUT_UNITS: tl.constexpr,
          REVERSE: tl.constexpr, V: tl.constexpr, ROWS: tl.constexpr,
          Q: tl.constexpr, WIDTH: tl.constexpr, SINGLE: tl.constexpr, STACKED: tl.constexpr,
          ACC: tl.constexpr, WIDE: tl.constexpr, MERGE: tl.constexpr, LAZY: tl.constexpr):  # fmt: skip
    """One program computes one tile: ``ROWS`` lanes, ``Q`` vectors of ``V`` steps. Arguments as in :func:`.rows.rows`, and:

    ``flags``: int32, zero at the start: the ticket counter, then a word for each tile of each block of rows.
    ``published``: workspace of the running sum's dtype, ``3 * ROWS`` numbers a tile. ``blocks``: how many blocks of rows.
    ``LAZY`` (for tests) waits for everything before a tile even where a cut makes it needless.
    """
    ticket = take_ticket(flags)
    tile, block = ticket // blocks, ticket % blocks
    outer, inner, in_range = rows_at(block, lanes, inner_size, ROWS, WIDTH, SINGLE, WIDE)
    vector, mask = vectors_at(tile * Q, vectors, in_range, REVERSE, Q, WIDE)
    uniforms = load_uniforms(inputs, KINDS, ACC)
    uniforms = load_lanes(inputs, strides, uniforms, KINDS, UNITS, outer[:, None], inner[:, None], in_range, ACC)
    fetched = fetch_vectors(inputs, strides, KINDS, TAPS, UNITS, outer, inner, vector, vectors * V, mask, V, STACKED)
    xs = open_tile(
        fetched, packed, inputs, strides, uniforms, outer, inner, tile * Q, vector, vectors, mask, KINDS, TAPS, UNITS, REVERSE,
        V, Q, STACKED, ACC,
    )  # fmt: skip
    if FOLLOWS[0] >= 0:
        rows_that_ask = counted_in(xs, mask, MASKS, V, ROWS)
        held = held_from(
            inputs, strides, uniforms, packed, outer, inner, rows_that_ask, (vectors - tile * Q) * V, vectors * V, KINDS,
            UNITS, MASKS, FOLLOWS, ROWS, SEARCHED_IN_ONE if ROWS == 1 else SEARCHED // ROWS, ACC, WIDE,
        )  # fmt: skip
        xs, _a, _b = follow_tile(xs, held, KINDS, MASKS, FOLLOWS, REVERSE, V, ROWS, Q)
    maps, a, b, a_before, b_before = compose_tile(
        xs, vector, vectors * V, COEFFICIENTS, KINDS, MASKS, REVERSE, V, ROWS, Q
    )
    a_tile, b_tile = of_tile(a, ROWS, Q), of_tile(b, ROWS, Q)
    carry = first_state(carry_in, carry_strides, outer, inner, in_range, ROWS, ACC)
    carry = look_back(
        flags + 1, published, tile, tl.cdiv(vectors, Q), block, blocks, a_tile, b_tile, carry, in_range, ROWS, ACC, LAZY
    )
    results = walk_tile(
        xs, maps, apply(a_before, b_before, carry), vector, vectors * V, FINISH, KINDS, MASKS, REVERSE, V
    )
    store_vectors(outputs, out_strides, OUT_UNITS, results, outer, inner, vector, mask, V, STACKED)
    if moments is not None:
        count, mean, m2 = tl.zeros((ROWS, Q), ACC), tl.zeros((ROWS, Q), ACC), tl.zeros((ROWS, Q), ACC)
        count, mean, m2 = tile_moments(count, mean, m2, xs, results, mask, MASKS, V)
        finish_moments(moments, ticket, tl.num_programs(0), count, mean, m2, MERGE)
