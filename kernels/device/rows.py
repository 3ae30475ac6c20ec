"""The rows strategy: time is contiguous. Tiles of ``[ROWS x Q vectors of V steps]``, a scan in each, a carry between.

Each thread holds vectors of ``V`` neighbouring steps, so every access is up to 16 bytes wide. Vectors are processed from the
end of time to its beginning (or the other way round for a gradient): the order is reversed through the *addresses* of the
vectors, never through ``associative_scan(reverse=True)``. Within a vector the steps are composed in registers; across
vectors an associative scan runs over the composites; then the state that enters each vector is walked through its steps
once more, which gives the results.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .masks import counts, masked_coefficients, masked_finish
from .memory import STEPS, load_lanes, load_uniforms, raised
from .moments import add_moments, store_moments
from .scan import apply, combine, combine_both, join_vector, split_vector


@triton.constexpr_function
def in_order(k, V, REVERSE):
    """Which step of a vector is processed as its ``k``-th (its own inverse)."""
    return V - 1 - k if REVERSE else k


@triton.jit
def load_vectors(inputs, strides, uniforms, KINDS: tl.constexpr, TAPS: tl.constexpr, UNITS: tl.constexpr,
                 outer, inner, vector, steps, mask, V: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """For each of the ``V`` steps of a vector, a tuple with the value of every input."""
    t = vector[None, :, None] * V + tl.arange(0, V)[None, None, :]
    split = ()
    for n in tl.static_range(len(KINDS)):
        if KINDS[n] == STEPS:
            lane = (outer * strides[n][0] + inner * strides[n][2])[:, None, None] * UNITS[n]
            if TAPS[n] == 0:
                x = tl.load(inputs[n] + lane + t * strides[n][1], mask[:, :, None], other=0)
            else:
                s = t + TAPS[n]
                x = tl.load(inputs[n] + lane + s * strides[n][1], mask[:, :, None] & (s >= 0) & (s < steps), other=0)
            split = split + (split_vector(raised(x, ACC), V),)
        else:
            split = split + (0,)
    by_step = ()
    for j in tl.static_range(V):
        one = ()
        for n in tl.static_range(len(KINDS)):
            if KINDS[n] == STEPS:
                one = one + (split[n][j],)
            else:
                one = one + (uniforms[n],)
        by_step = by_step + (one,)
    return by_step


@triton.jit
def store_vectors(outputs, strides, UNITS: tl.constexpr, results, outer, inner, vector, mask, V: tl.constexpr):
    """``results[step of the vector][output]`` to memory, a vector at a time."""
    t = vector[None, :, None] * V + tl.arange(0, V)[None, None, :]
    for n in tl.static_range(len(outputs)):
        pieces = ()
        for j in tl.static_range(V):
            pieces = pieces + (results[j][n],)
        lane = (outer * strides[n][0] + inner * strides[n][2])[:, None, None] * UNITS[n]
        x = join_vector(pieces, V).to(outputs[n].dtype.element_ty)
        tl.store(outputs[n] + lane + t * strides[n][1], x, mask[:, :, None])


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
        if k == 0:
            a = a_k
            b = b_k
        else:
            a, b = combine(a, b, a_k, b_k)
    one, zero = tl.full(a.shape, 1.0, a.dtype), tl.zeros(a.shape, a.dtype)
    a, b, a_before, b_before = tl.associative_scan((a, b, one, zero), 1, combine_both)
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
def rows(inputs, strides, outputs, out_strides, carry_in, carry_strides, partials, lanes, inner_size, vectors,
         COEFFICIENTS: tl.constexpr, FINISH: tl.constexpr, KINDS: tl.constexpr, TAPS: tl.constexpr,
         MASKS: tl.constexpr, UNITS: tl.constexpr, OUT_UNITS: tl.constexpr,
         REVERSE: tl.constexpr, V: tl.constexpr, ROWS: tl.constexpr,
         Q: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """One program computes ``ROWS`` lanes over all of time, ``Q`` vectors of ``V`` steps at once.

    ``y[t] = b[t] + a[t] y[t+1]`` (or ``y[t-1]``), with ``a, b = COEFFICIENTS(inputs at t)`` and the outputs
    ``FINISH(inputs at t, state entering t, state at t)``. Time is ``vectors * V`` steps. Lane strides of an input are
    counted in ``UNITS`` elements: in vectors where time is contiguous, which lets the compiler see the alignment. ``MASKS``:
    see :mod:`.masks`. ``partials``: room for three numbers a program where moments are wanted (:mod:`.moments`).
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if WIDE:
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_range = (row < lanes)[:, None]
    outer, inner = row // inner_size, row % inner_size
    uniforms = load_uniforms(inputs, KINDS, ACC)
    uniforms = load_lanes(inputs, strides, uniforms, KINDS, outer[:, None], inner[:, None], in_range, ACC)
    carry = tl.zeros((ROWS, 1), ACC)
    if carry_in is not None:
        start = outer[:, None] * carry_strides[0] + inner[:, None] * carry_strides[1]
        carry = tl.load(carry_in + start, in_range, other=0).to(ACC)
    if partials is not None:
        count, mean, m2 = tl.zeros((ROWS, Q), ACC), tl.zeros((ROWS, Q), ACC), tl.zeros((ROWS, Q), ACC)
    for first in range(0, vectors, Q):
        place = first + tl.arange(0, Q)
        if WIDE:
            place = place.to(tl.int64)
        vector = vectors - 1 - place if REVERSE else place
        mask = in_range & (place < vectors)[None, :]
        xs = load_vectors(
            inputs, strides, uniforms, KINDS, TAPS, UNITS, outer, inner, vector, vectors * V, mask, V, ACC
        )
        maps, a, b, a_before, b_before = compose_tile(
            xs, vector, vectors * V, COEFFICIENTS, KINDS, MASKS, REVERSE, V, ROWS, Q
        )
        entering = apply(a_before, b_before, carry)
        results = walk_tile(xs, maps, entering, vector, vectors * V, FINISH, KINDS, MASKS, REVERSE, V)
        carry = at_end(apply(a, b, carry), Q)
        store_vectors(outputs, out_strides, OUT_UNITS, results, outer, inner, vector, mask, V)
        if partials is not None:
            count, mean, m2 = tile_moments(count, mean, m2, xs, results, mask, MASKS, V)
    if partials is not None:
        store_moments(partials, tl.program_id(0), count, mean, m2)
