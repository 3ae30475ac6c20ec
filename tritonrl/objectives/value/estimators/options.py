"""The constructor options that every value estimator has."""

from __future__ import annotations

from typing import Any, Required, TypedDict

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModuleBase

__all__ = ["EstimatorOptions", "check_options"]


class EstimatorOptions(TypedDict, total=False):
    """Keyword arguments of :class:`~tritonrl.objectives.value.ValueEstimatorBase`, which documents them."""

    value_network: Required[TensorDictModuleBase | None]
    shifted: bool
    shifted_budget: int
    differentiable: bool
    skip_existing: bool | None
    device: torch.device | str | int | None
    deactivate_vmap: bool
    value_chunk_size: int | None
    num_chunks: int | None
    num_chunk: int | None
    value_chunk_dim: int
    group_key: NestedKey | None
    valid_key: NestedKey | None
    advantage_key: NestedKey | None
    value_target_key: NestedKey | None
    value_key: NestedKey | None


def check_options(shifted: Any, shifted_budget: Any, **keys: NestedKey | None) -> None:
    """Refuse what an estimator cannot be built with.

    Raises:
        RuntimeError: for a key: keys are no constructor arguments any more.
        ValueError: for ``shifted`` or its budget.
    """
    for name, key in keys.items():
        if key is not None:
            renamed = name.removesuffix("_key")
            raise RuntimeError(f"{name} is no constructor argument any more: call set_keys({renamed}={key!r}).")
    if not isinstance(shifted, bool):
        raise ValueError(f"shifted must be True or False, got {shifted!r}.")
    if isinstance(shifted_budget, bool) or not isinstance(shifted_budget, int) or shifted_budget < 1:
        raise ValueError(f"shifted_budget must be an integer of at least 1, got {shifted_budget!r}.")
