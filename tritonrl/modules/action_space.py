"""Discrete action spaces: how an action is encoded, from a name, a spec of TorchRL or a space of Gymnasium."""

from __future__ import annotations

from typing import Any

from tensordict import NestedKey

__all__ = ["ACTION_SPACES", "action_leaf", "action_space_name", "action_space_sizes"]

ACTION_SPACES = ("one_hot", "mult_one_hot", "binary", "categorical", "multi_categorical")
"""The encodings of one action:

=====================  ========================================================================================
``one_hot``            ``[*B, n]``, a single 1
``mult_one_hot``       ``[*B, n_1 + ... + n_k]``, k one-hot encodings side by side
``binary``             ``[*B, n]``, each entry 0 or 1
``categorical``        ``[*B]`` or ``[*B, 1]``, the index of the choice
``multi_categorical``  ``[*B, k]``, k indices
=====================  ========================================================================================
"""

_ALIASES = {
    **{name: name for name in ACTION_SPACES},
    "multi_one_hot": "mult_one_hot",
    "mult_categorical": "multi_categorical",
}
# By the name of the class, so that neither TorchRL nor Gymnasium need be installed. More than one class of the bases may
# be in here (a MultiOneHot is a OneHot); the first in the method resolution order is the most specific.
_CLASSES = {
    "OneHot": "one_hot",
    "MultiOneHot": "mult_one_hot",
    "Categorical": "categorical",
    "MultiCategorical": "multi_categorical",
    "Binary": "binary",
    "Discrete": "categorical",
    "MultiDiscrete": "multi_categorical",
    "MultiBinary": "binary",
}


def action_space_name(action_space: Any, action_key: NestedKey = "action") -> str:
    """The encoding of an action, one of :data:`ACTION_SPACES`.

    Args:
        action_space: a name (hyphens and underscores are alike; ``multi_one_hot`` and ``mult_categorical`` are known
            too), a spec of TorchRL (``OneHot``, ``MultiOneHot``, ``Categorical``, ``MultiCategorical``, ``Binary``), a
            space of Gymnasium (``Discrete``, ``MultiDiscrete``, ``MultiBinary``), or a container of such (``Composite``,
            ``Dict``).
        action_key: where in a container the action is. A container that holds one space only needs no key.

    Raises:
        ValueError: if it is none of these, or a Gymnasium space that does not count from 0.
        KeyError: if a container has no entry for the action.

    Examples:
        >>> action_space_name("multi-one-hot")
        'mult_one_hot'
        >>> import gymnasium
        >>> action_space_name(gymnasium.spaces.Discrete(3))
        'categorical'
    """
    if isinstance(action_space, str):
        name = _ALIASES.get(action_space.replace("-", "_"))
    else:
        leaf = action_leaf(action_space, action_key)
        name = next((_CLASSES[base.__name__] for base in type(leaf).__mro__ if base.__name__ in _CLASSES), None)
        _check_start(leaf)
    if name is None:
        raise ValueError(
            f"action_space must be one of {ACTION_SPACES} or the spec of a discrete action, got {action_space!r}"
        )
    return name


def action_space_sizes(action_space: Any, action_key: NestedKey = "action") -> tuple[int, ...] | None:
    """The number of choices of each part of an action that has several, or None if that cannot be told.

    Args:
        action_space: as for :func:`action_space_name`.
        action_key: likewise.

    Examples:
        >>> import gymnasium
        >>> action_space_sizes(gymnasium.spaces.MultiDiscrete([2, 3]))
        (2, 3)
        >>> action_space_sizes("multi_categorical") is None
        True
    """
    if action_space is None or isinstance(action_space, str):
        return None
    sizes = getattr(action_leaf(action_space, action_key), "nvec", None)
    if sizes is None:
        return None
    sizes = sizes.tolist() if hasattr(sizes, "tolist") else list(sizes)
    while sizes and isinstance(sizes[0], list):
        sizes = sizes[0]  # A spec with batch dimensions repeats the sizes.
    return tuple(int(size) for size in sizes)


def action_leaf(space: Any, action_key: NestedKey) -> Any:
    """The space of the action itself, out of one that may be a container of spaces.

    Raises:
        KeyError: if a container has no entry for the action.
    """
    path = (action_key,) if isinstance(action_key, str) else tuple(action_key)
    leaf = space
    while _is_container(leaf):
        names = list(leaf.keys())
        present = [name for name in names if leaf[name] is not None]
        if path and path[0] in names:
            leaf, path = leaf[path[0]], path[1:]
        elif len(present) == 1:
            leaf = leaf[present[0]]
        else:
            raise KeyError(f"the action {action_key!r} is not in the spec, which has the entries {names}")
    return leaf


def _is_container(space: Any) -> bool:
    return hasattr(space, "keys") and hasattr(space, "__getitem__")


def _check_start(leaf: Any) -> None:
    start = getattr(leaf, "start", 0)
    if any(start.ravel()) if hasattr(start, "ravel") else start != 0:
        raise ValueError(f"action_space must count its actions from 0, got start={start} in {leaf!r}")
