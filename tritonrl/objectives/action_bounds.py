"""The bounds of a continuous action, from a spec or a pair."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from tensordict import NestedKey
from torch import Tensor

__all__ = ["ActionBounds", "action_bounds"]


class ActionBounds(NamedTuple):
    """Attributes:
    low: smallest value of each number of the action, 0-dim for all of them.
    high: largest value, same shape.
    """

    low: Tensor
    high: Tensor


def action_bounds(
    action_spec: Any = None,
    bounds: tuple[Any, Any] | None = None,
    action_key: NestedKey = "action",
    device: torch.device | None = None,
) -> ActionBounds:
    """The bounds of an action, which are given by exactly one of two arguments.

    Args:
        action_spec: a bounded spec: of TorchRL (it has a ``space`` with ``low`` and ``high``), a ``gymnasium.spaces.Box``
            (it has them itself), or a container of such by key. Of a container with a batch shape the bounds of the
            first element are taken.
        bounds: ``(low, high)``, each a number, a sequence, an array or a tensor that broadcasts against the action.
        action_key: where in a container the action is.
        device: where the bounds are to be.

    Raises:
        ValueError: if both or none are given, ``bounds`` is no pair, a spec has no bounds, or ``low > high`` anywhere.
        KeyError: if a container has no such action.

    Examples:
        >>> action_bounds(bounds=(-1, [1.0, 2.0])).high
        tensor([1., 2.])
    """
    if (action_spec is None) == (bounds is None):
        raise ValueError(
            f"One of 'bounds' and 'action_spec' must be provided, but not both or none, got bounds={bounds} and "
            f"action_spec={action_spec}"
        )
    low, high = _pair(bounds) if action_spec is None else _bounds_of_spec(action_spec, action_key)
    low, high = (_floating(bound).to(device) for bound in (low, high))
    if bool((low > high).any()):
        raise ValueError(f"Got a low bound higher than a high bound: low={low}, high={high}")
    return ActionBounds(low, high)


def _pair(bounds: Any) -> tuple[Any, Any]:
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise ValueError(f"bounds must be a pair (low, high), got {bounds!r}")
    return bounds[0], bounds[1]


def _floating(bound: Any) -> Tensor:
    bound = torch.as_tensor(bound)
    # A copy: the numbers of the spec are not the loss's to move or to convert.
    return bound.clone() if bound.is_floating_point() else bound.to(torch.get_default_dtype())


def _bounds_of_spec(action_spec: Any, action_key: NestedKey) -> tuple[Tensor, Tensor]:
    leaf, batch_dims = action_spec, 0
    if hasattr(action_spec, "keys"):
        for part in (action_key,) if isinstance(action_key, str) else action_key:
            if not hasattr(leaf, "keys") or part not in list(leaf.keys()):
                raise KeyError(f"action_spec has no entry {action_key!r}")
            batch_dims = len(getattr(leaf, "shape", None) or ())
            leaf = leaf[part]
    space = getattr(leaf, "space", leaf)
    if not (hasattr(space, "low") and hasattr(space, "high")):
        raise ValueError(f"action_spec is not of type Bounded: {type(leaf).__name__} has no low and high")
    first = (0,) * batch_dims
    low, high = _floating(space.low[first]), _floating(space.high[first])
    largest = torch.finfo(high.dtype).max  # Where there is no bound, TorchRL says so, and Gymnasium says infinity.
    if bool((low <= -largest).all()) and bool((high >= largest).all()):
        raise ValueError(f"action_spec is not of type Bounded: {type(leaf).__name__} has no finite bound")
    return low, high
