"""Discounts that are Python numbers, as the tensors that the ops take."""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_KEPT = 256  # a discount that is annealed has ever new values
_kept: dict[float, Tensor] = {}
_values: dict[int, tuple[Tensor, float]] = {}  # by the identities of the tensors that are kept


def number(x: float) -> Tensor:
    """A 0-dim CPU tensor in float64. It is kept: a training has few of them, and to make one takes as long as to launch."""
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return torch.scalar_tensor(x, dtype=torch.float64, device="cpu")  # of a kind that does not outlive the mode
    found = _kept.get(x)
    if found is None:
        if len(_kept) >= _MOST_KEPT:
            _kept.clear()
            _values.clear()
        with torch.inference_mode(False):  # autograd saves no inference tensor
            found = _kept[x] = torch.scalar_tensor(x, dtype=torch.float64, device="cpu")
        _values[id(found)] = found, x
    return found


def value_of(x: Tensor) -> float:
    """``float(x)`` of a 0-dim tensor; what :func:`number` keeps need not be looked at."""
    found = _values.get(id(x))
    return float(x) if found is None else found[1]
