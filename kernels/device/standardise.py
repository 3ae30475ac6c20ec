"""Shifting and scaling to mean 0 and standard deviation 1 by moments in memory, number by number as they lie there."""

from __future__ import annotations

import triton
import triton.language as tl

from .memory import as_bytes, raised, widened

# Numbers that one access takes at most, of which as many as divide by it are taken by whole accesses.
ACCESS = tl.constexpr(16)


@triton.jit
def shift_and_scale(moments, EPS: tl.constexpr, CORRECTION: tl.constexpr, ACC: tl.constexpr):
    """The mean, and one over the standard deviation or ``EPS``."""
    count, mean, m2 = tl.load(moments), tl.load(moments + 1), tl.load(moments + 2)
    deviation = tl.sqrt(m2 / tl.maximum(count - CORRECTION, 1.0))
    least = tl.full((), EPS, deviation.dtype)
    return mean.to(ACC), (1.0 / tl.maximum(deviation, least, propagate_nan=tl.PropagateNan.ALL)).to(ACC)


@triton.jit
def standardise_some(x, valid, skip, y, place, there, mean, scale, ACC: tl.constexpr):
    """The numbers at some places; zero where they do not count."""
    standardised = (tl.load(x + place, there).to(ACC) - mean) * scale
    if valid is not None:
        standardised = tl.where(raised(tl.load(as_bytes(valid) + place, there), tl.int1, ACC), standardised, 0.0)
    if skip is not None:
        standardised = tl.where(raised(tl.load(as_bytes(skip) + place, there), tl.int1, ACC), 0.0, standardised)
    tl.store(y + place, standardised.to(y.dtype.element_ty), there)


@triton.jit
def standardise(x, moments, valid, skip, y, numbers, EPS: tl.constexpr, CORRECTION: tl.constexpr, BLOCK: tl.constexpr,
                REST: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """One program takes ``BLOCK`` numbers. ``x``, ``y`` and the masks (or ``None``) lie alike and without gaps.

    ``REST``: what whole accesses leave is taken one by one by the last program. (A mask that ends anywhere would make every
    access narrow.)
    """
    mean, scale = shift_and_scale(moments, EPS, CORRECTION, ACC)
    block = tl.program_id(0)
    if WIDE:
        block, numbers = widened(block), widened(numbers)
    whole = numbers // ACCESS * ACCESS
    place = block * BLOCK + tl.arange(0, BLOCK)
    standardise_some(x, valid, skip, y, place, place < whole, mean, scale, ACC)
    if REST:
        if block == tl.num_programs(0) - 1:
            rest = whole + tl.arange(0, ACCESS)
            standardise_some(x, valid, skip, y, rest, rest < numbers, mean, scale, ACC)
