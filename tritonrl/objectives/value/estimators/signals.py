"""What a recurrence over time needs from a rollout, checked before anything is computed or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from .keys import AcceptedKeys, next_key

__all__ = [
    "Signals",
    "Steps",
    "check_shapes",
    "per_step",
    "read_entry",
    "read_signals",
    "stored_value",
    "write_entries",
    "zero_where_invalid",
]


class Signals(NamedTuple):
    """Reward and end flags of a rollout, ``[*B, T, *F]`` each."""

    reward: Tensor
    done: Tensor
    terminated: Tensor


class Steps(NamedTuple):
    """The steps of a rollout as the functionals of :mod:`tritonrl.objectives.value.functional` take them.

    Attributes:
        gamma: 0-dim, or one per step (``gamma ** steps_to_next_obs``) in the shape of ``reward``.
        reward: ``[*B, T, *F]``, as all that follow.
        done: bool.
        terminated: bool.
        value: of the state, with its graph.
        next_value: of the true next state, detached.
        time_dim: non-negative.
        valid: bool ``[*B, T]``, or None if every step is valid.
    """

    gamma: Tensor
    reward: Tensor
    done: Tensor
    terminated: Tensor
    value: Tensor
    next_value: Tensor
    time_dim: int
    valid: Tensor | None = None


def read_entry(tensordict: TensorDictBase, key: NestedKey, what: str) -> Tensor:
    """An entry that must be there.

    Raises:
        KeyError: if it is not.
    """
    entry = tensordict.get(key, None)
    if entry is None:
        raise KeyError(f"The {what} {key!r} is missing from the tensordict.")
    return entry


def stored_value(tensordict: TensorDictBase, key: NestedKey) -> Tensor:
    """A value that no network can compute.

    Raises:
        ValueError: if it is missing.
    """
    value = tensordict.get(key, None)
    if value is None:
        raise ValueError(f"The value {key!r} is missing from the tensordict, and there is no value network.")
    return value


def read_signals(tensordict: TensorDictBase, keys: AcceptedKeys, *, need_done: bool = True) -> Signals:
    """Reward, done and terminated of the next step; a missing ``terminated`` is ``done``.

    Args:
        tensordict: a rollout.
        keys: what the entries are called.
        need_done: whether the end of a trajectory matters. If not, ``terminated`` takes the place of a missing ``done``.

    Raises:
        KeyError: if the reward or ``done`` is missing.
    """
    reward = read_entry(tensordict, next_key(keys.reward), "reward")
    terminated = tensordict.get(next_key(keys.terminated), None)
    if not need_done and terminated is not None:
        done = tensordict.get(next_key(keys.done), terminated)
    else:
        done = read_entry(tensordict, next_key(keys.done), "done flag")
    return Signals(reward, done, done if terminated is None else terminated)


def write_entries(tensordict: TensorDictBase, entries: Mapping[NestedKey, Tensor]) -> TensorDictBase:
    """Set all ``entries``: the last act of an estimator, when nothing can fail any more."""
    for key, entry in entries.items():
        tensordict.set(key, entry)
    return tensordict


def check_shapes(reference: tuple[NestedKey, Tensor], *others: tuple[NestedKey, Tensor]) -> None:
    """Every entry must have the shape of the first.

    Raises:
        RuntimeError: naming the two keys and their shapes.
    """
    key, tensor = reference
    for other_key, other in others:
        if other.shape != tensor.shape:
            raise RuntimeError(
                f"{other_key!r} of shape {tuple(other.shape)} and {key!r} of shape {tuple(tensor.shape)} must have the "
                "same shape: value, reward, done and terminated are one entry per step."
            )


def per_step(entry: Tensor, key: NestedKey, reward: Tensor) -> Tensor:
    """``entry``, one per step ``[*B, T]`` or ``[*B, T, 1]``, in the shape of ``reward``.

    Raises:
        RuntimeError: if it does not fit.
    """
    aligned = entry.reshape(entry.shape + (1,) * max(reward.ndim - entry.ndim, 0))
    fits = aligned.ndim == reward.ndim and all(
        size in (1, full) for size, full in zip(aligned.shape, reward.shape, strict=True)
    )
    if not fits:
        raise RuntimeError(
            f"{key!r} of shape {tuple(entry.shape)} does not fit the reward of shape {tuple(reward.shape)}: it must "
            "have one entry per step."
        )
    return aligned.expand(reward.shape)


def zero_where_invalid(x: Tensor, valid: Tensor | None) -> Tensor:
    """``x`` ``[*B, T, *F]`` with 0 where ``valid`` ``[*B, T]`` is False."""
    if valid is None:
        return x
    return torch.where(valid.reshape(valid.shape + (1,) * (x.ndim - valid.ndim)), x, 0.0)
