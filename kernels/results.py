"""Allocating the results of a call like one before it, whose layouts are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Results:
    """How the results of a call are allocated: as :func:`.specs.allocate` does, whose results these were."""

    def __init__(self, like: int, args: Sequence[Any], results: Sequence[Tensor]) -> None:
        first, donor = results[0], args[like]
        self.like = like
        self.as_donor = donor.shape == first.shape and donor.dtype is first.dtype
        self.shape, self.stride, self.dtype, self.device = first.shape, first.stride(), first.dtype, first.device
        # What is not laid out like the first result has one dimension: moments, and gradients that nobody asked for.
        alike = (x.shape == first.shape and x.dtype is first.dtype for x in results[1:])
        self.others = tuple(None if a else (x.shape[0], x.dtype) for x, a in zip(results[1:], alike, strict=True))

    def allocate(self, args: Sequence[Any]) -> tuple[Tensor, ...]:
        """New results, uninitialised."""
        if self.as_donor:
            first = torch.empty_like(args[self.like])
        else:
            first = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        made = [first]
        for other in self.others:
            made.append(torch.empty_like(first) if other is None else first.new_empty(other[0], dtype=other[1]))
        return tuple(made)
