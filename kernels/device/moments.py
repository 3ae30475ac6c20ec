"""Count, mean and M2 of the first output, in the pass that computes it: one partial for each program, merged by another kernel.

Every place of a tile keeps its own running moments in registers (Welford 1962), which costs the loop no exchange between
threads; they are merged once, where the program ends. The order of all this is fixed, and so are the bits of the result.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_moments(count, mean, m2, x, is_counted):
    """The running moments of every place with ``x`` added where it counts."""
    count += tl.where(is_counted, 1.0, 0.0)
    deviation = tl.where(is_counted, x - mean, 0.0)
    mean += deviation / tl.maximum(count, 1.0)
    m2 += deviation * tl.where(is_counted, x - mean, 0.0)
    return count, mean, m2


@triton.jit
def total(x):
    """The sum of a block of one or two dimensions, as a scalar."""
    if len(x.shape) == 2:
        return tl.sum(tl.sum(x, axis=1), axis=0)
    else:
        return tl.sum(x, axis=0)


@triton.jit
def store_moments(partials, program, count, mean, m2):
    """Merge the moments of all places (Chan et al. 1983) and write them as the row of this program."""
    whole = total(count.to(tl.int32)).to(count.dtype)
    overall = total(count * mean) / tl.maximum(whole, 1.0)
    deviation = mean - overall
    m2_whole = total(m2 + count * deviation * deviation)
    row = partials + program * 3
    tl.store(row, total(count.to(tl.int32)).to(partials.dtype.element_ty))
    tl.store(row + 1, overall.to(partials.dtype.element_ty))
    tl.store(row + 2, m2_whole.to(partials.dtype.element_ty))


@triton.jit
def load_parts(partials, place, parts):
    """Count, mean and M2 of a block of rows; all zero behind the last row, and where nothing was counted."""
    row = partials + place.to(tl.int64) * 3
    count = tl.load(row, place < parts, other=0.0)
    is_counted = (place < parts) & (count > 0)
    return count, tl.load(row + 1, is_counted, other=0.0), tl.load(row + 2, is_counted, other=0.0)


@triton.jit
def merge_partials(partials, merged, parts, BLOCK: tl.constexpr):
    """The count, mean and M2 of the whole, from those of ``parts`` programs (Chan et al. 1983). One program merges them all.

    ``partials``: ``[parts, 3]``; ``merged``: ``[3]``; the arithmetic is in their dtype. The mean comes first and M2 from the
    deviations of the parts from it, as in :func:`tritonrl.kernels.merge_moments`: nothing cancels. ``BLOCK`` rows at once, in
    a fixed order.
    """
    first_rows = tl.arange(0, BLOCK)
    counts = tl.zeros((BLOCK,), partials.dtype.element_ty)
    sums = tl.zeros((BLOCK,), partials.dtype.element_ty)
    for first in range(0, parts, BLOCK):
        count, mean, m2 = load_parts(partials, first + first_rows, parts)
        counts += count
        sums += count * mean
    whole = total(counts)
    overall = total(sums) / tl.where(whole < 1.0, 1.0, whole)
    squares = tl.zeros((BLOCK,), partials.dtype.element_ty)
    for first in range(0, parts, BLOCK):
        place = first + first_rows
        count, mean, m2 = load_parts(partials, place, parts)
        deviation = tl.where(place < parts, mean - overall, 0.0)
        squares += m2 + count * deviation * deviation
    tl.store(merged, whole)
    tl.store(merged + 1, overall)
    tl.store(merged + 2, total(squares))
