"""Count, mean and M2 of the first output, in the pass that computes it. One partial for each program; the host merges them.

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
