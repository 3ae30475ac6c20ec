"""What the value network sees: its inputs at the root and at the next step of a rollout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase, is_tensor_collection
from torch import Tensor

from .keys import next_key

__all__ = ["NetworkInputs", "read_network_inputs"]


class NetworkInputs(NamedTuple):
    """Inputs of the value network, under the keys that it reads, ``[*B, T]`` each."""

    root: TensorDictBase
    next: TensorDictBase


def read_network_inputs(
    tensordict: TensorDictBase, keys: Iterable[NestedKey], *, one_row: bool = False
) -> NetworkInputs:
    """Shallow copies that hold the network's inputs only, so that nothing which it writes reaches the caller.

    Two entries of the next step are not taken as they are:

    * NaN in a floating-point entry is replaced by the root's value. Collectors that store observations compactly write
      NaN where a trajectory ends and the true next observation is gone.
    * ``is_init``: the next step also starts a sequence where the root does. A recurrent network then sees the next
      steps of different trajectories as different sequences. Not so if ``one_row`` says that root and next steps will
      form one sequence, in which a next step continues its root step.

    An entry that neither side has is left out: the network may not need it (a first recurrent state).

    Raises:
        KeyError: if only one side has an entry.
    """
    keys = list(keys)
    root = tensordict.select(*keys, strict=False).copy()
    following = root.copy()
    for key in keys:
        here = tensordict.get(key, None)
        there = tensordict.get(next_key(key), None)
        if here is None and there is None:
            continue
        is_init = (key if isinstance(key, str) else key[-1]) == "is_init"
        if is_init and there is None:
            there = torch.zeros_like(here)
        if here is None or there is None:
            missing = key if here is None else next_key(key)
            raise KeyError(f"The value network reads {key!r} at this step and at the next, but {missing!r} is missing.")
        if is_init and not one_row:
            there = here | there
        following.set(key, _without_nan(there, here))
    return NetworkInputs(root, following)


def _without_nan(x: Any, substitute: Any) -> Any:
    if is_tensor_collection(x):
        return x.apply(_without_nan, substitute)
    if isinstance(x, Tensor) and x.is_floating_point() and x.shape == substitute.shape:
        return torch.where(x.isnan(), substitute, x)  # A select, not a check: a check would wait for the device.
    return x
