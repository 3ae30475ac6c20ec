"""The rows strategy: tiles of ``[ROWS x Q vectors of V steps]``, a scan in each, a carry between.

Each thread holds vectors of ``V`` neighbouring steps. Where time is contiguous, an access takes a vector (up to 16 bytes).
Where lanes are, vectors are ``STACKED``: their steps are loaded one by one, each for several lanes at once. Vectors are
processed from the end of time to its beginning (or the other way round for a gradient): the order is reversed through the
*addresses* of the vectors, never through ``associative_scan(reverse=True)``. Within a vector the steps are composed in
registers; across vectors an associative scan runs over the composites; then the state that enters each vector is walked
through its steps once more, which gives the results.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .following import first_held, follow_tile
from .masks import counts, masked_coefficients, masked_finish
from .memory import as_bytes, is_stepped, lane_offset, load_lanes, load_uniforms, raised, time_offset, widened
from .moments import add_moments, finish_moments
from .packed import closing, with_ends
from .scan import apply, in_order, join_vector, scan_vectors, split_vector


@triton.constexpr_function
def accesses_of(V, STACKED):
    """How many accesses a vector takes."""
    return V if STACKED else 1


@triton.constexpr_function
def place_of(n, k, KINDS, V, STACKED):
    """Where the ``k``-th access to the ``n``-th input stands among what is fetched."""
    return k + sum(is_stepped(KINDS[i]) for i in range(n)) * (V if STACKED else 1)


@triton.jit
def time_of(vector, k: tl.constexpr, V: tl.constexpr, STACKED: tl.constexpr):
    """The steps that the ``k``-th access to a row of vectors takes: ``[1, Q]``, or ``[1, Q, V]`` for whole vectors at once."""
    if STACKED:
        return (vector * V + k)[None, :]
    elif V == 1:
        return vector[None, :]
    else:
        return vector[None, :, None] * V + tl.arange(0, V)[None, None, :]


@triton.jit
def beside_time(x, V: tl.constexpr, STACKED: tl.constexpr):
    """``[ROWS, *]`` in a shape that broadcasts with :func:`time_of`.

    (With a third dimension of one, Triton would bring every block from the layout of the load into that of the scan.)
    """
    if STACKED or V == 1:
        return x
    else:
        return x[:, :, None]


@triton.jit
def fetch_vectors(inputs, strides, KINDS: tl.constexpr, TAPS: tl.constexpr, UNITS: tl.constexpr,
                  outer, inner, vector, steps, mask, V: tl.constexpr, STACKED: tl.constexpr):  # fmt: skip
    """What a tile needs of every input that is read step by step, as it lies in memory.

    Nothing here looks at what arrives (flags stay bytes), so nobody waits: the results may be asked for long after.
    """
    there = beside_time(mask, V, STACKED)
    fetched = ()
    for n in tl.static_range(len(KINDS)):
        if is_stepped(KINDS[n]):
            lane = beside_time(lane_offset(strides, UNITS, n, outer, inner)[:, None], V, STACKED)
            for k in tl.static_range(accesses_of(V, STACKED)):
                t = time_of(vector, k, V, STACKED)
                inside = there
                if TAPS[n] != 0:
                    t += TAPS[n]
                    inside = there & (t >= 0) & (t < steps)
                x = tl.load(as_bytes(inputs[n]) + lane + time_offset(strides, UNITS, n, t), inside, other=0)
                fetched = fetched + (x,)
    return fetched


@triton.jit
def split_vectors(fetched, inputs, KINDS: tl.constexpr, V: tl.constexpr, STACKED: tl.constexpr, ACC: tl.constexpr):
    """For each input that is read step by step, its value at each of the ``V`` steps, from :func:`fetch_vectors`."""
    split = ()
    for n in tl.static_range(len(KINDS)):
        if is_stepped(KINDS[n]):
            pieces = ()
            for k in tl.static_range(accesses_of(V, STACKED)):
                x = fetched[place_of(n, k, KINDS, V, STACKED)]
                pieces = pieces + (raised(x, inputs[n].dtype.element_ty, ACC),)
            if not STACKED:
                pieces = split_vector(pieces[0], V)
            split = split + (pieces,)
        else:
            split = split + (0,)
    return split


@triton.jit
def open_tile(fetched, packed, inputs, strides, uniforms, outer, inner, first, vector, vectors, mask, KINDS: tl.constexpr,
              TAPS: tl.constexpr, UNITS: tl.constexpr, REVERSE: tl.constexpr, V: tl.constexpr, Q: tl.constexpr,
              STACKED: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """For each of the ``V`` steps of a vector, a tuple with the value of every input, from :func:`fetch_vectors`.

    The tile is processed from the ``first``-th vector on.
    """
    if packed is not None:
        lowest = vectors - first - Q if REVERSE else first
        known = closing(packed, vector[None, :] * V, lowest * V - 1, (lowest + Q) * V, KINDS, TAPS, V)
    split = split_vectors(fetched, inputs, KINDS, V, STACKED, ACC)
    by_step = ()
    for j in tl.static_range(V):
        one = ()
        for n in tl.static_range(len(KINDS)):
            if is_stepped(KINDS[n]):
                one = one + (split[n][j],)
            else:
                one = one + (uniforms[n],)
        if packed is not None:
            one = with_ends(
                one, known, j, inputs, strides, outer[:, None], inner[:, None], mask, KINDS, TAPS, UNITS, ACC
            )
        by_step = by_step + (one,)
    return by_step


@triton.jit
def store_vectors(outputs, strides, UNITS: tl.constexpr, results, outer, inner, vector, mask, V: tl.constexpr,
                  STACKED: tl.constexpr):  # fmt: skip
    """``results[step of the vector][output]`` to memory, an access at a time."""
    for n in tl.static_range(len(outputs)):
        pieces = ()
        for j in tl.static_range(V):
            pieces = pieces + (results[j][n].to(outputs[n].dtype.element_ty),)
        if not STACKED:
            pieces = (join_vector(pieces, V),)
        lane = beside_time(lane_offset(strides, UNITS, n, outer, inner)[:, None], V, STACKED)
        for k in tl.static_range(accesses_of(V, STACKED)):
            t = time_of(vector, k, V, STACKED)
            to = outputs[n] + lane + time_offset(strides, UNITS, n, t)
            tl.store(to, pieces[k], beside_time(mask, V, STACKED))


@triton.jit
def compose_tile(xs, vector, steps, COEFFICIENTS: tl.constexpr, KINDS: tl.constexpr, MASKS: tl.constexpr,
                 REVERSE: tl.constexpr, V: tl.constexpr, ROWS: tl.constexpr, Q: tl.constexpr):  # fmt: skip
    """The maps of a tile's steps in processing order, and two composites for every vector.

    Returns ``maps, a, b, a_before, b_before``: from the state that enters the tile, ``(a, b)`` gives the state that leaves
    a vector and ``(a_before, b_before)`` the one that enters it.
    """
    maps = ()
    for k in tl.static_range(V):
        is_last = (vector[None, :] * V + in_order(k, V, REVERSE)) == steps - 1
        a_k, b_k = masked_coefficients(xs[in_order(k, V, REVERSE)], is_last, COEFFICIENTS, KINDS, MASKS)
        # A coefficient made of numbers alone is a scalar until here.
        a_k, b_k = tl.broadcast_to(a_k, (ROWS, Q)), tl.broadcast_to(b_k, (ROWS, Q))
        maps = maps + ((a_k, b_k),)
    a, b, a_before, b_before = scan_vectors(maps, V)
    return maps, a, b, a_before, b_before


@triton.jit
def at_end(x, Q: tl.constexpr):
    """The last column of ``[ROWS, Q]``, as ``[ROWS, 1]``."""
    return tl.sum(tl.where(tl.arange(0, Q)[None, :] == Q - 1, x, 0.0), axis=1, keep_dims=True)


@triton.jit
def walk_tile(xs, maps, entering, vector, steps, FINISH: tl.constexpr, KINDS: tl.constexpr, MASKS: tl.constexpr,
              REVERSE: tl.constexpr, V: tl.constexpr):  # fmt: skip
    """The results of every step of a tile, from the state that enters each vector."""
    walked = ()
    for k in tl.static_range(V):
        state = apply(maps[k][0], maps[k][1], entering)
        is_last = (vector[None, :] * V + in_order(k, V, REVERSE)) == steps - 1
        results = masked_finish(xs[in_order(k, V, REVERSE)], entering, state, is_last, FINISH, KINDS, MASKS)
        walked = walked + (results,)
        entering = state
    by_step = ()
    for j in tl.static_range(V):
        by_step = by_step + (walked[in_order(j, V, REVERSE)],)
    return by_step


@triton.jit
def tile_moments(count, mean, m2, xs, results, mask, MASKS: tl.constexpr, V: tl.constexpr):
    """The running moments of every place of a tile, with the first output of each of its steps added."""
    for j in tl.static_range(V):
        count, mean, m2 = add_moments(count, mean, m2, results[j][0], tl.where(mask, counts(xs[j], MASKS), False))
    return count, mean, m2


@triton.jit
def rows_at(block, lanes, inner_size, ROWS: tl.constexpr, WIDTH: tl.constexpr, SINGLE: tl.constexpr,
            WIDE: tl.constexpr):  # fmt: skip
    """Numbers of the rows of a block as ``outer, inner``, and whether they exist. Arguments as in :func:`rows`."""
    if WIDE:
        block, lanes, inner_size = widened(block), widened(lanes), widened(inner_size)
    row = block * ROWS + tl.arange(0, ROWS)
    in_range = (row < lanes * WIDTH)[:, None]
    if SINGLE:
        return tl.zeros_like(row), row, in_range
    else:
        return row // (inner_size * WIDTH), row % (inner_size * WIDTH), in_range


@triton.jit
def vectors_at(first, vectors, in_range, REVERSE: tl.constexpr, Q: tl.constexpr, WIDE: tl.constexpr):
    """The ``Q`` vectors that are processed from the ``first``-th on, and which of them exist."""
    place = first + tl.arange(0, Q)
    if WIDE:
        place = place.to(tl.int64)
    vector = vectors - 1 - place if REVERSE else place
    return vector, in_range & (place < vectors)[None, :]


@triton.jit
def run_tile(fetched, carry, held, running, inputs, strides, packed, uniforms, outputs, out_strides, outer, inner, first,
             vector, vectors, mask, COEFFICIENTS: tl.constexpr, FINISH: tl.constexpr, KINDS: tl.constexpr,
             TAPS: tl.constexpr, MASKS: tl.constexpr, FOLLOWS: tl.constexpr, UNITS: tl.constexpr,
             OUT_UNITS: tl.constexpr, REVERSE: tl.constexpr, V: tl.constexpr, ROWS: tl.constexpr, Q: tl.constexpr,
             STACKED: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Compute a tile from what was fetched, and write it. Returns the state that leaves it, what is held then
    (:mod:`.following`; a tuple of nothing if nothing is), and the running moments."""
    xs = open_tile(
        fetched, packed, inputs, strides, uniforms, outer, inner, first, vector, vectors, mask, KINDS, TAPS, UNITS, REVERSE,
        V, Q, STACKED, ACC,
    )  # fmt: skip
    if FOLLOWS[0] >= 0:
        xs, a_held, b_held = follow_tile(xs, held, KINDS, MASKS, FOLLOWS, REVERSE, V, ROWS, Q)
        held = at_end(apply(a_held, b_held, held), Q)
    steps = vectors * V
    maps, a, b, a_before, b_before = compose_tile(xs, vector, steps, COEFFICIENTS, KINDS, MASKS, REVERSE, V, ROWS, Q)
    entering = apply(a_before, b_before, carry)
    results = walk_tile(xs, maps, entering, vector, steps, FINISH, KINDS, MASKS, REVERSE, V)
    carry = at_end(apply(a, b, carry), Q)
    store_vectors(outputs, out_strides, OUT_UNITS, results, outer, inner, vector, mask, V, STACKED)
    if len(running) > 0:
        running = tile_moments(running[0], running[1], running[2], xs, results, mask, MASKS, V)
    return carry, held, running


@triton.jit
def rows(inputs, strides, outputs, out_strides, carry_in, carry_strides, packed, moments, lanes, inner_size, vectors,
         COEFFICIENTS: tl.constexpr, FINISH: tl.constexpr, KINDS: tl.constexpr, TAPS: tl.constexpr,
         MASKS: tl.constexpr, FOLLOWS: tl.constexpr, UNITS: tl.constexpr, OUT_UNITS: tl.constexpr,
         REVERSE: tl.constexpr, V: tl.constexpr, ROWS: tl.constexpr, Q: tl.constexpr, WIDTH: tl.constexpr,
         SINGLE: tl.constexpr, STACKED: tl.constexpr, CHUNKED: tl.constexpr, AHEAD: tl.constexpr,
         ACC: tl.constexpr, WIDE: tl.constexpr, MERGE: tl.constexpr):  # fmt: skip
    """One program computes ``ROWS`` lanes over all of time, ``Q`` vectors of ``V`` steps at once.

    ``y[t] = b[t] + a[t] y[t+1]`` (or ``y[t-1]``), with ``a, b = COEFFICIENTS(inputs at t)`` and the outputs
    ``FINISH(inputs at t, state entering t, state at t)``. Time is ``vectors * V`` steps. Strides are counted in ``UNITS``
    elements and the numbers of lanes, ``lanes`` and ``inner_size``, in ``WIDTH`` of them: what is a multiple of a 16-byte
    access is so for the compiler to see. ``SINGLE``: there is one outer index. ``MASKS``: see :mod:`.masks`. ``FOLLOWS``: see
    :mod:`.following`. ``packed``: see :mod:`.packed`. ``moments``: see :mod:`.moments`, where ``MERGE`` partials are merged at
    once; absent if not wanted.

    ``CHUNKED``: time is longer than a tile. With ``AHEAD``, the next tile is then fetched before this one is computed, so that
    its loads are in flight while the scan exchanges and the carry is on its way.
    """
    outer, inner, in_range = rows_at(tl.program_id(0), lanes, inner_size, ROWS, WIDTH, SINGLE, WIDE)
    uniforms = load_uniforms(inputs, KINDS, ACC)
    uniforms = load_lanes(inputs, strides, uniforms, KINDS, UNITS, outer[:, None], inner[:, None], in_range, ACC)
    carry = tl.zeros((ROWS, 1), ACC)
    if carry_in is not None:
        start = outer[:, None] * carry_strides[0] + inner[:, None] * carry_strides[1]
        carry = tl.load(carry_in + start, in_range, other=0).to(ACC)
    if FOLLOWS[0] >= 0:
        held = first_held(uniforms, tl.zeros((ROWS, 1), ACC), KINDS, FOLLOWS)
    else:
        held = ()
    if moments is not None:
        running = (tl.zeros((ROWS, Q), ACC), tl.zeros((ROWS, Q), ACC), tl.zeros((ROWS, Q), ACC))
    else:
        running = ()
    steps = vectors * V
    vector, mask = vectors_at(0, vectors, in_range, REVERSE, Q, WIDE)
    if AHEAD or not CHUNKED:
        fetched = fetch_vectors(inputs, strides, KINDS, TAPS, UNITS, outer, inner, vector, steps, mask, V, STACKED)
    if CHUNKED:
        for first in range(0, vectors, Q):
            vector, mask = vectors_at(first, vectors, in_range, REVERSE, Q, WIDE)
            if AHEAD:
                tile = fetched
                next_vector, there = vectors_at(first + Q, vectors, in_range, REVERSE, Q, WIDE)
                fetched = fetch_vectors(
                    inputs, strides, KINDS, TAPS, UNITS, outer, inner, next_vector, steps, there, V, STACKED
                )
            else:
                tile = fetch_vectors(inputs, strides, KINDS, TAPS, UNITS, outer, inner, vector, steps, mask, V, STACKED)
            carry, held, running = run_tile(
                tile, carry, held, running, inputs, strides, packed, uniforms, outputs, out_strides, outer, inner, first,
                vector, vectors, mask, COEFFICIENTS, FINISH, KINDS, TAPS, MASKS, FOLLOWS, UNITS, OUT_UNITS, REVERSE, V, ROWS, Q,
                STACKED, ACC,
            )  # fmt: skip
    else:
        carry, held, running = run_tile(
            fetched, carry, held, running, inputs, strides, packed, uniforms, outputs, out_strides, outer, inner, 0,
            vector, vectors, mask, COEFFICIENTS, FINISH, KINDS, TAPS, MASKS, FOLLOWS, UNITS, OUT_UNITS, REVERSE, V, ROWS, Q,
            STACKED, ACC,
        )  # fmt: skip
    if moments is not None:
        finish_moments(moments, tl.program_id(0), tl.num_programs(0), running[0], running[1], running[2], MERGE)
