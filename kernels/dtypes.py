"""Which dtype the arithmetic runs in, and which one comes out."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the running sum: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def moments_dtype(device: torch.device) -> torch.dtype:
    """The dtype of a count, mean and M2: float64, which counts exactly; float32 where the device has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype that ordinary arithmetic on ``tensors`` would give; integers alone become the default float."""
    first = tensors[0].dtype
    if first.is_floating_point:
        for x in tensors:
            if x.dtype is not first:
                break
        else:
            return first
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in tensors))
    return dtype if dtype.is_floating_point else torch.get_default_dtype()
