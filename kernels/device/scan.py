"""The algebra of the recurrence: how steps compose, and how vectors of steps are taken apart and put together.

A step is the map ``y -> b + a*y``. A coefficient ``a`` of exactly zero cuts: ``y`` is then not read, so a NaN in it stays
where it is. Composition keeps this: a composite with ``a == 0`` does not depend on what enters it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def apply(a, b, y):
    """``b + a*y``, or ``b`` where ``a`` is zero."""
    return tl.where(a == 0, b, b + a * y)


@triton.jit
def either(x, y):
    """Logical or of two flags, one of which may be a scalar (Triton's interpreter cannot ``|`` a scalar with a block)."""
    return tl.where(x, x, y)


@triton.jit
def product(g, x):
    """``g * x``, but zero where no gradient ``g`` arrives: a NaN in a step that nobody looks at stays harmless."""
    return tl.where(g == 0, 0.0, g * x)


@triton.jit
def combine(a_first, b_first, a_then, b_then):
    """The composite of two maps, the one that is processed first given first; the operator of the associative scan."""
    return tl.where(a_then == 0, a_then, a_then * a_first), apply(a_then, b_then, b_first)


@triton.jit
def combine_both(a_first, b_first, ae_first, be_first, a_then, b_then, ae_then, be_then):
    """:func:`combine` on pairs of composites: of a segment, and of the same segment without its last map.

    One scan with it gives the state that leaves each place and the state that enters it. The alternative, shifting the
    former by ``tl.gather``, makes Triton move the whole tile into a layout in which every warp holds every row.
    """
    a, b = combine(a_first, b_first, a_then, b_then)
    ae, be = combine(a_first, b_first, ae_then, be_then)
    return a, b, ae, be


@triton.constexpr_function
def in_order(k, V, REVERSE):
    """Which step of a vector is processed as its ``k``-th (its own inverse)."""
    return V - 1 - k if REVERSE else k


@triton.jit
def scan_vectors(maps, V: tl.constexpr):
    """Of the maps of ``V`` steps of each vector, in processing order, two composites for every vector, ``a, b`` and
    ``a_before, b_before``: with all before it, and without itself."""
    a, b = maps[0][0], maps[0][1]
    for k in tl.static_range(1, V):
        a, b = combine(a, b, maps[k][0], maps[k][1])
    one, zero = tl.full(a.shape, 1.0, a.dtype), tl.zeros(a.shape, a.dtype)
    return tl.associative_scan((a, b, one, zero), 1, combine_both)


@triton.jit
def split_vector(x, V: tl.constexpr):
    """The ``V`` (1, 2, 4 or 8) elements of the last dimension of ``[R, Q, V]``, as a tuple of ``[R, Q]``; one is ``[R, Q]``.

    The elements of a vector lie in one thread, so this only renames registers.
    """
    R: tl.constexpr = x.shape[0]
    Q: tl.constexpr = x.shape[1]
    if V == 1:
        return (x,)
    elif V == 2:
        x0, x1 = tl.split(x)
        return (x0, x1)
    elif V == 4:
        even, odd = tl.split(tl.reshape(x, (R, Q, 2, 2)))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
        return (x0, x1, x2, x3)
    else:
        even, odd = tl.split(tl.reshape(x, (R, Q, 2, 2, 2)))
        even_low, even_high = tl.split(even)
        odd_low, odd_high = tl.split(odd)
        x0, x4 = tl.split(even_low)
        x2, x6 = tl.split(even_high)
        x1, x5 = tl.split(odd_low)
        x3, x7 = tl.split(odd_high)
        return (x0, x1, x2, x3, x4, x5, x6, x7)


@triton.jit
def join_vector(xs, V: tl.constexpr):
    """The inverse of :func:`split_vector`."""
    R: tl.constexpr = xs[0].shape[0]
    Q: tl.constexpr = xs[0].shape[1]
    if V == 1:
        return xs[0]
    elif V == 2:
        return tl.join(xs[0], xs[1])
    elif V == 4:
        return tl.reshape(tl.join(tl.join(xs[0], xs[2]), tl.join(xs[1], xs[3])), (R, Q, 4))
    else:
        even = tl.join(tl.join(xs[0], xs[4]), tl.join(xs[2], xs[6]))
        odd = tl.join(tl.join(xs[1], xs[5]), tl.join(xs[3], xs[7]))
        return tl.reshape(tl.join(even, odd), (R, Q, 8))
