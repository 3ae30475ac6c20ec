"""The split strategy: few lanes and a long time. Tiles of time run all over the card, in one pass (decoupled look-back).

Every program composes its tile into one map ``(A, B)``, publishes it, and asks the tiles before it (in processing order) for
the state that enters. Each input is read once and each output written once; reduce - carry - apply would read the inputs
twice (36 instead of 22 bytes a step for GAE) and launch three kernels instead of one, which is why it is not used.

- *Progress*: tiles are handed out by a ticket, an atomic counter, so a program only ever waits for tiles that earlier tickets,
  hence running programs, own. Nothing is assumed about the order in which blocks are scheduled.
- *Visibility*: values are stored, all threads meet at a barrier, then one thread raises the flag with release; a waiting
  program reads the flag with acquire before it loads the values.
- *Determinism*: a program walks back to the nearest tile whose leaving state is known, and from there composes forwards one
  tile after the other. That is the same chain of operations wherever it starts, so results do not depend on timing.
- *Cuts*: a tile with ``A == 0`` (a done inside in every lane, or a product that underflows) needs nothing from the tiles
  before it and publishes its leaving state at once. Where tiles are short or discounts near one, a program may look back
  over many tiles; how far that is on a GPU has not been measured.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .memory import load_lanes, load_uniforms
from .moments import store_moments
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
from .scan import apply

WAITING = tl.constexpr(0)
COMPOSED = tl.constexpr(1)
KNOWN = tl.constexpr(2)


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
def publish(flag, value):
    """Raise a flag once everything that was stored before is visible to whoever reads the flag."""
    tl.debug_barrier()
    tl.atomic_xchg(flag, value, sem="release", scope="gpu")


@triton.jit
def wait_for(flag):
    """The value of a flag as soon as it is raised."""
    value = tl.atomic_add(flag, 0, sem="acquire", scope="gpu")
    while value == WAITING:
        value = tl.atomic_add(flag, 0, sem="acquire", scope="gpu")
    return value


@triton.jit
def look_back(flags, published, tile, block, blocks, carry, ROWS: tl.constexpr):
    """The state that enters ``tile``: from the nearest known state before it, composed forwards tile by tile.

    ``published`` holds for every tile of every block of rows ``A``, ``B`` and the leaving state, ``ROWS`` numbers each.
    """
    rows = rows_of(ROWS)
    known = tile - 1
    searching = known >= 0
    while searching:
        if wait_for(flags + known * blocks + block) == KNOWN:
            searching = False
        else:
            known -= 1
            searching = known >= 0
    tl.debug_barrier()
    if known >= 0:
        place = published + (known * blocks + block) * (3 * ROWS)
        carry = tl.load(place + 2 * ROWS + rows, cache_modifier=".cg")
    for between in range(known + 1, tile):
        place = published + (between * blocks + block) * (3 * ROWS)
        a = tl.load(place + rows, cache_modifier=".cg")
        b = tl.load(place + ROWS + rows, cache_modifier=".cg")
        carry = apply(a, b, carry)
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
def split(inputs, strides, outputs, out_strides, carry_in, carry_strides, packed, partials, flags, published,
          lanes, inner_size, vectors, blocks,
          COEFFICIENTS: tl.constexpr, FINISH: tl.constexpr, KINDS: tl.constexpr, TAPS: tl.constexpr,
          MASKS: tl.constexpr, UNITS: tl.constexpr, OUT_UNITS: tl.constexpr,
          REVERSE: tl.constexpr, V: tl.constexpr, ROWS: tl.constexpr,
          Q: tl.constexpr, WIDTH: tl.constexpr, SINGLE: tl.constexpr, STACKED: tl.constexpr,
          ACC: tl.constexpr, WIDE: tl.constexpr, LAZY: tl.constexpr):  # fmt: skip
    """One program computes one tile: ``ROWS`` lanes, ``Q`` vectors of ``V`` steps. Arguments as in :func:`.rows.rows`, and:

    ``flags``: int32, zero at the start: the ticket counter, then one flag for each tile of each block of rows.
    ``published``: workspace of the running sum's dtype, ``3 * ROWS`` numbers a tile. ``blocks``: how many blocks of rows.
    ``LAZY`` (for tests) publishes no leaving state, so that every program has to look back to the very first tile.
    """
    ticket = tl.atomic_add(flags, 1, sem="relaxed", scope="gpu")
    flags += 1
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
    maps, a, b, a_before, b_before = compose_tile(
        xs, vector, vectors * V, COEFFICIENTS, KINDS, MASKS, REVERSE, V, ROWS, Q
    )
    a_tile, b_tile = of_tile(a, ROWS, Q), of_tile(b, ROWS, Q)

    own = published + (tile * blocks + block) * (3 * ROWS) + rows_of(ROWS)
    flag = flags + tile * blocks + block
    tl.store(own, a_tile)
    tl.store(own + ROWS, b_tile)
    if ROWS == 1:
        cut = a_tile == 0
    else:
        cut = tl.max(tl.where(in_range & (a_tile != 0), 1, 0)) == 0
    if LAZY:
        cut = False
    if cut:
        tl.store(own + 2 * ROWS, b_tile)
        publish(flag, KNOWN)
    else:
        publish(flag, COMPOSED)

    carry = first_state(carry_in, carry_strides, outer, inner, in_range, ROWS, ACC)
    carry = look_back(flags, published, tile, block, blocks, carry, ROWS)
    if not LAZY:
        if not cut:
            tl.store(own + 2 * ROWS, apply(a_tile, b_tile, carry))
            publish(flag, KNOWN)
    results = walk_tile(
        xs, maps, apply(a_before, b_before, carry), vector, vectors * V, FINISH, KINDS, MASKS, REVERSE, V
    )
    store_vectors(outputs, out_strides, OUT_UNITS, results, outer, inner, vector, mask, V, STACKED)
    if partials is not None:
        count, mean, m2 = tl.zeros((ROWS, Q), ACC), tl.zeros((ROWS, Q), ACC), tl.zeros((ROWS, Q), ACC)
        count, mean, m2 = tile_moments(count, mean, m2, xs, results, mask, MASKS, V)
        store_moments(partials, tile * blocks + block, count, mean, m2)
