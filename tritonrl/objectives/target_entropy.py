"""The entropy that a soft actor-critic aims at: a number, or minus the dimension of the action."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from tensordict import NestedKey
from torch import Tensor, nn

from tritonrl.objectives.log_weight import as_key_list

__all__ = ["TargetEntropy", "auto_target_entropy"]


class TargetEntropy(nn.Module):
    """Mix-in: ``target_entropy``, given, or derived from the spec of the action (``"auto"``).

    It is a buffer under the name that TorchRL gives it in a state dict. Where nothing says what it is, the loss can
    still be built, saved and loaded; only computing with it is an error.
    """

    _target_entropy_name: ClassVar[str] = "_target_entropy"
    tensor_keys: Any

    def _register_target_entropy(
        self, target_entropy: str | float | Tensor, action_spec: Any, device: torch.device | None = None
    ) -> None:
        """Register the buffer.

        Args:
            target_entropy: a number, or ``"auto"`` for :func:`auto_target_entropy`.
            action_spec: the spec of the action, or None if it is not known.
            device: device of the buffer.

        Raises:
            ValueError: for another string, or a spec without shapes.
            TypeError: for what is neither a number nor a string.
        """
        self._auto_target_entropy_spec = None
        self.register_buffer(self._target_entropy_name, None)
        if isinstance(target_entropy, str):
            if target_entropy != "auto":
                raise ValueError(f"target_entropy must be a number or 'auto', got {target_entropy!r}")
            self._auto_target_entropy_spec = action_spec
            self._set_target_entropy_from_spec(device)
        elif isinstance(target_entropy, (int, float, Tensor)) and not isinstance(target_entropy, bool):
            self._set_target_entropy(torch.as_tensor(target_entropy, device=device))
        else:
            raise TypeError(f"target_entropy must be a number or 'auto', got {type(target_entropy).__name__}")

    def _set_target_entropy(self, value: Tensor) -> None:
        """Keep ``value``; an integer as a float, which is what the log-probabilities that it is added to are."""
        value = value.detach().clone().reshape(())
        self._buffers[self._target_entropy_name] = value if value.is_floating_point() else value.float()

    def _set_target_entropy_from_spec(self, device: torch.device | None) -> None:
        """Derive the target entropy from the spec, if it has the action. Losses call it again when that key changes."""
        spec = self._auto_target_entropy_spec
        if spec is None:
            return
        try:
            value = auto_target_entropy(spec, self.tensor_keys.action)
        except KeyError:  # The right key may be chosen later (set_keys).
            self._buffers[self._target_entropy_name] = None
        else:
            self._set_target_entropy(torch.tensor(value, device=device))

    @property
    def target_entropy(self) -> Tensor:
        """The entropy aimed at, 0-dim.

        Raises:
            RuntimeError: if it was to be derived and there is no spec of the action to derive it from.
        """
        value = self._buffers.get(self._target_entropy_name)
        if value is None:
            # No AttributeError, which would leave a property as "no attribute 'target_entropy'".
            raise RuntimeError(
                f"{type(self).__name__} cannot derive target_entropy='auto': the dimension of the action is not known. "
                f"Pass an action_spec (with an entry for {self.tensor_keys.action!r} if it is a container), an actor with "
                "a spec, or a number as target_entropy"
            )
        return value

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A loss that does not know its target entropy takes the saved one, one that does loads states without it."""
        key, own = f"{prefix}{self._target_entropy_name}", self._buffers.get(self._target_entropy_name)
        if own is None and isinstance(state_dict.get(key), Tensor):
            self._set_target_entropy(state_dict[key].to(getattr(self, "_default_device", None)))
        elif own is not None:
            state_dict.setdefault(key, own)
        super()._load_from_state_dict(state_dict, prefix, *args)


def auto_target_entropy(action_spec: Any, action_key: NestedKey | list[NestedKey] = "action") -> float:
    """``-dim(A)``, the usual target of SAC: minus the number of numbers in one action.

    Args:
        action_spec: anything with a ``shape`` (a spec of TorchRL, a ``gymnasium.spaces.Box``), or a container of such by
            key. Of a container that has a (batch) shape itself, those leading dimensions do not count. Of several
            actions, all count.
        action_key: where in a container the action is; a list for several actions.

    Raises:
        ValueError: if the spec has no shape.
        KeyError: if a container does not have the action.

    Examples:
        >>> import types
        >>> auto_target_entropy(types.SimpleNamespace(shape=(3,)))
        -3.0
    """
    if not _is_container(action_spec):
        return -float(_count(action_spec, 0))
    return -float(sum(_count(*_leaf(action_spec, key)) for key in as_key_list(action_key)))


def _is_container(spec: Any) -> bool:
    return hasattr(spec, "keys") and hasattr(spec, "__getitem__")


def _dims(spec: Any) -> int:
    return len(getattr(spec, "shape", None) or ())


def _leaf(spec: Any, key: NestedKey) -> tuple[Any, int]:
    """The spec under ``key``, and the number of batch dimensions of the container that holds it."""
    leaf, batch_dims = spec, 0
    for part in (key,) if isinstance(key, str) else key:
        if not _is_container(leaf) or part not in list(leaf.keys()) or leaf[part] is None:
            raise KeyError(f"the action {key!r} is not in action_spec, which has the entries {list(spec.keys())}")
        leaf, batch_dims = leaf[part], max(batch_dims, _dims(leaf))
    return leaf, batch_dims


def _count(spec: Any, batch_dims: int) -> int:
    if _is_container(spec):
        own = max(batch_dims, _dims(spec))
        return sum(_count(entry, own) for _, entry in spec.items() if entry is not None)
    shape = getattr(spec, "shape", None)
    if shape is None:
        raise ValueError(f"action_spec must have a shape, got {type(spec).__name__}")
    return math.prod(shape[batch_dims:])
