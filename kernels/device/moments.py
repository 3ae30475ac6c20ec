"""Count, mean and M2 of the first output, in the pass that computes it: one partial a program, merged by the last program.

Every place of a tile keeps its own running moments in registers (Welford 1962), which costs the loop no exchange between
threads; they are merged once, where the program ends. Who then finds that all others are there already merges the partials
of all of them, so there is no second launch. Who that is depends on timing; what is merged, and in which order, does not.

- *Visibility*: partials are stored, all threads meet at a barrier, and one thread counts the program with acquire and release
  at the scope of the GPU. Whoever counts last is behind all others (a chain of read-modify-writes is one release sequence),
  and so are all of its threads behind another barrier.
- *The counter* is zero when the kernel starts, and the last program puts it back to zero (:mod:`tritonrl.kernels.counters`).
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
def room_of(parts):
    """How far means are from counts, and M2 from means, in the workspace for ``parts`` partials: a multiple of an access."""
    return tl.cdiv(parts, 16) * 16


@triton.jit
def counts_of(partials):
    """The counts, which are integers: float32 has no odd ones above 2^24."""
    return partials.to(tl.pointer_type(tl.int32))


@triton.jit
def store_moments(partials, program, parts, count, mean, m2):
    """Merge the moments of all places (Chan et al. 1983), and store them as those of one program among ``parts``."""
    whole = total(count.to(tl.int32))
    overall = total(count * mean) / tl.maximum(whole.to(count.dtype), 1.0)
    deviation = mean - overall
    room = room_of(parts)
    tl.store(counts_of(partials) + program, whole)
    tl.store(partials + (room + program), overall)
    tl.store(partials + (2 * room + program), total(m2 + count * deviation * deviation))


@triton.jit
def load_parts(partials, first, parts, dtype: tl.constexpr, BLOCK: tl.constexpr):
    """Count, mean and M2 of ``BLOCK`` programs from the ``first`` on; zero behind the last, and where nothing was counted."""
    room = room_of(parts)
    place = first + tl.arange(0, BLOCK)
    there = place < room
    # Not through L1, which may hold what was there before.
    count = tl.load(counts_of(partials) + place, there, other=0, cache_modifier=".cg")
    mean = tl.load(partials + (room + place), there, other=0, cache_modifier=".cg")
    m2 = tl.load(partials + (2 * room + place), there, other=0, cache_modifier=".cg")
    is_counted = (place < parts) & (count > 0)
    count = tl.where(is_counted, count, 0).to(dtype)
    return count, tl.where(is_counted, mean, 0.0).to(dtype), tl.where(is_counted, m2, 0.0).to(dtype)


@triton.jit
def merge_partials(partials, merged, parts, BLOCK: tl.constexpr):
    """The count, mean and M2 of the whole, from those of ``parts`` programs (Chan et al. 1983), in the dtype of ``merged``.

    The mean comes first and M2 from the deviations of the parts from it, as in :func:`tritonrl.kernels.merge_moments`:
    nothing cancels. ``BLOCK`` parts at once, in a fixed order.
    """
    dtype: tl.constexpr = merged.dtype.element_ty
    counts, sums = tl.zeros((BLOCK,), dtype), tl.zeros((BLOCK,), dtype)
    for first in range(0, parts, BLOCK):
        count, mean, m2 = load_parts(partials, first, parts, dtype, BLOCK)
        counts += count
        sums += count * mean
    whole = total(counts)
    overall = total(sums) / tl.where(whole > 0, whole, 1.0)
    squares = tl.zeros((BLOCK,), dtype)
    for first in range(0, parts, BLOCK):
        count, mean, m2 = load_parts(partials, first, parts, dtype, BLOCK)
        deviation = tl.where(count > 0, mean - overall, 0.0)
        squares += m2 + count * deviation * deviation
    tl.store(merged, whole)
    tl.store(merged + 1, overall)
    tl.store(merged + 2, total(squares))


@triton.jit
def is_last(counter, programs):
    """Count a program; whether all others were counted before. Then what they stored is there to be loaded."""
    tl.debug_barrier()
    before = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    return before == programs - 1


@triton.jit
def finish_moments(moments, program, programs, count, mean, m2, BLOCK: tl.constexpr):
    """Store the moments of the ``program``-th of so many, and if it is the last to do so, merge all of them.

    ``moments``: the workspace for partials, where the result goes, and the counter.
    """
    store_moments(moments[0], program, programs, count, mean, m2)
    if is_last(moments[2], programs):
        merge_partials(moments[0], moments[1], programs, BLOCK)
        tl.store(moments[2], 0)
