"""How a kernel reads its inputs. An input is one of a few kinds, known at compile time:

- ``ABSENT``: not given. No code is generated for it; the stage functions find a 0 in its place and look at its kind.
- ``NUMBER``: a number passed by value.
- ``UNIFORM``: a pointer to one element for all steps and lanes (a 0-dim or fully broadcast tensor), read once.
- ``STEPS``: a pointer with its strides; a stride of zero broadcasts.
- ``LANES``: a pointer to one element for each lane, the same at all steps, read once by each program.
- ``ENDED``: a flag of kind ``STEPS`` that is also true where a packed sequence ends (:mod:`.packed`).
- ``AS_READ``: nothing of its own in memory: the flag in front of it, which is ``ENDED``, without the ends.
- ``ENDS``: nothing in memory either: whether a packed sequence ends at the step.
- ``SEQUENCES``: a pointer to one element for each lane of each packed sequence, read where that ends, 0 elsewhere.

What is derived from others in the kernel (:mod:`.following`) is ``ABSENT``, too.

Lanes (everything that is not time) are numbered ``lane = outer * inner_size + inner``; strides come as
``(outer, time, inner)``. A *tap* of +1 or -1 reads the following or the preceding step instead, zero beyond the ends.
"""

from __future__ import annotations

import triton
import triton.language as tl

ABSENT = tl.constexpr(0)
NUMBER = tl.constexpr(1)
UNIFORM = tl.constexpr(2)
STEPS = tl.constexpr(3)
LANES = tl.constexpr(4)
ENDED = tl.constexpr(5)
AS_READ = tl.constexpr(6)
ENDS = tl.constexpr(7)
SEQUENCES = tl.constexpr(8)


@triton.constexpr_function
def is_stepped(kind):
    """Whether an input of this kind is read step by step."""
    return int(kind) in (int(STEPS), int(ENDED))


@triton.jit
def as_bytes(pointer):
    """A pointer to flags as one to bytes. A flag made of a byte has to wait for it; a byte may still be on its way."""
    if pointer.dtype.element_ty == tl.int1:
        return pointer.to(tl.pointer_type(tl.int8), bitcast=True)
    else:
        return pointer


@triton.jit
def raised(x, DTYPE: tl.constexpr, ACC: tl.constexpr):
    """What was loaded through :func:`as_bytes`: flags become flags, numbers go to the dtype of the running sum."""
    if DTYPE == tl.int1:
        return x != 0
    else:
        return x.to(ACC)


@triton.jit
def widened(x):
    """A number as one of 64 bits: what is computed from it may exceed 2^31."""
    return tl.cast(x, tl.int64)


@triton.jit
def lane_offset(strides, UNITS: tl.constexpr, n: tl.constexpr, outer, inner):
    """Where a lane of the ``n``-th tensor begins, in elements. Strides are counted in ``UNITS`` elements."""
    return outer * strides[n][0] * UNITS[n][0] + inner * strides[n][2] * UNITS[n][2]


@triton.jit
def time_offset(strides, UNITS: tl.constexpr, n: tl.constexpr, t):
    """How far step ``t`` of the ``n``-th tensor is from the beginning of its lane, in elements."""
    return t * strides[n][1] * UNITS[n][1]


@triton.jit
def load_uniforms(inputs, KINDS: tl.constexpr, ACC: tl.constexpr):
    """What is the same for every step: numbers and one-element tensors, 0 in the place of everything else."""
    loaded = ()
    for n in tl.static_range(len(KINDS)):
        if KINDS[n] == NUMBER:
            loaded = loaded + (tl.full((), inputs[n], ACC),)
        elif KINDS[n] == UNIFORM:
            loaded = loaded + (raised(tl.load(as_bytes(inputs[n])), inputs[n].dtype.element_ty, ACC),)
        else:
            loaded = loaded + (0,)
    return loaded


@triton.jit
def load_lanes(inputs, strides, uniforms, KINDS: tl.constexpr, UNITS: tl.constexpr, outer, inner, mask,
               ACC: tl.constexpr):  # fmt: skip
    """``uniforms`` with what is the same for every step of a lane in its place, in the shape of ``outer`` and ``inner``."""
    loaded = ()
    for n in tl.static_range(len(KINDS)):
        if KINDS[n] == LANES:
            x = tl.load(as_bytes(inputs[n]) + lane_offset(strides, UNITS, n, outer, inner), mask, other=0)
            loaded = loaded + (raised(x, inputs[n].dtype.element_ty, ACC),)
        else:
            loaded = loaded + (uniforms[n],)
    return loaded
