"""The action of the highest value, and that value, in each encoding of a discrete action."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["greedy_action", "one_hot_argmax", "part_sizes"]


def greedy_action(action_value: Tensor, action_space: str, sizes: int | Sequence[int] | None = None) -> Tensor:
    r""":math:`\arg\max_a Q(o, a)`, in the encoding of an action space.

    Where an action has parts, its value is the sum over them (see
    :func:`~tritonrl.objectives.chosen_action_value.chosen_action_value`), so each part is chosen by itself; in the
    binary space an entry is 1 where its value is above zero.

    Args:
        action_value: ``[*B, n]``.
        action_space: one of :data:`~tritonrl.modules.action_space.ACTION_SPACES`.
        sizes: number of choices of each part, or one number for parts of one size; for the spaces of several parts.

    Returns:
        int64, ``[*B, n]`` (one_hot, mult_one_hot, binary), ``[*B]`` (categorical) or ``[*B, k]`` (multi_categorical).

    Raises:
        ValueError: if ``sizes`` is missing or does not sum to n.

    Example:
        >>> action_value = torch.tensor([0.5, 2.0, -1.0])
        >>> greedy_action(action_value, "one_hot"), greedy_action(action_value, "categorical")
        (tensor([0, 1, 0]), tensor(1))
        >>> greedy_action(action_value, "mult_one_hot", [1, 2])
        tensor([1, 1, 0])
    """
    if action_space == "categorical":
        return action_value.argmax(-1)
    if action_space == "one_hot":
        return one_hot_argmax(action_value)
    if action_space == "binary":
        return (action_value > 0).long()
    parts = action_value.split(part_sizes(sizes, action_value.shape[-1], action_space), dim=-1)
    if action_space == "mult_one_hot":
        return torch.cat([one_hot_argmax(part) for part in parts], -1)
    return torch.stack([part.argmax(-1) for part in parts], -1)


def one_hot_argmax(action_value: Tensor) -> Tensor:
    """One-hot encoding of the index of the largest entry, the first one of several: int64, of the same shape."""
    choices = torch.arange(action_value.shape[-1], device=action_value.device)
    return (choices == action_value.argmax(-1, keepdim=True)).long()


def part_sizes(sizes: int | Sequence[int] | None, total: int, action_space: str) -> list[int]:
    """The number of choices of each part of an action.

    Raises:
        ValueError: if they are unknown or do not sum to the number of action values.
    """
    if sizes is None:
        raise ValueError(f"var_nums, the number of choices of each part, must be given for the space {action_space!r}")
    if isinstance(sizes, int):
        sizes = [sizes] * (total // sizes)
    if sum(sizes) != total:
        raise ValueError(f"var_nums {list(sizes)} must sum to the number of action values, {total}")
    return list(sizes)
