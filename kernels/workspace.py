"""What a launch needs besides inputs and outputs: room for moments of programs, and for what split tiles tell each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .counters import counter_on
from .dtypes import accumulate_dtype
from .plan import Plan, ceil_div

NAMES = ("moments", "flags", "published")
"""What the kernels call it; ``moments`` are the workspace :data:`MOMENTS` and, between the two, where the result goes."""
MOMENTS = ("partials", "counter")
_ALIGNED = 16  # partial moments, as in device/moments.py


def needs_workspace(plan: Plan, moments: bool) -> bool:
    """Whether there is anything in the workspace."""
    return moments or plan.strategy == "split"


def workspace_of(plan: Plan, like: Tensor, moments: bool) -> dict[str, Tensor]:
    """By name; empty for most launches.

    ``flags`` are a ticket counter and a word for every tile, at zero (a memset, which a graph can capture); ``published`` is
    room for the maps of tiles and of windows of them, ``partials`` for the moments of every program, and ``counter`` counts
    the programs.
    """
    found: dict[str, Tensor] = {}
    if moments:
        room = _ALIGNED * ceil_div(math.prod(plan.grid), _ALIGNED)
        found["partials"] = torch.empty(3 * room, dtype=accumulate_dtype(like.dtype), device=like.device)
        found["counter"] = counter_on(like.device)
    if plan.strategy == "split":
        tiles, dtype = plan.grid[0], accumulate_dtype(like.dtype)
        found["flags"] = torch.zeros(1 + tiles, dtype=torch.int32, device=like.device)
        found["published"] = torch.empty(3 * plan.lanes * tiles, dtype=dtype, device=like.device)
    return found


def merged_at_once(plan: Plan) -> int:
    """How many partial moments the last program merges at once: four a thread, which one access takes of each kind."""
    return 128 * plan.warps
