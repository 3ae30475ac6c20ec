"""Packed sequences: one flat ``[total, *F]`` tensor, and offsets that say where each sequence begins.

``cu_seqlens`` has ``n + 1`` offsets: sequence ``i`` is the steps ``cu_seqlens[i]`` to ``cu_seqlens[i+1] - 1``; it may be
empty. Everything here stays on the device: nothing is read back, and shapes depend on ``total`` and ``n`` only.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .dtypes import accumulate_dtype
from .masked import Recurrence
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


def _over_features(x: Tensor, shape: torch.Size) -> Tensor:
    return x.view([shape[0]] + [1] * (len(shape) - 1))


def ends(cu_seqlens: Tensor, shape: torch.Size) -> Tensor:
    """A flag ``[total, 1, ...]`` at the last step of every sequence."""
    flags = torch.zeros(shape[0] + 1, dtype=torch.bool, device=cu_seqlens.device)
    at_ends = flags.index_fill(0, _last_steps(cu_seqlens, shape[0]), True)
    return _over_features(at_ends[: shape[0]], shape)


def derived_next_value(
    value: Tensor, bootstrap_value: Tensor, cu_seqlens: Tensor, counts: Tensor | None, recurrence: Recurrence
) -> Tensor:
    """:func:`.masked.derived_next_value` within each sequence; ``bootstrap_value`` is ``[n, *F]``, one for each."""
    total, time_dim = value.shape[0], -value.dim()
    at_end = ends(cu_seqlens, value.shape)
    each = bootstrap_value.to(value.dtype).expand(cu_seqlens.shape[0] - 1, *value.shape[1:])
    room = value.new_zeros((total + 1, *value.shape[1:]))
    bootstrap = room.index_copy(0, _last_steps(cu_seqlens, total), each)[:total]
    ahead = value
    if counts is not None:
        keeps = torch.where(counts | at_end, 0.0, 1.0).to(accumulate_dtype(value.dtype)).expand(value.shape)
        ahead = recurrence(keeps, torch.where(counts, value, bootstrap), None, time_dim, True).to(value.dtype)
    return torch.where(at_end, bootstrap, next_step(ahead, None, time_dim))
