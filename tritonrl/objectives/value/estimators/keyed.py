"""Mix-in: the keys of a value estimator."""

from __future__ import annotations

from tensordict import NestedKey
from tensordict.nn import TensorDictModuleBase

from .keys import AcceptedKeys, next_key, renamed_keys

__all__ = ["KeyedEstimator"]


class KeyedEstimator(TensorDictModuleBase):
    """Which entries an estimator reads and writes, and under which names.

    Attributes:
        value_network: the module whose inputs are read at this step and at the next.
        group_key: an entry of group ids, or None.
        valid_key: an entry that says which steps count, or None.
    """

    _AcceptedKeys = AcceptedKeys
    default_keys: type[AcceptedKeys] = AcceptedKeys
    value_network: TensorDictModuleBase | None
    group_key: NestedKey | None
    valid_key: NestedKey | None
    _tensor_keys: AcceptedKeys

    @property
    def tensor_keys(self) -> AcceptedKeys:
        """The names in use."""
        return self._tensor_keys

    @tensor_keys.setter
    def tensor_keys(self, keys: AcceptedKeys) -> None:
        if not isinstance(keys, AcceptedKeys):
            raise ValueError(f"tensor_keys must be {AcceptedKeys.__name__}, got {keys!r} ({type(keys).__name__}).")
        self._tensor_keys = keys

    def set_keys(self, **kwargs: NestedKey) -> None:
        """Rename entries, e.g. ``set_keys(value="critic_value", reward=("agents", "reward"))``.

        Raises:
            KeyError: for an unknown name, or a ``value`` key that the value network does not write.
            ValueError: for None, or anything but a string or a tuple of strings.
        """
        keys = renamed_keys(self._tensor_keys, kwargs)
        written = getattr(self.value_network, "out_keys", None)
        if "value" in kwargs and written is not None and keys.value not in written:
            raise KeyError(f"The value network writes {list(written)}, not the value key {keys.value!r}.")
        self._tensor_keys = keys

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries that ``forward`` reads; none without a value network."""
        return [] if self.value_network is None else self._entries_read()

    def _entries_read(self) -> list[NestedKey]:
        keys = self.tensor_keys
        inputs = [] if self.value_network is None else list(self.value_network.in_keys)
        signals = [next_key(key) for key in (keys.reward, keys.done, keys.terminated)]
        per_step = [key for key in (self.group_key, self.valid_key) if key is not None]
        return [*inputs, *signals, *(next_key(key) for key in inputs), *per_step]

    @property
    def out_keys(self) -> list[NestedKey]:
        """Entries that a dispatched call returns: advantage and value target."""
        return [self.tensor_keys.advantage, self.tensor_keys.value_target]

    @property
    def advantage_key(self) -> NestedKey:
        """Name of the advantage."""
        return self.tensor_keys.advantage

    @property
    def value_target_key(self) -> NestedKey:
        """Name of the value target."""
        return self.tensor_keys.value_target

    @property
    def value_key(self) -> NestedKey:
        """Name of the value, at the root and under ``"next"``."""
        return self.tensor_keys.value

    @property
    def reward_key(self) -> NestedKey:
        """Name of the reward, under ``"next"``."""
        return self.tensor_keys.reward

    @property
    def done_key(self) -> NestedKey:
        """Name of the done flag, under ``"next"``."""
        return self.tensor_keys.done

    @property
    def terminated_key(self) -> NestedKey:
        """Name of the terminated flag, under ``"next"``."""
        return self.tensor_keys.terminated

    @property
    def steps_to_next_obs_key(self) -> NestedKey:
        """Name of the number of environment steps that a stored step spans."""
        return self.tensor_keys.steps_to_next_obs

    @property
    def sample_log_prob_key(self) -> NestedKey:
        """Name of the log-probability of the stored action."""
        return self.tensor_keys.sample_log_prob
