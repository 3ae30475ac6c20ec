"""What the temporal-difference estimators share: a return as value target, and the advantage as return minus value."""

from __future__ import annotations

from typing import ClassVar, Unpack

from tensordict import NestedKey, TensorDictBase
from tensordict.nn import skip_existing
from torch import Tensor

from .base import ValueEstimatorBase
from .finite_check import finite, finite_steps
from .keys import next_key
from .network_inputs import read_network_inputs
from .options import EstimatorOptions
from .signals import Signals, Steps, check_shapes, read_signals, stored_value, write_entries, zero_where_invalid

__all__ = ["TDEstimatorBase"]


class TDEstimatorBase(ValueEstimatorBase):
    """Base of TD(0), TD(1) and TD(lambda): a subclass says in :meth:`_returns` what the return is.

    Keyword Args:
        gamma: discount, a number or a tensor (0-dim, or one per step). A number is kept in float64 and rounded to the
            precision of the data; a tensor stays what it is.
        average_rewards: standardise the rewards to mean 0 and standard deviation 1 first, over the batch or over each
            group of ``group_key``. They replace the rewards in the rollout, so a second call finds them there.
        time_dim: batch dimension that is time; by default the one named ``"time"``, else the last.
        **options: those of :class:`ValueEstimatorBase`, ``value_network`` (required) among them.
    """

    _min_reward_std: ClassVar[float] = 1e-5
    _needs_done: ClassVar[bool] = True

    def __init__(
        self,
        *,
        gamma: float | Tensor,
        average_rewards: bool = False,
        time_dim: int | None = None,
        **options: Unpack[EstimatorOptions],
    ) -> None:
        super().__init__(**options)
        self._register_coefficient("gamma", gamma)
        self.average_rewards = average_rewards
        self.time_dim = time_dim

    def _returns(self, steps: Steps) -> Tensor:
        """The return of each step. ``steps.value`` is not to be used."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its return is.")

    def value_estimate(
        self,
        tensordict: TensorDictBase,
        target_params: TensorDictBase | None = None,
        next_value: Tensor | None = None,
        time_dim: int | None = None,
    ) -> Tensor:
        """The return ``[*B, T, *F]``. Nothing is written, except standardised rewards (``average_rewards``).

        The ambient grad mode holds, whatever ``differentiable`` says, and the next value keeps its graph.

        Args:
            tensordict: a rollout.
            target_params: parameters for the value network, used as they come; by default its own, held out of the
                graph.
            next_value: values of the next states ``[*B, T, *F]``, to be used instead of the network's.
            time_dim: batch dimension that is time.

        Raises:
            RuntimeError: if ``time_dim`` is no batch dimension, or shapes do not match.
            KeyError: if an entry is missing.
            ValueError: if the next value is missing and there is no value network.
        """
        data = self._without_padding(tensordict)
        axis = self._time_axis(data, time_dim)
        signals = read_signals(data, self.tensor_keys, need_done=self._needs_done)
        if next_value is None:
            next_value = self._next_value(data, target_params)
        signals = self._fit_signals(signals, next_value)
        self._check_signals(signals, next_value)
        gamma = self._discount(data, signals.reward, next_value)
        steps = self._kept(Steps(gamma, *signals, next_value, next_value, axis), data)
        steps = finite_steps(steps, self._names_of_inputs())
        steps, written = self._with_average_rewards(steps, data)
        returns = self._returns(steps)
        finite({**written, self.tensor_keys.value_target: returns})
        write_entries(tensordict, written)
        return returns

    def _results(self, steps: Steps, tensordict: TensorDictBase) -> dict[NestedKey, Tensor]:
        steps, written = self._with_average_rewards(steps, tensordict)
        returns = self._returns(steps)
        written[self.tensor_keys.advantage] = zero_where_invalid(returns - steps.value, steps.valid)
        written[self.tensor_keys.value_target] = zero_where_invalid(returns, steps.valid)
        return written

    def _with_average_rewards(self, steps: Steps, tensordict: TensorDictBase) -> tuple[Steps, dict[NestedKey, Tensor]]:
        if not self.average_rewards:
            return steps, {}
        valid = None if self.valid_key is None else steps.valid
        reward = self._standardised(steps.reward, self._min_reward_std, tensordict, valid)
        return steps._replace(reward=reward), {next_key(self.tensor_keys.reward): reward}

    def _next_value(self, tensordict: TensorDictBase, target_params: TensorDictBase | None) -> Tensor:
        key = next_key(self.tensor_keys.value)
        if self.value_network is None:
            return stored_value(tensordict, key)
        existing = tensordict.get(key, None) if skip_existing() else None
        if existing is not None:
            return existing
        inputs = read_network_inputs(tensordict, self.value_network.in_keys)
        return self._caller(self.value_network).one(inputs.next, target_params)

    def _check_signals(self, signals: Signals, next_value: Tensor) -> None:
        keys = self.tensor_keys
        check_shapes(
            (next_key(keys.value), next_value),
            (next_key(keys.reward), signals.reward),
            (next_key(keys.done), signals.done),
            (next_key(keys.terminated), signals.terminated),
        )
