"""Whether tensors are laid out like some before: asked of PyTorch in one call, not of each tensor in four.

That call is what ``torch.compile`` guards its graphs with: layouts, dtypes, devices, whether a gradient is wanted, and all
that the dispatcher distinguishes (negated views, inference tensors). It takes a sixth of the time, but it is no public
interface. So before it is first used it has to tell apart all that matters here; where it does not, there is none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Guard = Callable[..., bool]
"""Takes as many tensors and tells whether each is like the one in its place."""


def guard_of(tensors: Sequence[Tensor]) -> Guard | None:
    """What knows tensors like these again; ``None`` where PyTorch has nothing to ask."""
    return _guard_of(tensors) if can_be_asked() else None


def _guard_of(tensors: Sequence[Tensor]) -> Guard:
    from torch._C._dynamo.guards import TensorGuards

    sizes, strides = [list(x.shape) for x in tensors], [list(x.stride()) for x in tensors]
    guards: Any = TensorGuards
    check: Guard = guards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
    return check


@functools.cache
def can_be_asked() -> bool:
    """Whether this PyTorch can be asked and gives the right answers."""
    try:
        with torch.inference_mode(False):  # whatever the mode of the call that wants to know
            like, alike = _zeros(3, 4), _zeros(3, 4)
            guard = _guard_of([like, like[0]])
            same = guard(alike, alike[0])
            return same is True and not any(guard(x, like[0]) or guard(x, x) for x in _others())
    except Exception:  # whatever another version raises
        return False


def _zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def _others() -> list[Tensor]:
    """Tensors that a kernel for a ``[3, 4]`` tensor in float32 on the CPU must not get, or not without being looked at."""
    with torch.inference_mode():
        inference = _zeros(3, 4)
    return [
        _zeros(4, 3),
        _zeros(1, 4),
        _zeros(3, 4, 1),
        _zeros(4, 3).mT,
        _zeros(6, 4)[::2],
        _zeros(1, 4).expand(3, 4),
        _zeros(3, 4, dtype=torch.float64),
        _zeros(3, 4, dtype=torch.int32),
        _zeros(3, 4, device="meta"),
        _zeros(3, 4).requires_grad_(),
        _zeros(3, 4, dtype=torch.complex64).conj().imag,  # negated
        _zeros(3, 4).to_sparse(),
        torch.nn.Parameter(_zeros(3, 4), requires_grad=False),
        inference,
    ]
