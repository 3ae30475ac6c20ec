"""Steps that do not count: what the optional masks make of a step's map and of its results, for every op and direction.

The masks stand among the inputs ``x`` of a step; ``MASKS`` says where: the position of the valid flag, of the valid flag of
the following step (for ops in which a step in front of an invalid one closes), of the skip flag, and of the done flag that
stops what passes through a skipped step. -1: not given, and no code is generated for it.

A gradient obeys the same rule as its recurrence: its state passes a skipped step unchanged and an invalid one not at all.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def closing(x, is_last, MASKS: tl.constexpr):
    """Whether nothing follows the step: it is the last, or the following one is not valid."""
    if MASKS[1] >= 0:
        return tl.where(x[MASKS[1]], is_last, True)
    else:
        return is_last


@triton.jit
def counts(x, MASKS: tl.constexpr):
    """Whether the step is valid and not skipped."""
    if MASKS[0] >= 0:
        if MASKS[2] >= 0:
            return tl.where(x[MASKS[2]], False, x[MASKS[0]])
        else:
            return x[MASKS[0]]
    elif MASKS[2] >= 0:
        return tl.where(x[MASKS[2]], False, True)
    else:
        return True


@triton.jit
def masked_coefficients(x, is_last, COEFFICIENTS: tl.constexpr, KINDS: tl.constexpr, MASKS: tl.constexpr):
    """``COEFFICIENTS``, but nothing passes through an invalid step, and everything through a skipped one that is not done."""
    a, b = COEFFICIENTS(x, closing(x, is_last, MASKS), KINDS)
    if MASKS[2] >= 0:
        a = tl.where(x[MASKS[2]], tl.where(x[MASKS[3]], 0.0, 1.0), a)
        b = tl.where(x[MASKS[2]], 0.0, b)
    if MASKS[0] >= 0:
        a = tl.where(x[MASKS[0]], a, 0.0)
        b = tl.where(x[MASKS[0]], b, 0.0)
    return a, b


@triton.jit
def masked_finish(x, entering, state, is_last, FINISH: tl.constexpr, KINDS: tl.constexpr, MASKS: tl.constexpr):
    """``FINISH``, but zero where the step does not count."""
    results = FINISH(x, entering, state, closing(x, is_last, MASKS), KINDS)
    if MASKS[0] >= 0 or MASKS[2] >= 0:
        selected = ()
        for n in tl.static_range(len(results)):
            selected = selected + (tl.where(counts(x, MASKS), results[n], 0.0),)
        return selected
    else:
        return results
