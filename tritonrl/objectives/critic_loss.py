"""The regression of the value function on its target, clipped if asked for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from tritonrl.objectives.distance_loss import distance_loss


class CriticLoss(NamedTuple):
    """Attributes:
    loss: element-wise distance, in the shape of the value, without any coefficient.
    clipped: where the value had left the clipping range (boolean, same shape), or None without clipping.
    """

    loss: Tensor
    clipped: Tensor | None


def critic_distance(
    value: Tensor,
    value_target: Tensor,
    loss_function: str,
    *,
    old_value: Tensor | None = None,
    clip_value: Tensor | None = None,
) -> CriticLoss:
    r"""Distance between value and target; with a clipping range c the larger of two distances.

    .. math:: \max\big(d(y, V),\; d(y, V_{old} + \mathrm{clip}(V - V_{old}, -c, c))\big)

    so that moving further than c from the old value never pays (Schulman's PPO2 in OpenAI Baselines, 2017).

    Args:
        value: V, with gradient, ``[*B, 1]``.
        value_target: y, same shape.
        loss_function: see :func:`~tritonrl.objectives.distance_loss.distance_loss`.
        old_value: the value at the time of the rollout, same shape; needed with ``clip_value``.
        clip_value: c, 0-dim, in units of the value; None for no clipping.

    Raises:
        RuntimeError: if the shapes differ: ``[B]`` against ``[B, 1]`` would compare every sample with every other.

    Example:
        >>> old, new, target = torch.tensor([0.0]), torch.tensor([2.0]), torch.tensor([2.0])
        >>> critic_distance(new, target, "l2", old_value=old, clip_value=torch.tensor(0.5)).loss
        tensor([2.2500])
    """
    _check_same_shape("value_target", value_target, value)
    loss = distance_loss(value_target, value, loss_function)
    if clip_value is None or old_value is None:
        return CriticLoss(loss, None)
    _check_same_shape("old value", old_value, value)
    step = value - old_value
    clipped_loss = distance_loss(value_target, old_value + step.clamp(-clip_value, clip_value), loss_function)
    return CriticLoss(torch.maximum(loss, clipped_loss), step.detach().abs() > clip_value)


def _check_same_shape(name: str, entry: Tensor, value: Tensor) -> None:
    if entry.shape != value.shape:
        raise RuntimeError(
            f"the {name} has shape {tuple(entry.shape)} but the critic's value has shape {tuple(value.shape)}; they "
            "must "
            "be the same"
        )


def required_entry(tensordict: TensorDictBase, key: NestedKey, why: str) -> Tensor:
    """An entry of the data that this loss cannot do without.

    Raises:
        KeyError: if it is missing, with the reason why it is needed.
    """
    entry = tensordict.get(key, None)
    if entry is None:
        raise KeyError(f"the key {key!r} was not found in the tensordict: {why}")
    return entry
