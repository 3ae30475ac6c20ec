"""Triton kernels that take numbers as they lie in memory: no plan, no strides. Launched again as :mod:`.eager` does."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from .device.standardise import ACCESS, standardise
from .direct import Launch, alignment_of, direct, is_watched, launch_on, on_device
from .dtypes import accumulate_dtype
from .plan import Plan, ceil_div

PLAN = Plan("elementwise", (), 1, 4, vectors=2048)
"""How every kernel of this file is launched: numbers a program, and warps. Four accesses of 16 bytes a thread are in flight."""

_MOST_KEPT = 4096
_launches: dict[Any, Launch] = {}


def standardised(
    x: Tensor, moments: Tensor, valid: Tensor | None, skip: Tensor | None, eps: float, correction: int
) -> Tensor:
    """What :func:`tritonrl.kernels.standardise` returns, for masks that lie in memory as ``x`` does, without gaps."""
    y = torch.empty_like(x)
    pointers = (x, moments, valid, skip, y)
    addresses = [0 if t is None else t.data_ptr() for t in pointers]
    key = (x.numel(), x.dtype, x.device, valid is None, skip is None, eps, correction, alignment_of(addresses))
    constants = constants_of(x, eps, correction)
    launch = _launches.get(key)
    if launch is not None and not is_watched(standardise):
        launch_on(x.device, launch, (*[address or None for address in addresses], x.numel(), *constants.values()))
        return y
    grid = (ceil_div(x.numel(), PLAN.vectors),)
    with on_device(x.device):
        compiled = standardise[grid](*pointers, x.numel(), **constants, num_warps=PLAN.warps)
        again = direct(standardise, compiled, grid)
    if again is not None:
        if len(_launches) >= _MOST_KEPT:  # sizes without end must not eat the memory
            _launches.clear()
        _launches[key] = again
    return y


def constants_of(x: Tensor, eps: float, correction: int) -> dict[str, Any]:
    """The constants of the kernel, in its order."""
    return {
        "EPS": eps,
        "CORRECTION": correction,
        "BLOCK": PLAN.vectors,
        "REST": x.numel() % ACCESS.value != 0,
        "ACC": tl.float64 if accumulate_dtype(x.dtype) is torch.float64 else tl.float32,
        "WIDE": x.numel() > 2**31 - PLAN.vectors,
    }
