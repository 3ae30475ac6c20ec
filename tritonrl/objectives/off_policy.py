"""What the off-policy losses share: critics that are regressed on a one-step (or longer) target, and replayed data.

DQN, DDPG, TD3, SAC, REDQ and IQL differ in how they value the next state and in what they ask of the actor. Reading the
data, evaluating an ensemble of critics, the temporal-difference target, the TD error that is written back as priority
and the form of the result are here once. The arithmetic that only some of them need is in files of its own
(``temperature``, ``chosen_action_value``, ``ensemble``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from tritonrl.objectives.common import LossModule
from tritonrl.objectives.critic_loss import required_entry
from tritonrl.objectives.distance_loss import distance_loss
from tritonrl.objectives.ensemble import EnsembleCall
from tritonrl.objectives.functional_params import swap_params
from tritonrl.objectives.log_weight import as_key_list
from tritonrl.objectives.validity import hide_invalid
from tritonrl.objectives.value.estimators.keys import next_key
from tritonrl.objectives.value.estimators.network_inputs import read_network_inputs
from tritonrl.objectives.value.registry import ValueEstimators

__all__ = ["OffPolicyLoss"]

SCALAR_OUTPUT_MODES = ("exclude", "non_tensor")

_NOT_WRITTEN = "it is the value key of the loss, but the critic did not write it (set_keys names another entry)"


class OffPolicyLoss(LossModule):
    """Base of the off-policy losses.

    The data are transitions of batch size ``[*B]``, ``[*B, T]`` for estimators that look further than one step. They
    hold what the networks read, at the root and under ``"next"``; ``action``; ``("next", reward | done | terminated)``,
    ``[*B, 1]``; and optionally ``steps_to_next_obs`` for n-step transitions and ``priority_weight``, ``[*B]``. Nothing
    is written into them but what the loss documents, and that last of all.
    """

    @dataclass
    class _AcceptedKeys:
        """Entries by role: ``reward``, ``done`` and ``terminated`` are read under ``"next"``."""

        action: NestedKey = "action"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        priority: NestedKey = "td_error"
        priority_weight: NestedKey = "priority_weight"

    default_keys: ClassVar[type[Any]] = _AcceptedKeys
    default_value_estimator: ClassVar[ValueEstimators] = ValueEstimators.TD0
    SUPPORTED_VALUE_ESTIMATORS: ClassVar[tuple[ValueEstimators, ...]] = (
        ValueEstimators.TD0,
        ValueEstimators.TD1,
        ValueEstimators.TDLambda,
    )
    actor_network: TensorDictModuleBase
    loss_function: str
    scalar_output_mode: str | None = None

    # -- construction ---------------------------------------------------------------------------------------------

    def _register_reduction(self, reduction: str | None, scalar_output_mode: str | None = None) -> None:
        """The reduction, and what becomes of scalars such as alpha where the losses are not reduced.

        Raises:
            ValueError: for an unknown ``scalar_output_mode``.
        """
        self.reduction = "mean" if reduction is None else reduction
        if scalar_output_mode not in (None, *SCALAR_OUTPUT_MODES):
            raise ValueError(f"scalar_output_mode must be one of {SCALAR_OUTPUT_MODES}, got {scalar_output_mode!r}")
        if self.reduction == "none" and scalar_output_mode is None:
            warnings.warn(
                "reduction='none' gives an output of the batch size of the data, which scalars such as alpha and "
                "entropy do not fit: they are left out. Pass scalar_output_mode='exclude' to say that this is meant, "
                "or 'non_tensor' to keep them as non-tensor data.",
                category=UserWarning,
                stacklevel=3,
            )
            scalar_output_mode = "exclude"
        self.scalar_output_mode = scalar_output_mode

    @property
    def _estimator_can_be_built(self) -> bool:
        return True

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> Any:
        """Choose the estimator of the target: see :meth:`LossModule.make_value_estimator`.

        It needs no value network. The loss values the next state itself, under the parameters that its algorithm asks
        for, and hands the values over: a network that a class or an estimator brings along is not asked.
        """
        built_here = not isinstance(value_type, TensorDictModuleBase) and not isinstance(value_type, type)
        if built_here:
            hyperparams.setdefault("value_network", None)
        return super().make_value_estimator(value_type, **hyperparams)

    # -- keys -----------------------------------------------------------------------------------------------------

    def _network_in_keys(self, *networks: nn.Module | None) -> Iterator[NestedKey]:
        """What the networks read, at this step and at the next."""
        for network in networks:
            for key in getattr(network, "in_keys", ()):
                yield key
                yield next_key(key)

    def _outcome_keys(self) -> Iterator[NestedKey]:
        """What the step brought, and how it ended."""
        keys = self.tensor_keys
        yield from (next_key(key) for key in (keys.reward, keys.done, keys.terminated))

    def _transition_keys(self) -> Iterator[NestedKey]:
        """The action, what it brought, and how the step ended."""
        yield from as_key_list(self.tensor_keys.action)
        yield from self._outcome_keys()

    def _build_in_keys(self) -> None:
        super()._build_in_keys()
        # Called once the constructor is through. The estimator is built there too: the first call may be a compiled
        # one, inside which no module can be built.
        self._build_estimator_early()

    def _made_by_actor(self) -> set[NestedKey]:
        """Entries of the next step that the actor computes anew: they are not read from the data."""
        actor = self.actor_network
        action = as_key_list(getattr(self.tensor_keys, "action", []))
        return {*getattr(actor, "out_keys", ()), *action} - set(actor.in_keys)

    def _input_keys(self, *networks: TensorDictModuleBase) -> Iterator[NestedKey]:
        """What the actor and the other networks read, at this step and, unless the actor makes it, at the next."""
        yield from self._network_in_keys(self.actor_network)
        made = self._made_by_actor()
        for network in networks:
            for key in network.in_keys:
                yield key
                if key not in made:
                    yield next_key(key)

    # -- data -----------------------------------------------------------------------------------------------------

    def _prepare(self, tensordict: TensorDictBase, *, detach: bool = True) -> TensorDictBase:
        """A shallow copy of the data, in which no NaN or infinity is left behind a validity mask.

        Args:
            tensordict: the data; not written to.
            detach: cut off the graph that the data may come with (an encoder outside the loss).
        """
        data = tensordict.detach().copy() if detach else tensordict.copy()
        hide_invalid(data, self.in_keys, self._loss_mask_keys())
        return data

    @staticmethod
    def _next_inputs(
        data: TensorDictBase, *networks: TensorDictModuleBase, without: Iterable[NestedKey] = ()
    ) -> TensorDictBase:
        """What the networks read of the next step, in a tensordict of its own, apart from the keys in ``without``.

        A NaN in it (the observation behind a done step that a collector did not keep) is replaced by the entry of this
        step.
        """
        left_out = set(without)
        keys = [key for network in networks for key in network.in_keys if key not in left_out]
        return read_network_inputs(data, dict.fromkeys(keys)).next

    # -- critics --------------------------------------------------------------------------------------------------

    def _call(self, name: str, inputs: TensorDictBase, params: TensorDictBase | None = None) -> TensorDictBase:
        """Run the network ``name`` (its own parameters unless others are given) on a shallow copy of ``inputs``."""
        network = getattr(self, name)
        with swap_params(getattr(self, f"{name}_params") if params is None else params, network):
            return network(inputs.select(*network.in_keys, strict=False))

    def _acted_next(self, data: TensorDictBase, critic: TensorDictModuleBase) -> TensorDictBase:
        """The next step, what ``critic`` reads of it included, with what the target actor does there."""
        inputs = self._next_inputs(data, self.actor_network, critic, without=self._made_by_actor())
        return inputs.update(self._call("actor_network", inputs, self.target_actor_network_params))

    def _value_of(
        self, name: str, inputs: TensorDictBase, params: TensorDictBase | None = None, key: NestedKey | None = None
    ) -> Tensor:
        """What one critic says about ``inputs``: ``[*B]``, or ``[*B, n]`` for one that values every action.

        Args:
            name: name of the critic.
            inputs: what it reads, batch size ``[*B]``; not written to.
            params: parameters; those that are trained if None.
            key: the entry that it writes; ``state_action_value`` if None.

        Raises:
            KeyError: if the critic does not write that entry.
        """
        key = self.tensor_keys.state_action_value if key is None else key
        return _without_feature_dim(required_entry(self._call(name, inputs, params), key, _NOT_WRITTEN), inputs.ndim)

    def _register_critics(
        self,
        critics: nn.Module | Sequence[nn.Module],
        number: int,
        *,
        delay: bool,
        compare_against: Iterable[Tensor] | None = None,
        deactivate_vmap: bool = False,
        name: str = "qvalue_network",
        expand_single: bool = True,
    ) -> None:
        """Take an ensemble of critics over, as ``name``.

        Without ``expand_single`` an ensemble of one keeps its own parameters, without a leading dimension of 1.
        """
        self.num_qvalue_nets = number
        self.deactivate_vmap = deactivate_vmap
        self._critics_name = name
        expand_dim: int | None = number
        if number == 1 and not expand_single:
            expand_dim = None
            critics = critics[0] if isinstance(critics, (list, tuple)) and len(critics) == 1 else critics
        self.convert_to_functional(
            critics, name, expand_dim=expand_dim, create_target_params=delay, compare_against=compare_against
        )
        self._make_vmap()

    def _make_vmap(self) -> None:
        if "_critics_name" not in self.__dict__:
            super()._make_vmap()
        self._evaluate_critics = EnsembleCall(
            getattr(self, self._critics_name), loop=self.deactivate_vmap, randomness=self.vmap_randomness
        )

    def _critic_values(
        self, inputs: TensorDictBase, params: TensorDictBase | None = None, key: NestedKey | None = None
    ) -> Tensor:
        """What each critic says about ``inputs``: ``[N, *B]``, or ``[N, *B, n]`` for one that values every action.

        Args:
            inputs: what the critics read, batch size ``[*B]``; not written to.
            params: parameters; those that are trained if None.
            key: the entry that the critics write; ``state_action_value`` if None.

        Raises:
            KeyError: if the critics do not write that entry.
        """
        params = getattr(self, f"{self._critics_name}_params") if params is None else params
        key = self.tensor_keys.state_action_value if key is None else key
        if not params.batch_size:
            return self._value_of(self._critics_name, inputs, params, key).unsqueeze(0)
        inputs = inputs.select(*getattr(self, self._critics_name).in_keys, strict=False)
        values = required_entry(self._evaluate_critics(inputs, params), key, _NOT_WRITTEN)
        return _without_feature_dim(values, inputs.ndim + 1)

    # -- target ---------------------------------------------------------------------------------------------------

    def _td_target(self, data: TensorDictBase, next_value: Tensor) -> Tensor:
        r"""The target of the critics, from the value estimator; with TD(0), the default, that is

        .. math:: y = r + \gamma^n (1 - z) V'

        with z the terminated flag and n = ``steps_to_next_obs``. Where z is set, V' is not looked at.

        Args:
            data: the transitions, batch size ``[*B]``.
            next_value: V', ``[*B]`` or ``[*B, 1]``.

        Returns:
            y, ``[*B]``, without gradient.
        """
        if next_value.ndim == data.ndim:
            next_value = next_value.unsqueeze(-1)
        with torch.no_grad():
            return self.value_estimator.value_estimate(data, next_value=next_value.detach()).squeeze(-1)

    def _distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Element-wise distance; a target ``[*B]`` is compared with every member of a prediction ``[N, *B]``."""
        return distance_loss(prediction, target.expand_as(prediction), self.loss_function)

    def _write_priority(self, tensordict: TensorDictBase, td_error: Tensor) -> None:
        """Write the TD error into the caller's data, where prioritised replay looks for it. The last act of a loss."""
        tensordict.set(self.tensor_keys.priority, td_error.detach(), inplace=True)

    # -- result ---------------------------------------------------------------------------------------------------

    def _result(
        self, losses: Mapping[str, Tensor], scalars: Mapping[str, Tensor], tensordict: TensorDictBase | None
    ) -> TensorDictBase:
        """The output: losses and metrics as they are, scalars as ``scalar_output_mode`` says.

        Args:
            losses: reduced terms, or element-wise ones of shape ``[*B]`` with ``reduction="none"``.
            scalars: 0-dim metrics.
            tensordict: the data, for the batch size; None where the losses have dimensions in front of it.
        """
        if self.reduction != "none":
            return TensorDict({**losses, **scalars})
        out = TensorDict(dict(losses), batch_size=None if tensordict is None else tensordict.batch_size)
        if self.scalar_output_mode == "non_tensor":
            for key, value in scalars.items():
                out.set_non_tensor(key, value)
        return out


def _without_feature_dim(value: Tensor, batch_dims: int) -> Tensor:
    """``[*B, 1]`` to ``[*B]``; the values of several actions, ``[*B, n]``, stay."""
    return value.squeeze(-1) if value.ndim == batch_dims + 1 and value.shape[-1] == 1 else value
