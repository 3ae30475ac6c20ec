"""Greedy policies on the values of all actions: the Q-value actor of DQN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential, dispatch
from torch import Tensor, nn

from tritonrl.modules.action_space import action_space_name, action_space_sizes
from tritonrl.modules.greedy_action import greedy_action

__all__ = ["QValueActor", "QValueModule", "values_network"]


class QValueModule(TensorDictModuleBase):
    """From the values of all actions to the best action and its value.

    Actions that a mask forbids get the lowest number of their type as value, in the entry of the values too.

    Args:
        action_space: encoding of the action: ``"one_hot"``, ``"mult_one_hot"``, ``"binary"``, ``"categorical"`` or
            ``"multi_categorical"``, with hyphens or underscores.
        action_value_key: entry of the values that is read; by default ``"action_value"``.
        action_mask_key: entry of the mask, True where an action is allowed; by default no mask.
        out_keys: entries of action, values and chosen value; by default ``"action"``, ``action_value_key`` and
            ``"chosen_action_value"``.
        var_nums: number of choices of each part of the action (or one number for parts of one size), for the spaces of
            several parts; taken from the spec if it tells.
        spec: of the action, of TorchRL or Gymnasium, instead of ``action_space``; kept as ``spec``.
        safe: accepted for the sake of TorchRL's signature. The best action is always one of the space.

    Raises:
        ValueError: if neither ``action_space`` nor ``spec`` is given, if they contradict each other, or if there are
            not three ``out_keys``.

    Shapes: values ``[*B, n]``, mask ``[*B, n]``, action as the space says, chosen value ``[*B, 1]``.

    Example:
        >>> best = QValueModule("categorical")
        >>> best(torch.tensor([[0.0, 3.0], [1.0, -1.0]]))
        (tensor([1, 0]), tensor([[ 0.,  3.],
                [ 1., -1.]]), tensor([[3.],
                [1.]]))
    """

    def __init__(
        self,
        action_space: str | None = None,
        action_value_key: NestedKey | None = None,
        action_mask_key: NestedKey | None = None,
        out_keys: Sequence[NestedKey] | None = None,
        var_nums: int | Sequence[int] | None = None,
        spec: Any = None,
        safe: bool = False,
    ) -> None:
        super().__init__()
        self.action_value_key: NestedKey = "action_value" if action_value_key is None else action_value_key
        self.action_mask_key = action_mask_key
        self.in_keys = [self.action_value_key] if action_mask_key is None else [self.action_value_key, action_mask_key]
        self.out_keys = self._default_out_keys() if out_keys is None else list(out_keys)
        if len(self.out_keys) != len(self._default_out_keys()):
            raise ValueError(
                f"out_keys must name {len(self._default_out_keys())} entries like {self._default_out_keys()}, got "
                f"{self.out_keys}"
            )
        self.action_space = _space_of(action_space, spec, self.out_keys[0])
        sizes = action_space_sizes(spec, self.out_keys[0]) if spec is not None else None
        self.var_nums = sizes if var_nums is None else var_nums
        self.spec = spec
        self.safe = safe

    def _default_out_keys(self) -> list[NestedKey]:
        return ["action", self.action_value_key, "chosen_action_value"]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write action, values (masked) and value of the action.

        Raises:
            KeyError: if the values or the mask are missing.
            ValueError: if the mask has another shape than the values.
        """
        action_value = self._masked(tensordict.get(self.action_value_key), tensordict)
        action = greedy_action(action_value, self.action_space, self.var_nums)
        chosen = self._value_of(action, action_value)
        tensordict.update(dict(zip(self.out_keys, (action, action_value, chosen), strict=True)))
        return tensordict

    def _value_of(self, action: Tensor, action_value: Tensor) -> Tensor:
        """Value of the best action, ``[*B, 1]``."""
        if self.action_space == "categorical":
            return action_value.gather(-1, action.unsqueeze(-1))
        if self.action_space == "multi_categorical":
            action = greedy_action(action_value, "mult_one_hot", self.var_nums)
        return torch.where(action > 0, action_value, torch.zeros_like(action_value)).sum(-1, keepdim=True)

    def _masked(self, action_value: Tensor, tensordict: TensorDictBase) -> Tensor:
        """The values, with the lowest number there is for each action that is forbidden."""
        if self.action_mask_key is None:
            return action_value
        mask = tensordict.get(self.action_mask_key, None)
        if mask is None:
            raise KeyError(f"the action mask {self.action_mask_key!r} was not found in the input tensordict")
        if mask.shape != action_value.shape:
            raise ValueError(
                f"the action mask {self.action_mask_key!r} has shape {tuple(mask.shape)} but the action values "
                f"{self.action_value_key!r} have shape {tuple(action_value.shape)}"
            )
        lowest = torch.finfo(action_value.dtype).min
        return torch.where(mask.bool(), action_value, torch.full_like(action_value, lowest))


class QValueActor(TensorDictSequential):
    """The policy of DQN: a network of action values, then the best action.

    Args:
        module: the network; one that does not read tensordicts is wrapped to read ``in_keys``.
        in_keys: entries that the network reads; by default ``["observation"]``.
        spec: of the action, instead of ``action_space``; kept as ``spec``.
        safe: see :class:`QValueModule`.
        action_space: see :class:`QValueModule`.
        action_value_key: entry of the values; by default ``"action_value"``.
        action_key: entry of the action; by default ``"action"``.
        chosen_action_value_key: entry of the value of the action; by default ``"chosen_action_value"``.
        action_mask_key: see :class:`QValueModule`.
        var_nums: see :class:`QValueModule`.

    Raises:
        KeyError: if a network on tensordicts does not write ``action_value_key``.
        ValueError: if it reads other entries than ``in_keys``, and as :class:`QValueModule`.

    Example:
        >>> from tensordict import TensorDict
        >>> actor = QValueActor(nn.Linear(4, 2), in_keys=["observation"], action_space="one-hot")
        >>> data = actor(TensorDict({"observation": torch.zeros(3, 4)}, [3]))
        >>> data["action"].shape, data["chosen_action_value"].shape
        (torch.Size([3, 2]), torch.Size([3, 1]))
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        in_keys: Sequence[NestedKey] | None = None,
        spec: Any = None,
        safe: bool = False,
        action_space: str | None = None,
        action_value_key: NestedKey | None = None,
        action_key: NestedKey | None = None,
        chosen_action_value_key: NestedKey | None = None,
        action_mask_key: NestedKey | None = None,
        var_nums: int | Sequence[int] | None = None,
    ) -> None:
        value_key: NestedKey = "action_value" if action_value_key is None else action_value_key
        best = QValueModule(
            action_space,
            action_value_key=value_key,
            action_mask_key=action_mask_key,
            out_keys=[
                "action" if action_key is None else action_key,
                value_key,
                "chosen_action_value" if chosen_action_value_key is None else chosen_action_value_key,
            ],
            var_nums=var_nums,
            spec=spec,
            safe=safe,
        )
        super().__init__(values_network(module, in_keys, value_key), best)
        self.action_space = best.action_space
        self.action_value_key = value_key
        self.spec = spec


def values_network(
    module: nn.Module | Callable[..., Any], in_keys: Sequence[NestedKey] | None, action_value_key: NestedKey
) -> TensorDictModuleBase:
    """The network of action values as a module on tensordicts.

    Raises:
        KeyError: if a network on tensordicts does not write ``action_value_key``.
        ValueError: if it reads other entries than ``in_keys``.
    """
    if not isinstance(module, TensorDictModuleBase):
        return TensorDictModule(module, in_keys or ["observation"], [action_value_key])
    if action_value_key not in module.out_keys:
        raise KeyError(
            f"module must write the action values {action_value_key!r}, but its out_keys are {module.out_keys}"
        )
    if in_keys is not None and set(in_keys) != set(module.in_keys):
        raise ValueError(f"in_keys {list(in_keys)} contradict the in_keys of module, {module.in_keys}")
    return module


def _space_of(action_space: str | None, spec: Any, action_key: NestedKey) -> str:
    """The one name of the space that ``action_space`` and ``spec`` agree on."""
    if action_space is None and spec is None:
        raise ValueError("either action_space or spec must be given: the encoding of the action is unknown")
    names = {action_space_name(given, action_key) for given in (action_space, spec) if given is not None}
    if len(names) != 1:
        raise ValueError(f"action_space {action_space!r} contradicts the spec of the action, {spec!r}")
    return names.pop()
