"""What all value estimators share: options, the calls of the value network, and the order of work in ``forward``."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase, dispatch, skip_existing
from torch import Tensor, nn

from tritonrl.objectives.random_modules import draws_random_numbers
from tritonrl.objectives.validity import hide_invalid

from .chunks import Chunking
from .coefficients import EstimatorCoefficients
from .finite_check import finite, finite_steps
from .keyed import KeyedEstimator
from .keys import next_key
from .network_inputs import read_network_inputs
from .options import check_options
from .shifted import SHIFTED_VALID_KEY, cut_at_last_valid, plan_slots, shifted_values
from .signals import Signals, Steps, check_shapes, per_step, read_entry, read_signals, stored_value, write_entries
from .standardise import standardise
from .time_axis import resolve_time_dim
from .valid_steps import keep_valid, read_valid
from .value_calls import ValueCaller, Values

__all__ = ["ValueEstimatorBase"]


class ValueEstimatorBase(EstimatorCoefficients, KeyedEstimator):
    """Base of the value estimators: reads a rollout, writes values, advantage and value target into it.

    A subclass implements :meth:`_results` (what ``forward`` writes) and :meth:`value_estimate`. ``forward``

    1. reads reward, done and terminated of the next step (a missing ``terminated`` is ``done``);
    2. obtains the value of each state and of each true next state from ``value_network``;
    3. checks all shapes, computes, and only then writes: after an error the tensordict is as it was.

    Gradients: no parameter of the value network ever receives one; next values are detached; values are not. The
    network's ``requires_grad`` flags are never touched.

    Keyword Args:
        value_network: tensordict module that writes the value key, or None to read values from the data. It is not a
            submodule: parameters, state dict and ``.to()`` of the estimator do not include it.
        shifted: obtain values and next values from one pass over ``T + shifted_budget`` steps. Requires that inside a
            trajectory the next observation of a step is the observation of the step behind it (no multi-step rewards).
        shifted_budget: 1 + the number of truncations inside a row that must be evaluated exactly. A row with more of
            them loses steps at its end: False in ``"shifted_valid"``, and 0 in advantage and target.
        differentiable: keep the graph of the advantage to rewards and root observations (enables gradients even inside
            ``no_grad``); otherwise everything is computed without gradients.
        skip_existing: True keeps value entries that are in the data, on either side; False always recomputes; None
            follows ``tensordict.nn.set_skip_existing``.
        device: device of the coefficients, by default torch's default device. They follow the data.
        deactivate_vmap: call the network twice rather than once under vmap (needed for LSTM and GRU networks).
        value_chunk_size, num_chunks, num_chunk, value_chunk_dim: evaluate the network on pieces of the rollout; see
            :class:`~tritonrl.objectives.value.estimators.chunks.Chunking`.
        group_key: entry with one integer id per step; standardisation is then done group by group.
        valid_key: bool entry ``[*B, T]`` or ``[*B, T, 1]`` that is False in padding. A step before padding ends its
            trajectory as the last step of a rollout does; in padding advantage and target are 0; statistics leave it
            out. (A loss does so too if given that key as ``loss_mask_key``.)
        advantage_key, value_target_key, value_key: gone; use :meth:`set_keys`.

    Raises:
        ValueError, TypeError: for options out of range.
        RuntimeError: for one of the keys that are gone.
    """

    is_functional = False
    is_stateless = False
    keys_from_loss: ClassVar[tuple[str, ...]] = ()
    """Keys that a loss hands to this estimator besides those that every estimator has."""

    def __init__(
        self,
        *,
        value_network: TensorDictModuleBase | None,
        shifted: bool = False,
        shifted_budget: int = 1,
        differentiable: bool = False,
        skip_existing: bool | None = None,
        device: torch.device | str | int | None = None,
        deactivate_vmap: bool = False,
        value_chunk_size: int | None = None,
        num_chunks: int | None = None,
        num_chunk: int | None = None,
        value_chunk_dim: int = 0,
        group_key: NestedKey | None = None,
        valid_key: NestedKey | None = None,
        advantage_key: NestedKey | None = None,
        value_target_key: NestedKey | None = None,
        value_key: NestedKey | None = None,
    ) -> None:
        super().__init__()
        check_options(
            shifted, shifted_budget, advantage_key=advantage_key, value_target_key=value_target_key, value_key=value_key
        )
        self._chunking = Chunking.checked(value_chunk_size, num_chunks, num_chunk, value_chunk_dim)
        self._device = None if device is None else torch.device(device)
        self.__dict__["value_network"] = value_network  # Past nn.Module, which would make it a submodule.
        self.shifted = shifted
        self.shifted_budget = shifted_budget
        self.differentiable = differentiable
        self.skip_existing = skip_existing
        self.deactivate_vmap = deactivate_vmap
        self.group_key = None if group_key is None else unravel_key(group_key)
        self.valid_key = None if valid_key is None else unravel_key(valid_key)
        self.time_dim: int | None = None
        self._tensor_keys = self.default_keys()
        self._vmap_randomness: str | None = None

    @classmethod
    def for_loss(cls, loss: nn.Module, **hyperparams: Any) -> ValueEstimatorBase:
        """The estimator of a loss module.

        The value network is ``hyperparams["value_network"]`` if given (even None), else the loss's ``critic_network``,
        else its ``value_network``. The other hyper-parameters go to the constructor.
        """
        if "value_network" not in hyperparams:
            critic = getattr(loss, "critic_network", None)
            hyperparams["value_network"] = getattr(loss, "value_network", None) if critic is None else critic
        return cls(**hyperparams)

    @property
    def value_chunk_size(self) -> int | None:
        """Length of the pieces on which the value network is evaluated."""
        return self._chunking.size

    @property
    def num_chunks(self) -> int | None:
        """Number of the pieces on which the value network is evaluated."""
        return self._chunking.number

    @property
    def value_chunk_dim(self) -> int:
        """Batch dimension along which the pieces are cut."""
        return self._chunking.dim

    @property
    def vmap_randomness(self) -> str:
        """``torch.vmap``'s mode for random operations: as set, else "different" for a random network, else "error"."""
        if self._vmap_randomness is not None:
            return self._vmap_randomness
        if torch.compiler.is_compiling():
            return "different"  # Walking through the network's modules is not for a graph.
        network = self.value_network
        return "different" if isinstance(network, nn.Module) and draws_random_numbers([network]) else "error"

    def set_vmap_randomness(self, value: str) -> None:
        """Set ``torch.vmap``'s mode for random operations: "error", "same" or "different"."""
        self._vmap_randomness = value

    @dispatch
    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        params: TensorDictBase | None = None,
        target_params: TensorDictBase | None = None,
        time_dim: int | None = None,
    ) -> TensorDictBase:
        """Write values, advantage and value target into ``tensordict`` and return it.

        Args:
            tensordict: a rollout with ``batch_size`` ``[*B, T]``, or time elsewhere (``time_dim``).

        Keyword Args:
            params: parameters for the value network (detached here); by default its own.
            target_params: parameters for the next values (detached here); by default ``params``.
            time_dim: batch dimension that is time; by default the constructor's, else the one named ``"time"``, else
                the last.

        Raises:
            RuntimeError: if there is no batch dimension, ``time_dim`` is not one, or shapes do not match.
            KeyError: if an entry is missing.
            ValueError: if ``target_params`` comes without ``params``, or a value is missing without a value network.
            FloatingPointError: for NaN or infinity within
                :func:`~tritonrl.objectives.value.estimators.finite_check.check_finite`.
        """
        if tensordict.batch_dims < 1:
            raise RuntimeError(
                f"A value estimator needs at least one batch dimension (time), got batch_size={tensordict.batch_size}."
            )
        one_set = target_params is params
        params = None if params is None else params.detach()
        target_params = params if one_set else None if target_params is None else target_params.detach()
        skip = skip_existing() if self.skip_existing is None else self.skip_existing
        with torch.set_grad_enabled(self.differentiable):
            data = self._without_padding(tensordict)
            steps, written = self._steps(data, params, target_params, time_dim, skip)
            written |= finite(self._results(steps, data))
        return write_entries(tensordict, written)

    def value_estimate(self, tensordict: TensorDictBase, *args: Any, **kwargs: Any) -> Tensor:
        """The value target, without an advantage."""
        raise NotImplementedError(f"{type(self).__name__} has no value_estimate.")

    def _results(self, steps: Steps, tensordict: TensorDictBase) -> dict[NestedKey, Tensor]:
        """What ``forward`` writes besides the values: advantage, value target, whatever else a subclass computes."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to compute an advantage.")

    def _fit_signals(self, signals: Signals, value: Tensor) -> Signals:
        """Reward and flags as :meth:`_fit_signal` brings them to the shape of the value."""
        names = (self.tensor_keys.reward, self.tensor_keys.done, self.tensor_keys.terminated)
        fitted = [self._fit_signal(next_key(key), signal, value) for key, signal in zip(names, signals, strict=True)]
        return Signals(*fitted)

    def _fit_signal(self, key: NestedKey, signal: Tensor, value: Tensor) -> Tensor:
        """Hook: bring one entry of the next step to the shape of the value. By default it must have it."""
        return signal

    def _without_padding(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The rollout, or a shallow copy of it in which no NaN or infinity of the padding is left for the networks."""
        if self.valid_key is None:
            return tensordict
        read_valid(tensordict, self.valid_key)  # Refuses a mask that does not fit, in words of its own.
        data = tensordict.copy()
        hide_invalid(data, self._entries_read(), (self.valid_key,))
        return data

    def _kept(self, steps: Steps, tensordict: TensorDictBase) -> Steps:
        """The steps, of which those in the padding do not count."""
        return steps if self.valid_key is None else keep_valid(steps, read_valid(tensordict, self.valid_key))

    def _names_of_inputs(self) -> dict[str, NestedKey]:
        """What the steps read from the rollout go by there, but for the value, which not every call reads."""
        keys = self.tensor_keys
        return {"gamma": "gamma", "reward": next_key(keys.reward), "next_value": next_key(keys.value)}

    def _time_axis(self, tensordict: TensorDictBase, time_dim: int | None) -> int:
        return resolve_time_dim(tensordict, self.time_dim if time_dim is None else time_dim)

    def _steps(
        self,
        tensordict: TensorDictBase,
        params: TensorDictBase | None,
        target_params: TensorDictBase | None,
        time_dim: int | None,
        skip: bool,
        next_value: Tensor | None = None,
    ) -> tuple[Steps, dict[NestedKey, Tensor]]:
        """The steps of a rollout, and the entries to write for having obtained them."""
        keys = self.tensor_keys
        axis = self._time_axis(tensordict, time_dim)
        signals = read_signals(tensordict, keys)
        values = self._values(tensordict, signals, params, target_params, axis, skip, next_value)
        written = {keys.value: values.value}
        if next_value is None:
            written[next_key(keys.value)] = values.next_value
        signals = self._checked_signals(signals, values)
        if values.valid is not None:
            signals = signals._replace(done=cut_at_last_valid(signals.done, values.valid, axis))
        detached = values.next_value.detach()
        gamma = self._discount(tensordict, signals.reward, values.value, detached)
        steps = self._kept(Steps(gamma, *signals, values.value, detached, axis, values.valid), tensordict)
        steps = finite_steps(steps, {**self._names_of_inputs(), "value": keys.value})
        if values.valid is not None and steps.valid is not None:
            written[SHIFTED_VALID_KEY] = steps.valid
        return steps, written

    def _checked_signals(self, signals: Signals, values: Values) -> Signals:
        keys = self.tensor_keys
        signals = self._fit_signals(signals, values.value)
        check_shapes(
            (keys.value, values.value),
            (next_key(keys.value), values.next_value),
            (next_key(keys.reward), signals.reward),
            (next_key(keys.done), signals.done),
            (next_key(keys.terminated), signals.terminated),
        )
        return signals

    def _discount(self, tensordict: TensorDictBase, reward: Tensor, *data: Tensor) -> Tensor:
        """gamma, or ``gamma ** n`` per step where a stored step spans ``n`` steps of the environment."""
        gamma = self._coefficient("gamma", reward, *data)
        key = self.tensor_keys.steps_to_next_obs
        steps = tensordict.get(key, None)
        return gamma if steps is None else gamma ** per_step(steps, key, reward)

    def _values(
        self,
        tensordict: TensorDictBase,
        signals: Signals,
        params: TensorDictBase | None,
        target_params: TensorDictBase | None,
        time_dim: int,
        skip: bool,
        next_value: Tensor | None,
    ) -> Values:
        """Values and next values: those given, those in the data where they are to be kept, else the network's."""
        if params is None and target_params is not None:
            raise ValueError("target_params were given without params: give both, or params alone.")
        key = self.tensor_keys.value
        if self.value_network is None:
            next_value = stored_value(tensordict, next_key(key)) if next_value is None else next_value
            return Values(stored_value(tensordict, key), next_value)
        value = tensordict.get(key, None) if skip else None
        if skip and next_value is None:
            next_value = tensordict.get(next_key(key), None)
        if value is not None and next_value is not None:
            return Values(value, next_value)
        caller = self._caller(self.value_network)
        if value is None and next_value is None:
            return self._computed_values(caller, tensordict, signals, params, target_params, time_dim)
        inputs = read_network_inputs(tensordict, self.value_network.in_keys)
        if next_value is None:
            next_value = caller.one(inputs.next, params if target_params is None else target_params)
        return Values(caller.one(inputs.root, params) if value is None else value, next_value)

    def _computed_values(
        self,
        caller: ValueCaller,
        tensordict: TensorDictBase,
        signals: Signals,
        params: TensorDictBase | None,
        target_params: TensorDictBase | None,
        time_dim: int,
    ) -> Values:
        in_keys = caller.network.in_keys
        if not self.shifted:
            return caller.both(read_network_inputs(tensordict, in_keys), params, target_params)
        if target_params is not None and target_params is not params:
            raise ValueError(
                "shifted=True gets values and next values from one call, hence from one set of parameters: give no "
                "target_params, or the very object given as params."
            )
        done = signals.done
        if self.valid_key is not None:  # What follows the last step before padding is not its next step.
            done = cut_at_last_valid(done, read_valid(tensordict, self.valid_key), time_dim)
        plan = plan_slots(done, signals.terminated, tensordict.batch_dims, time_dim, self.shifted_budget)
        return shifted_values(caller, read_network_inputs(tensordict, in_keys, one_row=True), plan, params)

    def _caller(self, network: TensorDictModuleBase) -> ValueCaller:
        return ValueCaller(network, self.value_key, self._chunking, self.vmap_randomness, self.deactivate_vmap)

    def _standardised(
        self, x: Tensor, min_std: float, tensordict: TensorDictBase, valid: Tensor | None = None
    ) -> Tensor:
        """``x`` standardised over the batch, or over each group of ``group_key``."""
        groups = None if self.group_key is None else read_entry(tensordict, self.group_key, "group_key")
        return standardise(x, min_std, valid=valid, groups=groups)

    def _standardised_advantage(
        self, advantage: Tensor, min_std: float, steps: Steps, tensordict: TensorDictBase
    ) -> Tensor:
        """The advantage standardised over the valid steps: those of this call, or of an earlier one that said so."""
        valid = tensordict.get(SHIFTED_VALID_KEY, None) if steps.valid is None else steps.valid
        return self._standardised(advantage, min_std, tensordict, valid)
