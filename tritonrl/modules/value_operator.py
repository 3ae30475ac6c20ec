"""A value network on tensordicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tensordict import NestedKey
from tensordict.nn import TensorDictModule
from torch import nn

__all__ = ["ValueOperator"]


class ValueOperator(TensorDictModule):
    """A state value, or a state-action value where the action is among its inputs.

    Args:
        module: the network; several inputs come as several arguments.
        in_keys: entries that it reads; by default ``["observation"]``.
        out_keys: entries that it writes; by default ``["state_action_value"]`` if ``"action"`` is read, else
            ``["state_value"]``.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> critic = ValueOperator(nn.Linear(4, 1))
        >>> critic(TensorDict({"observation": torch.zeros(3, 4)}, [3]))["state_value"].shape
        torch.Size([3, 1])
        >>> ValueOperator(nn.Bilinear(4, 2, 1), in_keys=["observation", "action"]).out_keys
        ['state_action_value']
    """

    def __init__(
        self,
        module: nn.Module | Callable[..., Any],
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
    ) -> None:
        if in_keys is None:
            in_keys = ["observation"]
        if out_keys is None:
            out_keys = ["state_action_value"] if "action" in in_keys else ["state_value"]
        super().__init__(module, in_keys=in_keys, out_keys=out_keys)
