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
from .textbook import counted, next_step, previous_step


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
    has_values = cu_seqlens.is_cpu and type(cu_seqlens) is Tensor  # a fake tensor has none
    if has_values and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active():
        check_values(cu_seqlens, shape[0])


def check_values(cu_seqlens: Tensor, total: int) -> None:
    """Look at offsets on the CPU.

    Raises:
        ValueError: if they do not go from 0 to ``total`` without decreasing.
    """
    offsets = cu_seqlens.tolist()
    if not offsets or offsets[0] != 0 or offsets[-1] != total or any(j < i for i, j in itertools.pairwise(offsets)):
        shown = f"{offsets[:8]}{'...' if len(offsets) > 8 else ''}"
        raise ValueError(f"cu_seqlens must go from 0 to {total} and never decrease, got {shown}")


def ends(cu_seqlens: Tensor, total: int, time_dim: int) -> Tensor:
    """A flag ``[total, 1, ...]`` at the last step of every sequence, of as many dimensions as there are from time on."""
    # In front of every offset: an empty sequence repeats one, or marks a place in front of the data, which is cut off.
    flags = torch.zeros(total + 1, dtype=torch.bool, device=cu_seqlens.device)
    in_front = flags.index_fill(0, cu_seqlens[1:].long(), True)[1:]
    return in_front.view([total] + [1] * (-time_dim - 1))


def ended(done: Tensor, cu_seqlens: Tensor | None, total: int, time_dim: int) -> Tensor:
    """``done``, and the last step of every sequence."""
    return done if cu_seqlens is None else done | ends(cu_seqlens, total, time_dim)


def is_packed(op: str, args: Sequence[Any]) -> bool:
    """Whether a call of ``op`` is given offsets."""
    return len(args) == len(argument_names(op)) and "cu_seqlens" in ALL_SPECS[op].optional and args[-1] is not None


def folded(op: str, args: Sequence[Any], recurrence: Recurrence) -> tuple[Any, ...]:
    """The arguments that give the same results without ``cu_seqlens``: with the ends in ``done``, but not in ``terminated``.

    A next value that was to be derived is given; past masks it takes a ``recurrence``.
    """
    if not is_packed(op, args):
        return tuple(args)
    named = by_name(op, args)
    done, cu_seqlens, time_dim = named["done"], named.pop("cu_seqlens"), named["time_dim"]
    shape = full_shape([args[i] for i in ALL_SPECS[op].shaped_by if args[i] is not None])
    if "terminated" in named and named["terminated"] is None:
        named["terminated"] = done
    named["done"] = ended(done, cu_seqlens, shape[time_dim], time_dim)
    if named.get("bootstrap_value") is not None:
        value, bootstrap_value = named["value"].expand(shape), named["bootstrap_value"]
        counts = counted(named["valid"], named["skip"])
        named["next_value"] = derived_next_value(value, bootstrap_value, cu_seqlens, time_dim, counts, recurrence)
        named["bootstrap_value"] = None
    return tuple(named.values())


def derived_next_value(
    value: Tensor,
    bootstrap_value: Tensor,
    cu_seqlens: Tensor,
    time_dim: int,
    counts: Tensor | None = None,
    recurrence: Recurrence | None = None,
) -> Tensor:
    """:func:`.masked.derived_next_value` within each sequence.

    ``bootstrap_value`` has one step for each sequence, in the place of time. ``recurrence`` is needed where ``counts`` is.
    """
    each = bootstrap_value.to(value.dtype).expand(_with_steps(value, cu_seqlens.shape[0] - 1, time_dim))
    if counts is not None and recurrence is not None:
        bootstrap = _at_last_steps(torch.zeros_like(value), each, cu_seqlens, time_dim)
        stays = counts | ends(cu_seqlens, value.shape[time_dim], time_dim)
        keeps = torch.where(stays, 0.0, 1.0).to(accumulate_dtype(value.dtype)).expand(value.shape)
        value = recurrence(keeps, torch.where(counts, value, bootstrap), None, time_dim, True).to(value.dtype)
    return _at_last_steps(next_step(value, None, time_dim), each, cu_seqlens, time_dim)


def derived_next_value_backward(grad_next_value: Tensor, cu_seqlens: Tensor, time_dim: int) -> tuple[Tensor, Tensor]:
    """Gradients with respect to value and bootstrap value, where every step counts."""
    total = grad_next_value.shape[time_dim]
    if not total:
        return grad_next_value, grad_next_value.new_zeros(
            _with_steps(grad_next_value, cu_seqlens.shape[0] - 1, time_dim)
        )
    starts = cu_seqlens[:-1]
    starts = torch.where(starts < total, starts, 0).long()  # at the first step nothing arrives anyway
    grad_value = previous_step(grad_next_value, None, time_dim).index_fill_(time_dim, starts, 0.0)
    last = grad_next_value.index_select(time_dim, (cu_seqlens[1:] - 1).clamp_min(0).long())
    is_empty = (cu_seqlens[1:] == cu_seqlens[:-1]).view([-1] + [1] * (-time_dim - 1))
    return grad_value, torch.where(is_empty, 0.0, last)


def _at_last_steps(x: Tensor, each: Tensor, cu_seqlens: Tensor, time_dim: int) -> Tensor:
    """``x``, but at the last step of every sequence what there is for ``each``."""
    total, first, behind = x.shape[time_dim], cu_seqlens[:-1], cu_seqlens[1:]
    # An empty sequence "ends" one behind the data, in a place that is cut off again.
    places = torch.where(behind > first, behind - 1, total).long()
    room = torch.cat([x, x.new_zeros(_with_steps(x, 1, time_dim))], time_dim)
    return room.index_copy(time_dim, places, each).narrow(time_dim, 0, total)


def _with_steps(x: Tensor, steps: int, time_dim: int) -> list[int]:
    """The shape of ``x`` with another number of steps."""
    shape = list(x.shape)
    shape[time_dim] = steps
    return shape
