"""The value of the action that was taken, out of the values of all actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey
from torch import Tensor, nn

from tritonrl.modules.action_space import ACTION_SPACES, action_space_name, action_space_sizes
from tritonrl.modules.greedy_action import part_sizes

__all__ = ["chosen_action_value", "network_action_space"]


def network_action_space(
    action_space: Any, network: nn.Module, action_key: NestedKey = "action"
) -> tuple[str, int | Sequence[int] | None]:
    """The encoding of the action, and the number of choices of each of its parts if that is known.

    Args:
        action_space: what the user said (see :func:`~tritonrl.modules.action_space.action_space_name`); None to ask the
            network, which knows by its ``spec`` or, without one, by its ``action_space``.
        network: the network that values the actions.
        action_key: where in a spec of several entries the action is.

    Raises:
        ValueError: if neither says what the actions are, or it is no discrete space.
    """
    if action_space is None:
        spec = getattr(network, "spec", None)
        action_space = getattr(network, "action_space", None) if spec is None else spec
        try:
            name = action_space_name(action_space, action_key)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"action_space was not given, and the {type(network).__name__} does not say what it is: {error}"
            ) from error
    else:
        name = action_space_name(action_space, action_key)
    sizes = action_space_sizes(action_space, action_key)
    if sizes is None:
        declared = (getattr(module, "var_nums", None) for module in network.modules())
        return name, next((var_nums for var_nums in declared if var_nums is not None), None)
    return name, sizes


def chosen_action_value(
    action_value: Tensor, action: Tensor, action_space: str, sizes: int | Sequence[int] | None = None
) -> Tensor:
    r"""Q(o, a) of the action taken.

    For the indices (``categorical``) that is ``action_value[..., action]``; for the encodings by zeros and ones
    (``one_hot``, ``mult_one_hot``, ``binary``) the sum

    .. math:: Q(o, a) = \sum_{i : a_i \neq 0} a_i\, Q_i(o)

    and for several indices (``multi_categorical``) the sum over the parts of the action. The values of actions that were
    not taken have no influence, not even a NaN or the ``-inf`` of an action that a mask forbids.

    Args:
        action_value: ``[*B, n]``.
        action: ``[*B]`` or ``[*B, 1]`` (categorical), ``[*B, k]`` (multi_categorical), ``[*B, n]`` (the others).
        action_space: one of :data:`~tritonrl.modules.action_space.ACTION_SPACES`, as
            :func:`~tritonrl.modules.action_space.action_space_name` gives it.
        sizes: the number of choices of each of the k parts, which sum to n (or one number for parts of one size); needed
            for multi_categorical.

    Returns:
        Tensor ``[*B]``, with gradient to ``action_value``.

    Raises:
        ValueError: for an unknown action space, or if ``sizes`` is missing or does not sum to n.
        RuntimeError: if the action has another shape: broadcasting would mix up the steps.
        TypeError: if indices are not integers.

    Examples:
        >>> action_value = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> chosen_action_value(action_value, torch.tensor([1, 0]), "categorical")
        tensor([2., 3.])
        >>> chosen_action_value(action_value, torch.tensor([[False, True], [True, False]]), "one_hot")
        tensor([2., 3.])
    """
    if action_space not in ACTION_SPACES:
        raise ValueError(f"action_space must be one of {ACTION_SPACES}, got {action_space!r}")
    if action_space == "categorical":
        return _at_index(action_value, action)
    if action_space == "multi_categorical":
        return _at_indices(action_value, action, sizes)
    _check_shape(action, action_value, action_value.shape, action_space)
    weighted = action_value * action.to(action_value.dtype)
    return torch.where(action != 0, weighted, torch.zeros_like(weighted)).sum(-1)


def _check_shape(action: Tensor, action_value: Tensor, expected: Sequence[int], action_space: str) -> None:
    if action.shape != torch.Size(expected):
        raise RuntimeError(
            f"action must have the shape {tuple(expected)} in the action space {action_space!r} with action values of "
            f"shape {tuple(action_value.shape)}, got {tuple(action.shape)}"
        )


def _as_index(action: Tensor) -> Tensor:
    if action.is_floating_point() or action.is_complex() or action.dtype is torch.bool:
        raise TypeError(f"action indices must be integers, got {action.dtype}: is the action one-hot encoded?")
    return action.long()


def _at_index(action_value: Tensor, action: Tensor) -> Tensor:
    index = action if action.ndim == action_value.ndim else action.unsqueeze(-1)
    _check_shape(index, action_value, (*action_value.shape[:-1], 1), "categorical")
    return action_value.gather(-1, _as_index(index)).squeeze(-1)


def _at_indices(action_value: Tensor, action: Tensor, sizes: int | Sequence[int] | None) -> Tensor:
    parts = action_value.split(part_sizes(sizes, action_value.shape[-1], "multi_categorical"), dim=-1)
    _check_shape(action, action_value, (*action_value.shape[:-1], len(parts)), "multi_categorical")
    chosen = [_at_index(part, index) for part, index in zip(parts, _as_index(action).unbind(-1), strict=True)]
    return torch.stack(chosen).sum(0)
