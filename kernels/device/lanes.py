"""The lanes strategy: neighbouring lanes are contiguous ([T, N], [N, T, F]). Each program walks a strip through time.

Threads own lanes, so loads and stores are coalesced across them at every step and the recurrence stays in registers. The
inputs of ``UNROLL`` steps are requested before the first is used, which keeps that many loads in flight.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .following import first_held, follow_step
from .masks import counts, masked_coefficients, masked_finish
from .memory import ENDED, as_bytes, is_stepped, lane_offset, load_lanes, load_uniforms, raised, time_offset, widened
from .moments import add_moments, finish_moments
from .packed import closing, with_ends
from .scan import apply, in_order


@triton.jit
def step_at(place, steps, REVERSE: tl.constexpr, WIDE: tl.constexpr):
    """The step that is processed as the ``place``-th, wide enough to be multiplied by a stride."""
    t = steps - 1 - place if REVERSE else place
    if WIDE:
        t = tl.cast(t, tl.int64)
    return t


@triton.jit
def load_step(inputs, strides, uniforms, KINDS: tl.constexpr, TAPS: tl.constexpr, UNITS: tl.constexpr,
              outer, inner, t, steps, mask, ACC: tl.constexpr):  # fmt: skip
    """The value of every input at step ``t`` for a strip of lanes; of what knows of ends (``ENDED``), still the byte."""
    x = ()
    for n in tl.static_range(len(KINDS)):
        if is_stepped(KINDS[n]):
            lane = lane_offset(strides, UNITS, n, outer, inner)
            s = t
            there = mask
            if TAPS[n] != 0:
                s = t + TAPS[n]
                there = mask & (s >= 0) & (s < steps)
            loaded = tl.load(as_bytes(inputs[n]) + (lane + time_offset(strides, UNITS, n, s)), there, other=0)
            if KINDS[n] == ENDED:
                x = x + (loaded,)
            else:
                x = x + (raised(loaded, inputs[n].dtype.element_ty, ACC),)
        else:
            x = x + (uniforms[n],)
    return x


@triton.jit
def take_step(x, state, held, is_last, COEFFICIENTS: tl.constexpr, FINISH: tl.constexpr, KINDS: tl.constexpr,
              MASKS: tl.constexpr, FOLLOWS: tl.constexpr):  # fmt: skip
    """The state behind a step, what is held there (:mod:`.following`), the results, and whether the step counts."""
    if FOLLOWS[0] >= 0:
        x, held = follow_step(x, held, KINDS, MASKS, FOLLOWS)
    a, b = masked_coefficients(x, is_last, COEFFICIENTS, KINDS, MASKS)
    entering = state
    state = apply(a, b, entering)
    return state, held, masked_finish(x, entering, state, is_last, FINISH, KINDS, MASKS), counts(x, MASKS)


@triton.jit
def store_step(outputs, strides, UNITS: tl.constexpr, results, outer, inner, t, mask):
    """The results of step ``t`` of a strip to memory."""
    for n in tl.static_range(len(outputs)):
        lane = lane_offset(strides, UNITS, n, outer, inner)
        y = results[n].to(outputs[n].dtype.element_ty)
        tl.store(outputs[n] + (lane + time_offset(strides, UNITS, n, t)), y, mask)


@triton.jit
def lanes(inputs, strides, outputs, out_strides, carry_in, carry_strides, packed, moments, lane_count, inner_size,
          steps,
          COEFFICIENTS: tl.constexpr, FINISH: tl.constexpr, KINDS: tl.constexpr, TAPS: tl.constexpr,
          MASKS: tl.constexpr, FOLLOWS: tl.constexpr, UNITS: tl.constexpr, OUT_UNITS: tl.constexpr,
          REVERSE: tl.constexpr, STRIP: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr, ACC: tl.constexpr,
          BY_OUTER: tl.constexpr, WIDE: tl.constexpr, MERGE: tl.constexpr):  # fmt: skip
    """One program computes ``STRIP`` lanes over all of time, one step after the other, ``UNROLL`` steps in flight.

    ``y[t] = b[t] + a[t] y[t+1]`` (or ``y[t-1]``), with ``a, b = COEFFICIENTS(inputs at t)`` and the outputs
    ``FINISH(inputs at t, state entering t, state at t)``. Strides and numbers of lanes are counted in ``UNITS`` and ``WIDTH``
    as in :func:`.rows.rows`. With ``BY_OUTER`` the second grid axis is the outer index. ``MASKS``: see :mod:`.masks`.
    ``FOLLOWS``: see :mod:`.following`. ``packed``: see :mod:`.packed`. ``moments`` and ``MERGE``: as there.
    """
    block, outer_index = tl.program_id(0), tl.program_id(1)
    if WIDE:
        block, outer_index = widened(block), widened(outer_index)
        lane_count, inner_size = widened(lane_count), widened(inner_size)
    strip = block * STRIP + tl.arange(0, STRIP)
    if BY_OUTER:
        outer, inner = outer_index, strip
        in_range = strip < inner_size * WIDTH
    else:
        outer, inner = strip // (inner_size * WIDTH), strip % (inner_size * WIDTH)
        in_range = strip < lane_count * WIDTH
    uniforms = load_uniforms(inputs, KINDS, ACC)
    uniforms = load_lanes(inputs, strides, uniforms, KINDS, UNITS, outer, inner, in_range, ACC)
    state = tl.zeros((STRIP,), ACC)
    if carry_in is not None:
        state = tl.load(carry_in + (outer * carry_strides[0] + inner * carry_strides[1]), in_range, other=0).to(ACC)
    if FOLLOWS[0] >= 0:
        held = first_held(uniforms, tl.zeros((STRIP,), ACC), KINDS, FOLLOWS)
    else:
        held = ()
    if moments is not None:
        count, mean, m2 = tl.zeros((STRIP,), ACC), tl.zeros((STRIP,), ACC), tl.zeros((STRIP,), ACC)
    for first in range(0, steps, UNROLL):
        xs = ()
        for k in tl.static_range(UNROLL):
            t = step_at(first + k, steps, REVERSE, WIDE)
            mask = in_range & (first + k < steps)
            xs = xs + (load_step(inputs, strides, uniforms, KINDS, TAPS, UNITS, outer, inner, t, steps, mask, ACC),)
        if packed is not None:
            # With the data on their way: the search has branches, over which the compiler moves no load.
            lowest = step_at(first + UNROLL - 1 if REVERSE else first, steps, REVERSE, WIDE)
            known = closing(packed, lowest, lowest - 1, lowest + UNROLL, KINDS, TAPS, UNROLL)
        for k in tl.static_range(UNROLL):
            t = step_at(first + k, steps, REVERSE, WIDE)
            mask = in_range & (first + k < steps)
            x = xs[k]
            if packed is not None:
                x = with_ends(
                    x, known, in_order(k, UNROLL, REVERSE), inputs, strides, outer, inner, mask, KINDS, TAPS, UNITS, ACC
                )
            state, held, results, is_counted = take_step(
                x, state, held, t == steps - 1, COEFFICIENTS, FINISH, KINDS, MASKS, FOLLOWS
            )
            if moments is not None:
                count, mean, m2 = add_moments(count, mean, m2, results[0], tl.where(mask, is_counted, False))
            store_step(outputs, out_strides, OUT_UNITS, results, outer, inner, t, mask)
    if moments is not None:
        program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        finish_moments(moments, program, tl.num_programs(0) * tl.num_programs(1), count, mean, m2, MERGE)
