"""The keys of a loss: which entry of the tensordict plays which role."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tensordict import NestedKey, unravel_key
from torch import nn

__all__ = ["LossKeys"]


class LossKeys(nn.Module):
    """Mix-in: ``tensor_keys``, ``set_keys`` and the cached ``in_keys``."""

    @dataclass
    class _AcceptedKeys:
        """Overridden by each loss."""

    def _init_keys(self) -> None:
        self._tensor_keys = self._AcceptedKeys()

    @property
    def tensor_keys(self) -> Any:
        """The keys in use: an instance of the loss's ``_AcceptedKeys``. Change them with :meth:`set_keys`."""
        return self._tensor_keys

    def _default_key(self, name: str) -> Any:
        defaults = getattr(type(self), "default_keys", self._AcceptedKeys)
        return getattr(defaults() if isinstance(defaults, type) else defaults, name)

    def set_keys(self, **kwargs: NestedKey | None) -> None:
        """Choose which entries the loss reads and writes; the value estimator follows.

        Args:
            **kwargs: role of the entry (a field of ``_AcceptedKeys``) and its key; None brings the default back.

        Raises:
            ValueError: if a role is unknown.
            KeyError: from the value estimator, e.g. if ``value`` is not among the out_keys of its network. The keys of
                the loss are then as they were before.

        Examples:
            >>> loss.set_keys(reward=("agents", "reward"))  # doctest: +SKIP
        """
        accepted = vars(self._tensor_keys)
        unknown = sorted(kwargs.keys() - accepted.keys())
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)} is not an accepted tensordict key. Accepted keys are: {dict(accepted)}."
            )
        previous = dict(accepted)
        for name, key in kwargs.items():
            setattr(self._tensor_keys, name, self._default_key(name) if key is None else key)
        try:
            self._forward_value_estimator_keys(**kwargs)
        except Exception:
            vars(self._tensor_keys).update(previous)
            raise

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        """Hand the keys on to whoever reads the same entries."""

    def _set_deprecated_ctor_keys(self, **kwargs: Any) -> None:
        """Refuse the constructor arguments that once chose keys.

        Raises:
            RuntimeError: if one of them is not None.
        """
        given = sorted(name for name, value in kwargs.items() if value is not None)
        if given:
            raise RuntimeError(
                f"{', '.join(given)}: keys are not constructor arguments; call "
                f"set_keys({given[0].removesuffix('_key')}=...) on the loss instead."
            )

    # -- in_keys --------------------------------------------------------------------------------------------------

    @property
    def in_keys(self) -> list[NestedKey]:
        """The entries that the loss may read, for ``dispatch``: built once by ``_set_in_keys``, or assigned."""
        self._build_in_keys()
        if getattr(self, "_in_keys", None) is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'in_keys'")
        return self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    def _build_in_keys(self) -> None:
        """Collect the in_keys if they are not there yet."""
        if getattr(self, "_in_keys", None) is None:
            self._set_in_keys()

    def _set_in_keys(self) -> None:
        """Collect what :meth:`_iter_in_keys` names, each key once."""
        keys = self._iter_in_keys()
        if keys is not None:
            self._in_keys = list(dict.fromkeys(unravel_key(key) for key in keys))

    def _iter_in_keys(self) -> Iterable[NestedKey] | None:
        """The entries that the loss may read; None for a loss that does not say (or overrides ``_set_in_keys``)."""
        return None
