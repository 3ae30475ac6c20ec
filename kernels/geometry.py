"""From tensors of any layout to ``(outer, time, inner)``: three sizes, and three strides for each tensor.

Everything that is not time is a lane. Lane dimensions that lie behind one another in the memory of every tensor are merged;
what is left is at most two dimensions, ``outer`` and ``inner``, in nearly every layout that people use ([N, T], [T, N],
[N, T, F], a done of [N, T, 1] over F lanes, expands, slices). Pure functions of shapes and strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Strides = tuple[int, int, int]


class Lanes(NamedTuple):
    """Sizes: ``outer * inner`` lanes of ``steps`` steps."""

    outer: int
    steps: int
    inner: int

    @property
    def lanes(self) -> int:
        """How many lanes there are."""
        return self.outer * self.inner


class TooScattered(ValueError):
    """The lane dimensions of these layouts do not merge to two; the caller copies into one layout."""


def expanded_strides(shape: Sequence[int], own_shape: Sequence[int], own_strides: Sequence[int]) -> tuple[int, ...]:
    """The strides of a tensor broadcast to ``shape``: zero where it is repeated, and where there is but one element."""
    missing = len(shape) - len(own_shape)
    own = [0] * missing + [0 if n == 1 else s for n, s in zip(own_shape, own_strides, strict=True)]
    return tuple(0 if n == 1 else s for n, s in zip(shape, own, strict=True))


def merge_lanes(
    shape: Sequence[int], time_dim: int, strides: Sequence[Sequence[int]], reference: int = -1
) -> tuple[Lanes, list[Strides]]:
    """Sizes and ``(outer, time, inner)`` strides of tensors that are all broadcast to ``shape``.

    Args:
        shape: the full shape.
        time_dim: which dimension is time, negative.
        strides: the strides of each tensor after broadcasting (:func:`expanded_strides`).
        reference: the tensor whose memory order decides which lane dimension is the inner one.

    Raises:
        TooScattered: if more than two lane dimensions remain.
    """
    time = len(shape) + time_dim
    dims = [d for d in range(len(shape)) if d != time and shape[d] != 1]
    dims.sort(key=lambda d: -strides[reference][d])
    merged: list[tuple[int, list[int]]] = []
    for d in dims:
        own = [s[d] for s in strides]
        if merged and all(outer == s * shape[d] for outer, s in zip(merged[-1][1], own, strict=True)):
            merged[-1] = (merged[-1][0] * shape[d], own)
        else:
            merged.append((shape[d], own))
    if len(merged) > 2:
        raise TooScattered(f"{len(merged)} lane dimensions remain of shape {tuple(shape)}")
    none = (1, [0] * len(strides))
    inner = merged[-1] if merged else none
    outer = merged[0] if len(merged) == 2 else none
    sizes = Lanes(outer[0], shape[time], inner[0])
    return sizes, [(o, s[time], i) for o, s, i in zip(outer[1], strides, inner[1], strict=True)]
