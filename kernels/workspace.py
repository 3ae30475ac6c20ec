"""What a launch needs besides inputs and outputs: room for moments of programs, and for what split tiles tell each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .dtypes import accumulate_dtype, moments_dtype
from .plan import Plan, next_power_of_two

NAMES = ("partials", "flags", "published")
_MERGED_AT_ONCE = 4096  # partial moments


def workspace_of(plan: Plan, like: Tensor, moments: bool) -> dict[str, Tensor]:
    """By the names that the kernels give it; empty for most launches.

    ``flags`` are a ticket counter and a word for every tile, at zero (a memset, which a graph can capture); ``published`` is
    room for the maps of tiles and of windows of them, and ``partials`` for the moments of every program.
    """
    found: dict[str, Tensor] = {}
    if moments:
        found["partials"] = torch.empty((programs(plan), 3), dtype=moments_dtype(like.device), device=like.device)
    if plan.strategy == "split":
        tiles, dtype = plan.grid[0], accumulate_dtype(like.dtype)
        found["flags"] = torch.zeros(1 + tiles, dtype=torch.int32, device=like.device)
        found["published"] = torch.empty(3 * plan.lanes * tiles, dtype=dtype, device=like.device)
    return found


def programs(plan: Plan) -> int:
    """How many there are in a launch."""
    return math.prod(plan.grid)


def merge_sizes(plan: Plan) -> tuple[int, int]:
    """How many partial moments the programs of a plan leave, and how many of them are merged at once."""
    parts = programs(plan)
    return parts, min(_MERGED_AT_ONCE, next_power_of_two(parts))


def merge_warps(block: int) -> int:
    """Eight partial moments a thread, which are 24 loads in flight; at least a warp."""
    return max(1, min(16, block // 256))
