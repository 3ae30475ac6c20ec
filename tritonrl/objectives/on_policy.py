"""What the on-policy losses share: an actor, a critic, and data that carry an advantage or get one.

PPO, A2C and REINFORCE differ in one line, the objective of the actor. The rest, reading or computing the advantage,
scoring the stored action, the entropy bonus and the regression of the critic, is here once; the arithmetic of each is
in a file of its own (``advantage``, ``log_weight``, ``entropy_bonus``, ``critic_loss``, ``metrics``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import CompositeDistribution, TensorDictModuleBase
from torch import Tensor
from torch.distributions import Distribution

from tritonrl.objectives.actor_keys import ActorKeys, check_policy
from tritonrl.objectives.advantage import align_advantage, normalize_advantage
from tritonrl.objectives.common import LossModule
from tritonrl.objectives.critic_loss import critic_distance, required_entry
from tritonrl.objectives.entropy_bonus import entropy_of, head_entropies, sum_heads, weigh_heads
from tritonrl.objectives.functional_params import swap_params
from tritonrl.objectives.log_weight import as_key_list, log_prob_of_action
from tritonrl.objectives.metrics import explained_variance, masked_mean
from tritonrl.objectives.validity import hide_invalid
from tritonrl.objectives.value.estimators.keys import next_key
from tritonrl.objectives.value.registry import ValueEstimators

__all__ = ["AdvantageNorm", "OnPolicyLoss"]


@runtime_checkable
class AdvantageNorm(Protocol):
    """What ``advantage_norm`` must offer: running statistics of the value targets (torchrl's ``ValueNorm`` does)."""

    def update(self, value_target: Tensor) -> None:
        """Take the targets of one batch into the statistics."""

    def scale(self) -> Tensor:
        """The standard deviation of the targets, broadcastable to the advantage."""


class OnPolicyLoss(ActorKeys, LossModule):
    """Base of PPO, A2C and REINFORCE. Subclasses call the three ``_register`` methods and write ``forward``."""

    @dataclass
    class _AcceptedKeys:
        """Entries by role: ``reward``, ``done`` and ``terminated`` are read under ``"next"``.

        ``action`` and ``sample_log_prob`` may be lists, with one key for each head of a composite action.
        """

        advantage: NestedKey = "advantage"
        value_target: NestedKey = "value_target"
        value: NestedKey = "state_value"
        sample_log_prob: NestedKey | list[NestedKey] = "action_log_prob"
        action: NestedKey | list[NestedKey] = "action"
        reward: NestedKey | list[NestedKey] = "reward"
        done: NestedKey | list[NestedKey] = "done"
        terminated: NestedKey | list[NestedKey] = "terminated"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    default_value_estimator: ClassVar[ValueEstimators] = ValueEstimators.GAE
    SUPPORTED_VALUE_ESTIMATORS: ClassVar[tuple[ValueEstimators, ...]] = tuple(ValueEstimators)
    _schedulable_buffers = frozenset({"clip_value"})

    actor_network: TensorDictModuleBase
    critic_network: TensorDictModuleBase | None
    entropy_coeff: Tensor
    critic_coeff: Tensor | None
    clip_value: Tensor | None

    # -- construction ---------------------------------------------------------------------------------------------

    @staticmethod
    def _one_of(name: str, value: Any, alias: str, other: Any) -> Any:
        """The argument under either of its two names."""
        if value is not None and other is not None:
            raise TypeError(f"{name} and {alias} are two names of one argument: pass one of them")
        return other if value is None else value

    @classmethod
    def _required_one_of(cls, name: str, value: Any, alias: str, other: Any) -> Any:
        """The argument under either of its two names, one of which must be given."""
        argument = cls._one_of(name, value, alias, other)
        if argument is None:
            raise TypeError(f"missing argument: {name}")
        return argument

    def _register_networks(
        self,
        actor: TensorDictModuleBase,
        critic: TensorDictModuleBase | None,
        *,
        functional: bool,
        separate_losses: bool = False,
        delay_actor: bool = False,
        delay_value: bool = False,
    ) -> None:
        """Take the networks over and read the names of action and log-probability off the actor."""
        check_policy(actor)
        self._functional = functional
        self.separate_losses = separate_losses
        shared = {id(parameter) for parameter in actor.parameters()} if separate_losses else set()
        if functional:
            self.convert_to_functional(actor, "actor_network", create_target_params=delay_actor)
        else:
            self.actor_network = actor
        if critic is None:
            self.critic_network = None
        elif functional:
            policy_params = list(actor.parameters()) if separate_losses else None
            self.convert_to_functional(
                critic, "critic_network", create_target_params=delay_value, compare_against=policy_params
            )
        else:
            self.critic_network = critic
            self._shared_names = tuple(name for name, p in critic.named_parameters() if id(p) in shared)
        self._read_actor_keys(actor, log_prob="sample_log_prob")
        self._build_estimator_early()

    def _register_critic_options(
        self, loss_critic_type: str, clip_value: float | Tensor | None, device: torch.device | None = None
    ) -> None:
        self.loss_critic_type = loss_critic_type
        self._register_coefficient("clip_value", clip_value, device)

    def _register_entropy_options(
        self,
        entropy_bonus: bool,
        samples_mc_entropy: int,
        entropy_coeff: float | Tensor | Mapping[NestedKey, float] | None,
        device: torch.device | None = None,
    ) -> None:
        if isinstance(samples_mc_entropy, bool) or not isinstance(samples_mc_entropy, int) or samples_mc_entropy < 1:
            raise ValueError(f"samples_mc_entropy must be an integer of at least 1, got {samples_mc_entropy!r}")
        self.entropy_bonus = entropy_bonus
        self.samples_mc_entropy = samples_mc_entropy
        self._entropy_coeff_buffers: dict[NestedKey, str] | None = None
        if entropy_coeff is None:
            entropy_coeff = 0.01
        if isinstance(entropy_coeff, Mapping):
            self._register_head_coefficients(entropy_coeff, device)
            entropy_coeff = 0.0
        elif not isinstance(entropy_coeff, (int, float, Tensor)):
            raise TypeError(
                "entropy_coeff must be a number or a mapping from the heads of a composite action to numbers, got "
                f"{type(entropy_coeff).__name__}"
            )
        self._register_coefficient("entropy_coeff", entropy_coeff, device)

    def _register_head_coefficients(self, coefficients: Mapping[NestedKey, float], device: torch.device | None) -> None:
        """One buffer for each head: as Python numbers they would be constants of a compiled graph."""
        self._entropy_coeff_buffers = {}
        for index, (head, value) in enumerate(coefficients.items()):
            name = f"_entropy_coeff_{index}"
            self.register_buffer(name, torch.tensor(float(value), device=self._coeff_device(device)), persistent=False)
            self._entropy_coeff_buffers[unravel_key(head)] = name

    def _register_critic_coeff(self, critic_coeff: float | Tensor | None, device: torch.device | None = None) -> None:
        if isinstance(critic_coeff, (int, float)) and not isinstance(critic_coeff, bool) and not critic_coeff >= 0:
            raise ValueError(f"critic_coeff must not be negative, got {critic_coeff}")
        self._register_coefficient("critic_coeff", critic_coeff, device)

    def _register_coefficient(self, name: str, value: float | Tensor | None, device: torch.device | None) -> None:
        """A schedulable coefficient. Integers become floats: 0.5 assigned to an integer buffer would be stored as 0."""
        if isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        self.register_coeff_buffer(name, value, device=self._coeff_device(device))

    def _coeff_device(self, device: torch.device | None) -> torch.device | None:
        return self._default_device if device is None else device

    # -- value estimator ------------------------------------------------------------------------------------------

    @property
    def _estimator_can_be_built(self) -> bool:
        return self.tensor_keys.value in getattr(self.critic_network, "out_keys", ())

    # -- keys -----------------------------------------------------------------------------------------------------

    def _iter_in_keys(self) -> Iterator[NestedKey]:
        keys = self.tensor_keys
        yield from self.actor_network.in_keys
        yield from (next_key(key) for key in self.actor_network.in_keys)
        if self.critic_network is not None:
            yield from self.critic_network.in_keys
        yield from as_key_list(keys.action)
        for ended in (keys.reward, keys.done, keys.terminated):
            yield from (next_key(key) for key in as_key_list(ended))

    # -- calls of the networks ------------------------------------------------------------------------------------

    def _actor_distribution(self, tensordict: TensorDictBase, params: TensorDictBase | None = None) -> Distribution:
        """The policy on the data; what the actor computes on the way (a hidden state) is written into the data."""
        swap: AbstractContextManager[Any] = nullcontext()
        if self.functional:
            swap = swap_params(self.actor_network_params if params is None else params, self.actor_network)
        with swap:
            return self.actor_network.get_dist(tensordict)

    def _critic_value(self, tensordict: TensorDictBase) -> Tensor:
        """The value of each step, with gradient to the critic."""
        assert self.critic_network is not None
        inputs = tensordict.select(*self.critic_network.in_keys, strict=False)
        if self.functional:
            with swap_params(self.critic_network_params, self.critic_network):
                outputs = self.critic_network(inputs)
        elif self.separate_losses and self._shared_names:
            shared = {name: self.critic_network.get_parameter(name).detach() for name in self._shared_names}
            outputs = torch.func.functional_call(self.critic_network, shared, (inputs,))
        else:
            outputs = self.critic_network(inputs)
        why = "it is the value key of the loss but not an out_key of the critic (set_keys(value=...))"
        return required_entry(outputs, self.tensor_keys.value, why)

    # -- advantage ------------------------------------------------------------------------------------------------

    def _prepare(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, bool]:
        """A shallow copy of the data, with an advantage, and whether that was computed here.

        Raises:
            RuntimeError: if there is neither an advantage in the data nor a critic to compute it.
        """
        data = tensordict.copy()
        computed = data.get(self.tensor_keys.advantage, None) is None
        if computed:
            self._compute_advantage(data)
        hide_invalid(data, self._used_keys(), self._loss_mask_keys())
        return data, computed

    def _compute_advantage(self, tensordict: TensorDictBase) -> None:
        if self.critic_network is None:
            raise RuntimeError(
                f"the advantage {self.tensor_keys.advantage!r} was not found in the input tensordict, and "
                f"{type(self).__name__} has no critic network to compute it: pass critic_network, or run a value "
                "estimator on "
                "the data first"
            )
        params = self.critic_network_params.data if self.functional else None
        self.value_estimator(tensordict, params=params, target_params=self._target_critic_params())

    def _target_critic_params(self) -> TensorDictBase | None:
        """Parameters for the next values; None for the critic's own. Losses that delay the critic override it."""
        return None

    def _used_keys(self) -> Iterator[NestedKey]:
        keys = self.tensor_keys
        yield from self.actor_network.in_keys
        if self.critic_network is not None:
            yield from self.critic_network.in_keys
        yield from as_key_list(keys.action)
        yield from as_key_list(keys.sample_log_prob)
        yield from (keys.advantage, keys.value_target, keys.value)

    def _normalized(self, advantage: Tensor, tensordict: TensorDictBase, exclude_dims: Sequence[int]) -> Tensor:
        """The advantage, normalised over the valid entries."""
        if advantage.numel() > tensordict.numel() and not exclude_dims and not torch.compiler.is_compiling():
            warnings.warn(
                f"normalize_advantage=True on an advantage of shape {tuple(advantage.shape)}, which has more entries "
                "than the "
                f"batch {tuple(tensordict.batch_size)}: agents or objectives are normalised together. Pass "
                "normalize_advantage_exclude_dims to keep a dimension apart.",
                category=UserWarning,
                stacklevel=2,
            )
        return normalize_advantage(advantage, exclude_dims=exclude_dims, mask=self._loss_mask(tensordict, advantage))

    @staticmethod
    def _checked_advantage_norm(
        advantage_norm: AdvantageNorm | None, normalize_advantage: bool = False
    ) -> AdvantageNorm | None:
        if advantage_norm is None:
            return None
        if normalize_advantage:
            raise ValueError("normalize_advantage=True and advantage_norm exclude each other: pass one of them")
        if not isinstance(advantage_norm, AdvantageNorm):
            raise TypeError(
                "advantage_norm must have the methods update and scale (a ValueNorm), got "
                f"{type(advantage_norm).__name__}"
            )
        return advantage_norm

    def _scaled_by_norm(
        self, advantage: Tensor, tensordict: TensorDictBase, computed: bool, norm: AdvantageNorm
    ) -> Tensor:
        """Divide by the running deviation of the value targets, which training steps on new data update."""
        if self.training and computed:
            norm.update(tensordict.get(self.tensor_keys.value_target).detach())
        return advantage / norm.scale()

    # -- objective ------------------------------------------------------------------------------------------------

    def _likelihood_objective(
        self, tensordict: TensorDictBase, distribution: Distribution, advantage: Tensor
    ) -> Tensor:
        """Element-wise -log pi(a|o) A of the stored action, ``[*B, 1]``: its gradient is the policy gradient."""
        log_prob = log_prob_of_action(distribution, tensordict, self.tensor_keys.action).unsqueeze(-1)
        return -log_prob * align_advantage(advantage, log_prob, "log-probability")

    # -- entropy --------------------------------------------------------------------------------------------------

    def _entropy_terms(
        self, distribution: Distribution, tensordict: TensorDictBase
    ) -> dict[str, Tensor | TensorDictBase]:
        """``loss_entropy`` (element-wise) and the metrics ``entropy`` and, by head, ``composite_entropy``."""
        terms: dict[str, Tensor | TensorDictBase] = {}
        if isinstance(distribution, CompositeDistribution):
            heads = head_entropies(distribution, distribution.batch_shape, self.samples_mc_entropy)
            terms["composite_entropy"] = heads.detach().unsqueeze(-1)
            entropy = sum_heads(heads)
        else:
            entropy = entropy_of(distribution, self.samples_mc_entropy)
        if self._entropy_coeff_buffers is None:
            bonus = self.entropy_coeff * entropy
        elif isinstance(distribution, CompositeDistribution):
            coefficients = {head: getattr(self, name) for head, name in self._entropy_coeff_buffers.items()}
            bonus = weigh_heads(heads, coefficients)
        else:
            raise TypeError(
                "entropy_coeff maps heads to coefficients, which takes a CompositeDistribution, but the policy is a "
                f"{type(distribution).__name__}: pass one number"
            )
        terms["entropy"] = masked_mean(entropy, self._loss_mask(tensordict, entropy))
        terms["loss_entropy"] = -bonus.unsqueeze(-1)
        return terms

    # -- critic ---------------------------------------------------------------------------------------------------

    @property
    def _critic_is_on(self) -> bool:
        return self.critic_network is not None and self.critic_coeff is not None

    def _critic_terms(self, tensordict: TensorDictBase, log_explained_variance: bool = False) -> dict[str, Tensor]:
        """``loss_critic`` (element-wise, with its coefficient) and the metrics of :meth:`_value_regression`."""
        loss, metrics = self._value_regression(tensordict, log_explained_variance)
        return {"loss_critic": loss if self.critic_coeff is None else self.critic_coeff * loss, **metrics}

    def _value_regression(
        self, tensordict: TensorDictBase, log_explained_variance: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The element-wise distance of the value from its target, and the metrics ``value_clip_fraction`` and
        ``explained_variance``.

        Raises:
            KeyError: if the value target, the stored value (with ``clip_value``) or the critic's output is missing.
            RuntimeError: if their shapes differ.
        """
        data = tensordict.detach() if self.separate_losses else tensordict
        keys = self.tensor_keys
        why = "the critic is trained on it, and a value estimator such as GAE writes it (set_keys(value_target=...))"
        target = required_entry(data, keys.value_target, why)
        old_value = None
        if self.clip_value is not None:
            why = "clip_value needs the value that the critic gave at the time of the rollout (set_keys(value=...))"
            old_value = required_entry(data, keys.value, why).detach()
        value = self._critic_value(data)
        loss, clipped = critic_distance(
            value, target, self.loss_critic_type, old_value=old_value, clip_value=self.clip_value
        )
        metrics = {}
        if clipped is not None:
            metrics["value_clip_fraction"] = masked_mean(clipped.to(value.dtype), self._loss_mask(data, value))
        if log_explained_variance:
            metrics["explained_variance"] = explained_variance(value, target, self._loss_mask(data, value))
        return loss, metrics

    # -- result ---------------------------------------------------------------------------------------------------

    def _reduce_entries(self, tensordict: TensorDictBase, data: TensorDictBase) -> TensorDictBase:
        """Reduce the entries named ``loss_*``; metrics are reduced already."""
        for key in list(tensordict.keys()):
            if key.startswith("loss_"):
                tensordict.set(key, self._reduce_loss(tensordict.get(key), data).squeeze(-1))
        self._clear_weakrefs(data)
        return tensordict
