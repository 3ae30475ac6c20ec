"""One-step bootstrapped returns, straight from a tensordict."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

__all__ = ["next_state_value"]


@torch.no_grad()
def next_state_value(
    tensordict: TensorDictBase,
    operator: TensorDictModuleBase | None = None,
    next_val_key: NestedKey = "state_action_value",
    gamma: float | Tensor = 0.99,
    pred_next_val: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    r"""``r + gamma**n * V(s')`` where the step is not done, ``r`` where it is.

    Args:
        tensordict: batch ``[*B]``, with ``("next", "reward")`` and ``("next", "done")`` of shape ``[*B, 1]``, and
            optionally ``steps_to_next_obs`` ``[*B, 1]`` (the ``n`` of an n-step return; 1 if absent).
        operator: network that writes ``next_val_key``. It reads the next step: entries under ``"next"``, and those of
            the root that have no next (the action excepted).
        next_val_key: entry with the value of the next step, ``[*B, 1]``.
        gamma: discount.
        pred_next_val: the value of the next step, ``[*B]`` or ``[*B, 1]``, if it is known already.
        **kwargs: passed to ``operator``.

    Returns:
        The returns, ``[*B]``, without gradient.

    Raises:
        ValueError: if neither a network nor a value is given, or the value has another shape.
        KeyError: if the network needs an entry that the data do not have.

    Examples:
        >>> step = TensorDict(next=TensorDict(reward=torch.ones(2, 1), done=torch.tensor([[True], [False]])))
        >>> next_state_value(step, pred_next_val=torch.tensor([5.0, 5.0]), gamma=0.5)
        tensor([1.0000, 3.5000])
    """
    reward = tensordict.get(("next", "reward")).squeeze(-1)
    done = tensordict.get(("next", "done")).squeeze(-1)
    if pred_next_val is None:
        if operator is None:
            raise ValueError("next_state_value: pass the operator that predicts the next value, or pred_next_val.")
        pred_next_val = operator(_next_inputs(tensordict, operator), **kwargs).get(next_val_key)
    if pred_next_val.ndim == reward.ndim + 1 and pred_next_val.shape[-1] == 1:
        pred_next_val = pred_next_val.squeeze(-1)
    if pred_next_val.shape != reward.shape:
        raise ValueError(
            f"next_state_value: the next value must have the shape of the reward, {tuple(reward.shape)}, got "
            f"{tuple(pred_next_val.shape)}."
        )
    steps = tensordict.get("steps_to_next_obs", None)
    discount = gamma if steps is None else gamma ** steps.squeeze(-1)
    return reward + torch.where(done.bool(), 0.0, discount * pred_next_val)


def _next_inputs(tensordict: TensorDictBase, operator: TensorDictModuleBase) -> TensorDictBase:
    inputs = TensorDict({}, batch_size=tensordict.batch_size, device=tensordict.device)
    for key in operator.in_keys:
        path = key if isinstance(key, tuple) else (key,)
        value = tensordict.get(("next", *path), None)
        if value is None and path[-1] != "action":
            value = tensordict.get(key, None)
        if value is None:
            raise KeyError(f"next_state_value: the operator reads {key!r}, which the next step does not have.")
        inputs.set(key, value)
    return inputs
