"""The general recurrence and its gradient. ``x`` holds the inputs of one step, in the order named here."""

from __future__ import annotations

import triton
import triton.language as tl

from .scan import either, product


@triton.jit
def linear_coefficients(x, is_last, KINDS: tl.constexpr):
    """Inputs: a, b."""
    return x[0], x[1]


@triton.jit
def linear_finish(x, entering, y, is_last, KINDS: tl.constexpr):
    """The state itself."""
    return (y,)


@triton.jit
def linear_backward_coefficients(x, is_last, KINDS: tl.constexpr):
    """The state is ``h[t] = a[t] g[t]`` with ``g[t] = dy[t] + h`` of the step before: ``a`` is needed at its own step only.

    Inputs: grad (dy), a, and the output of the neighbouring step that ``y[t]`` was computed from.
    """
    grad, a = x[0], x[1]
    return a, tl.where(a == 0, 0.0, a * grad)


@triton.jit
def linear_backward_finish(x, entering, h, is_last, KINDS: tl.constexpr):
    """Gradients with respect to ``a``, ``g[t] y[t+1]``, and to ``b``, ``g[t]``.

    Where ``a`` is zero, what lies behind may be NaN or inf, and then it has no gradient.
    """
    g = x[0] + entering
    a, y = x[1], x[2]
    kept = either(a != 0, tl.abs(y) < float("inf"))
    return product(g, tl.where(kept, y, 0.0)), g
