"""Settle, before anything is compiled, what tensordict would otherwise find out later."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import LazyStackedTensorDict, TensorDict, is_tensorclass
from tensordict.nn import TensorDictParams
from torch import nn
from torch.nn.parameter import Buffer, UninitializedBuffer, UninitializedParameter

__all__ = ["warm_type_caches"]

_TYPES: tuple[type[Any], ...] = (
    torch.Tensor,
    torch.Size,
    nn.Parameter,
    Buffer,
    UninitializedParameter,
    UninitializedBuffer,
    TensorDict,
    TensorDictParams,
    LazyStackedTensorDict,
    tuple,
    list,
    dict,
    str,
    int,
    float,
    bool,
    slice,
    type(None),
    type(...),
)


def warm_type_caches() -> None:
    """Ask tensordict once for each common type whether it is a tensorclass.

    It remembers the answers in a dictionary, but not those that it gives while being compiled; and a compiled graph
    checks the size of that dictionary. An eager call after the first compiled one would thus make the graph invalid,
    without this.
    """
    for cls in _TYPES:
        is_tensorclass(cls)
