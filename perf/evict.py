"""A kernel that pushes everything else out of the L2 cache. Imported only where there is a GPU."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

# By its name the profiler's list is told apart from what is measured.
NAME = "perf_evict_l2"
_BLOCK = 4096


@triton.jit
def perf_evict_l2(x, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """``x += 1`` over ``n`` elements."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, tl.load(x + at, at < n, other=0.0) + 1.0, at < n)


@functools.cache
def _buffer() -> torch.Tensor:
    size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size or 2**26
    return torch.zeros(size, device="cuda")  # fp32: four times the cache


def evict_l2() -> None:
    """Read and write four times the L2 cache."""
    x = _buffer()
    perf_evict_l2[(triton.cdiv(x.numel(), _BLOCK),)](x, x.numel(), BLOCK=_BLOCK)
