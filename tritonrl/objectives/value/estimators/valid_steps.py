"""Padded rollouts: a mask says which steps count, and the others hold nothing."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from .shifted import cut_at_last_valid
from .signals import Steps, read_entry, zero_where_invalid

__all__ = ["keep_valid", "read_valid"]


def read_valid(tensordict: TensorDictBase, key: NestedKey) -> Tensor:
    """The mask, bool ``[*B, T]``, that is stored as that or as ``[*B, T, 1]``.

    Raises:
        KeyError: if it is missing.
        TypeError: if it is not bool.
        RuntimeError: if it has another shape.
    """
    valid = read_entry(tensordict, key, "mask of valid steps")
    if valid.dtype is not torch.bool:
        raise TypeError(f"{key!r} must be a bool mask (True where a step counts), got {valid.dtype}.")
    batch = tensordict.batch_size
    if valid.shape not in (batch, (*batch, 1)):
        raise RuntimeError(
            f"{key!r} of shape {tuple(valid.shape)} must have one entry per step: {tuple(batch)} or {(*batch, 1)}."
        )
    return valid.reshape(batch)


def keep_valid(steps: Steps, valid: Tensor) -> Steps:
    """Steps of which only the valid ones count: the last before a gap ends its trajectory, and a gap is empty.

    A step that ends like this bootstraps unless it terminated, like the last step of a rollout. All by selection: a NaN
    in a gap reaches neither a result nor a gradient.
    """
    both = valid if steps.valid is None else valid & steps.valid
    gap = ~valid.reshape(valid.shape + (1,) * (steps.reward.ndim - valid.ndim))
    per_step_gamma = steps.gamma.shape == steps.reward.shape
    return Steps(
        zero_where_invalid(steps.gamma, valid) if per_step_gamma else steps.gamma,
        zero_where_invalid(steps.reward, valid),
        cut_at_last_valid(steps.done, both, steps.time_dim) | gap if valid.ndim else steps.done.bool() | gap,
        steps.terminated.bool() | gap,
        zero_where_invalid(steps.value, valid),
        zero_where_invalid(steps.next_value, valid),
        steps.time_dim,
        both,
    )
