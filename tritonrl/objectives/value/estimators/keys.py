"""The names of the entries that a value estimator reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tensordict import NestedKey, unravel_key
from tensordict.nn import composite_lp_aggregate

__all__ = ["AcceptedKeys", "next_key", "renamed_keys"]


def default_log_prob_key() -> str:
    """Where a policy writes the log-probability of its action; tensordict's aggregation switch decides the name."""
    return "sample_log_prob" if composite_lp_aggregate() else "action_log_prob"


@dataclass
class AcceptedKeys:
    """Names of the entries of a value estimator, with their defaults.

    ``reward``, ``done`` and ``terminated`` are read under ``"next"``; ``value`` at the root and under ``"next"``;
    everything else at the root.

    Examples:
        >>> AcceptedKeys().value
        'state_value'
    """

    advantage: NestedKey = "advantage"
    value_target: NestedKey = "value_target"
    value: NestedKey = "state_value"
    reward: NestedKey = "reward"
    done: NestedKey = "done"
    terminated: NestedKey = "terminated"
    steps_to_next_obs: NestedKey = "steps_to_next_obs"
    sample_log_prob: NestedKey = field(default_factory=default_log_prob_key)


def next_key(key: NestedKey) -> tuple[str, ...]:
    """The place of ``key`` in the next step: ``"obs"`` becomes ``("next", "obs")``."""
    return ("next", key) if isinstance(key, str) else ("next", *key)


def renamed_keys(keys: AcceptedKeys, changes: Mapping[str, Any]) -> AcceptedKeys:
    """A copy of ``keys`` with some of them renamed; every new name is checked before any is taken over.

    Raises:
        KeyError: if a name is not one of the accepted keys.
        ValueError: if a key is ``None`` or not a string or a tuple of strings.
    """
    accepted = [entry.name for entry in fields(keys)]
    checked: dict[str, NestedKey] = {}
    for name, key in changes.items():
        if name not in accepted:
            raise KeyError(f"{name!r} is not a key of this value estimator; its keys are {accepted}.")
        if key is None:
            raise ValueError(f"The key {name!r} cannot be None.")
        if not isinstance(key, (str, tuple, list)):
            raise ValueError(
                f"The key {name!r} must be a string or a tuple of strings, got {key!r} ({type(key).__name__})."
            )
        checked[name] = unravel_key(tuple(key) if isinstance(key, list) else key)
    return replace(keys, **checked)
