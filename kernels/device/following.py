"""The value of the next step that counts: a next value that is derived past masked steps, in the kernel that uses it.

``FOLLOWS`` says where: the place among the inputs of a step where it is to stand, that of the value, and that of what stands
in for it where no step follows (a number a lane, or one for each packed sequence with its ends behind it). -1: nothing is
derived so.

What is *held* from one step to the next is a recurrence of its own, ``h[t] = V[t]`` where ``t`` counts and ``h[t+1]``
elsewhere, whose coefficients are zeros and ones. It takes a scan like the main one, in front of it, and no memory traffic.
Only a tile of split does not know what enters it: it looks for it in the masks behind itself, which is over at once unless a
hole begins there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .masks import counts
from .memory import SEQUENCES, as_bytes, is_stepped, lane_offset, raised, time_offset, widened
from .packed import of_sequence, span
from .scan import apply, in_order, scan_vectors


@triton.jit
def with_following(x, following, FOLLOWS: tl.constexpr):
    """The inputs of a step, with the value of the following one in its place."""
    found = ()
    for n in tl.static_range(len(x)):
        if n == FOLLOWS[0]:
            found = found + (following,)
        else:
            found = found + (x[n],)
    return found


@triton.jit
def entered_by(x, held, KINDS: tl.constexpr, FOLLOWS: tl.constexpr):
    """What is held in front of a step, unless it ends a sequence, whose own number that is then."""
    if KINDS[FOLLOWS[2]] == SEQUENCES:
        return tl.where(x[FOLLOWS[2] + 1], x[FOLLOWS[2]], held)
    else:
        return held


@triton.jit
def follow_step(x, held, KINDS: tl.constexpr, MASKS: tl.constexpr, FOLLOWS: tl.constexpr):
    """The inputs of a step with what follows it, and what is held behind it."""
    following = entered_by(x, held, KINDS, FOLLOWS)
    return with_following(x, following, FOLLOWS), tl.where(counts(x, MASKS), x[FOLLOWS[1]], following)


@triton.jit
def holding(x, KINDS: tl.constexpr, MASKS: tl.constexpr, FOLLOWS: tl.constexpr):
    """The map from what is held in front of a step to what is held behind it."""
    is_counted = counts(x, MASKS)
    b = tl.where(is_counted, x[FOLLOWS[1]], 0.0)
    a = tl.where(is_counted, 0.0, 1.0).to(b.dtype)
    if KINDS[FOLLOWS[2]] == SEQUENCES:
        is_end = x[FOLLOWS[2] + 1]
        b = tl.where(is_counted, b, tl.where(is_end, x[FOLLOWS[2]], 0.0))
        a = tl.where(is_end, 0.0, a)
    return a, b


@triton.jit
def first_held(uniforms, nothing, KINDS: tl.constexpr, FOLLOWS: tl.constexpr):
    """What is held in front of the very first step, in the shape of ``nothing``, which are zeros.

    (Where sequences are packed a sequence ends there, and nothing of this is used.)
    """
    if KINDS[FOLLOWS[2]] == SEQUENCES:
        return nothing
    else:
        return nothing + uniforms[FOLLOWS[2]]


@triton.jit
def follow_tile(xs, held, KINDS: tl.constexpr, MASKS: tl.constexpr, FOLLOWS: tl.constexpr, REVERSE: tl.constexpr,
                V: tl.constexpr, ROWS: tl.constexpr, Q: tl.constexpr):  # fmt: skip
    """The inputs of the steps of a tile with what follows each, and the map that the tile makes of what is held.

    ``held`` enters the tile; the map is that of each vector and all before it.
    """
    maps = ()
    for k in tl.static_range(V):
        a_k, b_k = holding(xs[in_order(k, V, REVERSE)], KINDS, MASKS, FOLLOWS)
        maps = maps + ((tl.broadcast_to(a_k, (ROWS, Q)), tl.broadcast_to(b_k, (ROWS, Q))),)
    a, b, a_before, b_before = scan_vectors(maps, V)
    entering = apply(a_before, b_before, held)
    walked = ()
    for k in tl.static_range(V):
        x = xs[in_order(k, V, REVERSE)]
        walked = walked + (with_following(x, entered_by(x, entering, KINDS, FOLLOWS), FOLLOWS),)
        entering = apply(maps[k][0], maps[k][1], entering)
    by_step = ()
    for j in tl.static_range(V):
        by_step = by_step + (walked[in_order(j, V, REVERSE)],)
    return by_step, a, b


@triton.jit
def read_at(inputs, strides, uniforms, n: tl.constexpr, outer, inner, t, there, KINDS: tl.constexpr, UNITS: tl.constexpr,
            ACC: tl.constexpr):  # fmt: skip
    """The ``n``-th input at step ``t`` of some rows."""
    if is_stepped(KINDS[n]):
        x = as_bytes(inputs[n]) + (lane_offset(strides, UNITS, n, outer, inner) + time_offset(strides, UNITS, n, t))
        return raised(tl.load(x, there, other=0), inputs[n].dtype.element_ty, ACC)
    else:
        return uniforms[n]


@triton.jit
def counted_at(inputs, strides, uniforms, outer, inner, t, there, KINDS: tl.constexpr, UNITS: tl.constexpr,
               MASKS: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """Whether steps ``t`` of some rows are there and count."""
    if MASKS[0] >= 0:
        valid = read_at(inputs, strides, uniforms, MASKS[0], outer, inner, t, there, KINDS, UNITS, ACC)
        there = tl.where(valid, there, False)
    if MASKS[2] >= 0:
        skip = read_at(inputs, strides, uniforms, MASKS[2], outer, inner, t, there, KINDS, UNITS, ACC)
        there = tl.where(skip, False, there)
    return there


@triton.jit
def counted_in(xs, mask, MASKS: tl.constexpr, V: tl.constexpr, ROWS: tl.constexpr):
    """1 for each row of a tile with steps that count, else 0: ``[ROWS, 1]``, or a scalar for a single row."""
    found = tl.zeros(mask.shape, tl.int32)
    for j in tl.static_range(V):
        found = tl.where(tl.where(mask, counts(xs[j], MASKS), False), 1, found)
    if ROWS == 1:
        return tl.max(tl.max(found, axis=1), axis=0)
    else:
        return tl.max(found, axis=1, keep_dims=True)


@triton.jit
def one_each(x, ROWS: tl.constexpr):
    """A number of each row, as ``[ROWS, 1]``, or of a single row as a scalar (for the reason in :func:`.split.of_tile`)."""
    if ROWS == 1:
        return tl.sum(x, axis=0)
    else:
        return x[:, None]


@triton.jit
def nearest_of(is_counted, s, end, ROWS: tl.constexpr):
    """The first of the steps ``s`` of each row that counts, ``end`` if none does."""
    if ROWS == 1:
        return tl.min(tl.where(is_counted, s, end), axis=0)
    else:
        return tl.min(tl.where(is_counted, s, end), axis=1, keep_dims=True)


@triton.jit
def any_of(x, ROWS: tl.constexpr):
    """Whether a flag of any row is set, as 1 or 0."""
    if ROWS == 1:
        return tl.where(x, 1, 0)
    else:
        return tl.max(tl.where(x, 1, 0))


@triton.jit
def held_from(inputs, strides, uniforms, packed, outer, inner, rows, t, steps, KINDS: tl.constexpr, UNITS: tl.constexpr,
              MASKS: tl.constexpr, FOLLOWS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
              WIDE: tl.constexpr):  # fmt: skip
    """What is held in front of step ``t - 1``: the value of the first step from ``t`` on that counts, in each of ``rows``.

    ``rows`` says who asks, as :func:`counted_in` does, and the answer has its shape. ``BLOCK`` steps are looked at together,
    until every row has found one or time (or the packed sequence) is over. Who has nothing that counts does not ask, so a
    hole is looked through once, however many tiles it has.
    """
    outer, inner, missing = one_each(outer, ROWS), one_each(inner, ROWS), rows != 0
    along = tl.arange(0, BLOCK)
    if ROWS > 1:
        along = along[None, :]
    if WIDE:
        t, steps = widened(t), widened(steps)
    end = steps
    held = first_held(uniforms, tl.zeros((ROWS, 1), ACC), KINDS, FOLLOWS)
    if ROWS == 1:
        held = tl.sum(tl.sum(held, axis=1), axis=0)
    if packed is not None:
        # Beyond the data there is no sequence, and nothing that could follow.
        place, _ = span(packed, tl.minimum(t, steps - 1), tl.minimum(t, steps - 1))
        end = tl.where(t < steps, tl.load(packed[0] + place), t).to(t.dtype)
        known = (place, t < steps)
        held = of_sequence(inputs, strides, UNITS, FOLLOWS[2], outer, inner, known, missing, ACC)
    first = t
    looking = tl.where(first < end, any_of(missing, ROWS), 0)
    while looking > 0:
        s = first + along
        is_counted = counted_at(
            inputs, strides, uniforms, outer, inner, s, missing & (s < end), KINDS, UNITS, MASKS, ACC
        )
        nearest = nearest_of(is_counted, s, end, ROWS)
        hits = missing & (nearest < end)
        value = read_at(inputs, strides, uniforms, FOLLOWS[1], outer, inner, nearest, hits, KINDS, UNITS, ACC)
        held = tl.where(hits, value, held)
        missing = tl.where(hits, False, missing)
        first += BLOCK
        looking = tl.where(first < end, any_of(missing, ROWS), 0)
    return held
