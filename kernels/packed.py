"""Packed sequences: one flat ``[total, *F]`` tensor, and offsets that say where each sequence begins.

``cu_seqlens`` has ``n + 1`` offsets: sequence ``i`` is the steps ``cu_seqlens[i]`` to ``cu_seqlens[i+1] - 1``; it may be
empty. Everything here stays on the device: nothing is read back, and shapes depend on ``total`` and ``n`` only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .dtypes import accumulate_dtype
from .masked import Recurrence
from .specs import ALL_SPECS, argument_names, by_name, full_shape
from .textbook import next_step


def check_offsets(cu_seqlens: Tensor, shape: torch.Size, time_dim: int, device: torch.device) -> None:
    """What can be known of the offsets without waiting for a device.

    Raises:
        TypeError: if they are not an integer tensor.
        RuntimeError: if they are not one-dimensional, are on another device, or time is not the first dimension.
        ValueError: if they are on the CPU and do not go from 0 to ``total`` without decreasing.
    """
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        came = f"dtype {cu_seqlens.dtype}" if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
        raise TypeError(f"cu_seqlens must be an int32 or int64 tensor, got {came}")
    if time_dim != -len(shape):
        raise RuntimeError(
            f"packed sequences lie along the first dimension: time_dim must be 0 for shape {tuple(shape)}"
        )
    if cu_seqlens.dim() != 1 or not cu_seqlens.shape[0]:
        raise RuntimeError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}, expected [n + 1]")
    if cu_seqlens.device != device:
        raise RuntimeError(f"cu_seqlens is on {cu_seqlens.device}, expected {device}, where the data are")
    if cu_seqlens.is_cpu and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active():
        _check_values(cu_seqlens, shape[0])


def _check_values(cu_seqlens: Tensor, total: int) -> None:
    if type(cu_seqlens) is not Tensor:  # a fake tensor has no values
        return
    offsets = cu_seqlens.tolist()
    if offsets[0] != 0 or offsets[-1] != total or any(j < i for i, j in itertools.pairwise(offsets)):
        shown = f"{offsets[:8]}{'...' if len(offsets) > 8 else ''}"
        raise ValueError(f"cu_seqlens must go from 0 to {total} and never decrease, got {shown}")


def _last_steps(cu_seqlens: Tensor, total: int) -> Tensor:
    """Where each sequence ends; an empty one "ends" one behind the data, in a place that is cut off again."""
    ends = cu_seqlens[1:]
    return torch.where(ends > cu_seqlens[:-1], ends - 1, total).long()


def ends(cu_seqlens: Tensor, total: int, time_dim: int) -> Tensor:
    """A flag ``[total, 1, ...]`` at the last step of every sequence, of as many dimensions as there are from time on."""
    flags = torch.zeros(total + 1, dtype=torch.bool, device=cu_seqlens.device)
    at_ends = flags.index_fill(0, _last_steps(cu_seqlens, total), True)
    return at_ends[:total].view([total] + [1] * (-time_dim - 1))


def ended(done: Tensor, cu_seqlens: Tensor | None, total: int, time_dim: int) -> Tensor:
    """``done``, and the last step of every sequence."""
    return done if cu_seqlens is None else done | ends(cu_seqlens, total, time_dim)


def is_packed(op: str, args: Sequence[Any]) -> bool:
    """Whether a call of ``op`` is given offsets."""
    return len(args) == len(argument_names(op)) and "cu_seqlens" in ALL_SPECS[op].optional and args[-1] is not None


def folded(op: str, args: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments that give the same results without ``cu_seqlens``: with the ends in ``done``, but not in ``terminated``."""
    if not is_packed(op, args):
        return tuple(args)
    named = by_name(op, args)
    done, cu_seqlens, time_dim = named["done"], named.pop("cu_seqlens"), named["time_dim"]
    if "terminated" in named and named["terminated"] is None:
        named["terminated"] = done
    shape = full_shape([args[i] for i in ALL_SPECS[op].shaped_by if args[i] is not None])
    named["done"] = ended(done, cu_seqlens, shape[time_dim], time_dim)
    return tuple(named.values())


def derived_next_value(
    value: Tensor, bootstrap_value: Tensor, cu_seqlens: Tensor, counts: Tensor | None, recurrence: Recurrence
) -> Tensor:
    """:func:`.masked.derived_next_value` within each sequence; ``bootstrap_value`` is ``[n, *F]``, one for each."""
    total, time_dim = value.shape[0], -value.dim()
    at_end = ends(cu_seqlens, total, time_dim)
    each = bootstrap_value.to(value.dtype).expand(cu_seqlens.shape[0] - 1, *value.shape[1:])
    room = value.new_zeros((total + 1, *value.shape[1:]))
    bootstrap = room.index_copy(0, _last_steps(cu_seqlens, total), each)[:total]
    ahead = value
    if counts is not None:
        keeps = torch.where(counts | at_end, 0.0, 1.0).to(accumulate_dtype(value.dtype)).expand(value.shape)
        ahead = recurrence(keeps, torch.where(counts, value, bootstrap), None, time_dim, True).to(value.dtype)
    return torch.where(at_end, bootstrap, next_step(ahead, None, time_dim))
