"""The lanes strategy: neighbouring lanes are contiguous ([T, N], [N, T, F]). Each program walks a strip through time.

Threads own lanes, so loads and stores are coalesced across them at every step and the recurrence stays in registers. The
inputs of ``UNROLL`` steps are requested before the first is used, which keeps that many loads in flight.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .masks import counts, masked_coefficients, masked_finish
from .memory import STEPS, load_lanes, load_uniforms, raised
from .moments import add_moments, store_moments
from .scan import apply


@triton.jit
def step_at(place, steps, REVERSE: tl.constexpr, WIDE: tl.constexpr):
    """The step that is processed as the ``place``-th, wide enough to be multiplied by a stride."""
    t = steps - 1 - place if REVERSE else place
    if WIDE:
        t = tl.cast(t, tl.int64)
    return t


@triton.jit
def load_step(inputs, strides, uniforms, KINDS: tl.constexpr, TAPS: tl.constexpr, outer, inner, t, steps, mask,
              ACC: tl.constexpr):  # fmt: skip
    """The value of every input at step ``t`` for a strip of lanes."""
    x = ()
    for n in tl.static_range(len(KINDS)):
        if KINDS[n] == STEPS:
            lane = outer * strides[n][0] + inner * strides[n][2]
            if TAPS[n] == 0:
                x = x + (raised(tl.load(inputs[n] + (lane + t * strides[n][1]), mask, other=0), ACC),)
            else:
                s = t + TAPS[n]
                there = mask & (s >= 0) & (s < steps)
                x = x + (raised(tl.load(inputs[n] + (lane + s * strides[n][1]), there, other=0), ACC),)
        else:
            x = x + (uniforms[n],)
    return x


@triton.jit
def lanes(inputs, strides, outputs, out_strides, carry_in, carry_strides, partials, lane_count, inner_size, steps,
          COEFFICIENTS: tl.constexpr, FINISH: tl.constexpr, KINDS: tl.constexpr, TAPS: tl.constexpr,
          MASKS: tl.constexpr, REVERSE: tl.constexpr, STRIP: tl.constexpr, UNROLL: tl.constexpr, ACC: tl.constexpr,
          BY_OUTER: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """One program computes ``STRIP`` lanes over all of time, one step after the other, ``UNROLL`` steps in flight.

    ``y[t] = b[t] + a[t] y[t+1]`` (or ``y[t-1]``), with ``a, b = COEFFICIENTS(inputs at t)`` and the outputs
    ``FINISH(inputs at t, state entering t, state at t)``. Strides are ``(outer, time, inner)``, in elements. With
    ``BY_OUTER`` the second grid axis is the outer index, and inner lanes are contiguous for the compiler to see. ``MASKS``:
    see :mod:`.masks`. ``partials``: room for three numbers a program where moments are wanted (:mod:`.moments`).
    """
    strip = tl.program_id(0) * STRIP + tl.arange(0, STRIP)
    outer_index = tl.program_id(1)
    if WIDE:
        strip = tl.program_id(0).to(tl.int64) * STRIP + tl.arange(0, STRIP)
        outer_index = outer_index.to(tl.int64)
    if BY_OUTER:
        outer, inner = outer_index, strip
        in_range = strip < inner_size
    else:
        outer, inner = strip // inner_size, strip % inner_size
        in_range = strip < lane_count
    uniforms = load_uniforms(inputs, KINDS, ACC)
    uniforms = load_lanes(inputs, strides, uniforms, KINDS, outer, inner, in_range, ACC)
    state = tl.zeros((STRIP,), ACC)
    if carry_in is not None:
        state = tl.load(carry_in + (outer * carry_strides[0] + inner * carry_strides[1]), in_range, other=0).to(ACC)
    if partials is not None:
        count, mean, m2 = tl.zeros((STRIP,), ACC), tl.zeros((STRIP,), ACC), tl.zeros((STRIP,), ACC)
    for first in range(0, steps, UNROLL):
        xs = ()
        for k in tl.static_range(UNROLL):
            t = step_at(first + k, steps, REVERSE, WIDE)
            mask = in_range & (first + k < steps)
            xs = xs + (load_step(inputs, strides, uniforms, KINDS, TAPS, outer, inner, t, steps, mask, ACC),)
        for k in tl.static_range(UNROLL):
            t = step_at(first + k, steps, REVERSE, WIDE)
            mask = in_range & (first + k < steps)
            is_last = t == steps - 1
            a, b = masked_coefficients(xs[k], is_last, COEFFICIENTS, KINDS, MASKS)
            entering = state
            state = apply(a, b, entering)
            results = masked_finish(xs[k], entering, state, is_last, FINISH, KINDS, MASKS)
            if partials is not None:
                is_counted = tl.where(mask, counts(xs[k], MASKS), False)
                count, mean, m2 = add_moments(count, mean, m2, results[0], is_counted)
            for n in tl.static_range(len(outputs)):
                lane = outer * out_strides[n][0] + inner * out_strides[n][2]
                x = results[n].to(outputs[n].dtype.element_ty)
                tl.store(outputs[n] + (lane + t * out_strides[n][1]), x, mask)
    if partials is not None:
        store_moments(partials, tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), count, mean, m2)
