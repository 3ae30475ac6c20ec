"""Implicit Q-learning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase, dispatch
from torch import Tensor

from tritonrl.objectives.actor_keys import check_policy
from tritonrl.objectives.expectile import advantage_weight, expectile_loss
from tritonrl.objectives.functional_params import swap_params
from tritonrl.objectives.log_weight import log_prob_of_action
from tritonrl.objectives.metrics import masked_mean
from tritonrl.objectives.off_policy import OffPolicyLoss

__all__ = ["IQLLoss"]


class IQLLoss(OffPolicyLoss):
    r"""Implicit Q-learning, Kostrikov et al. 2021, https://arxiv.org/abs/2110.06169, for learning from stored data alone.

    No action but the stored one is ever valued. With :math:`\bar q = \min_i \bar Q_i(o, a)` under the target critics,

    .. math::
        L_V &= L_\tau\big(\bar q - V(o)\big), \qquad L_\tau(u) = |\tau - 1[u \le 0]|\, u^2 \\
        L_Q &= \textstyle\sum_i d\big(Q_i(o, a),\; r + \gamma^n (1 - z)\, V(o')\big) \\
        L_\pi &= -\min\big(e^{\beta (\bar q - V(o))},\, 100\big)\, \log \pi(a|o)

    where z is the terminated flag and n = ``steps_to_next_obs`` (1 without it). V is the expectile :math:`\tau` of the
    critics over the actions in the data, and the actor clones actions in proportion to their advantage over it.

    The data hold, for batch size ``[*B]``: what the networks read; ``action``; ``("next", reward | done | terminated)``,
    ``[*B, 1]``, and what the value network reads under ``"next"``; optionally ``steps_to_next_obs``. Two entries are
    written into them: ``_log_prob``, the log-probability of the stored action, and ``td_error``,
    :math:`\max_i (Q_i - y)^2`, both ``[*B]``. Steps that a validity mask excludes count in no term and in no metric.

    The result has the terms to add up, ``loss_actor``, ``loss_qvalue`` and ``loss_value``, and the metric ``entropy``,
    :math:`-\mathbb{E}[\log \pi(a|o)]` of the stored actions.

    Args:
        actor_network: the policy, a probabilistic tensordict module.
        qvalue_network: Q, writing ``state_action_value`` ``[*B, 1]``; a module, of which ``num_qvalue_nets`` members are
            made, or a list of them. Its target is updated by a ``SoftUpdate`` or ``HardUpdate``.
        value_network: V, writing ``state_value`` ``[*B, 1]``.

    Keyword Args:
        num_qvalue_nets: number of critics. A single one keeps its own parameters, without a leading dimension.
        loss_function: the distance d, ``"l1"``, ``"l2"`` or ``"smooth_l1"``.
        temperature: :math:`\beta`, an inverse temperature, not negative. Assign to it to schedule it.
        expectile: :math:`\tau`, between 0 and 1 (exclusive). Assign to it to schedule it.
        gamma: gone; the discount belongs to the value estimator.
        priority_key: gone; use ``set_keys``.
        separate_losses: keep the gradients of V and Q away from parameters that they share with the actor, and Q's away
            from those that it shares with V.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        deactivate_vmap: evaluate the critics one after the other.
        scalar_output_mode: what becomes of ``entropy`` with ``reduction="none"``: ``"exclude"`` or ``"non_tensor"``.

    Raises:
        TypeError: for ``gamma``, or a network that is missing or no policy.
        ValueError: for options out of range, or a critic listed twice.
        RuntimeError: for a key in the constructor.

    Example:
        >>> from tensordict import TensorDict
        >>> from tritonrl.objectives import SoftUpdate
        >>> from tensordict.nn import NormalParamExtractor, ProbabilisticTensorDictModule, TensorDictModule
        >>> def normal(loc, scale):
        ...     return torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1)
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), NormalParamExtractor())
        >>> actor = ProbabilisticTensorDictSequential(
        ...     TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        ...     ProbabilisticTensorDictModule(["loc", "scale"], ["action"], distribution_class=normal),
        ... )
        >>> class Critic(torch.nn.Linear):
        ...     def forward(self, observation, action):
        ...         return super().forward(torch.cat([observation, action], -1))
        >>> keys = ["observation", "action"]
        >>> qvalue = TensorDictModule(Critic(5, 1), in_keys=keys, out_keys=["state_action_value"])
        >>> value = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["observation"], out_keys=["state_value"])
        >>> loss = IQLLoss(actor, qvalue, value, expectile=0.7, temperature=3.0)
        >>> updater = SoftUpdate(loss, tau=0.005)
        >>> step = TensorDict(reward=torch.ones(7, 1), terminated=torch.zeros(7, 1, dtype=torch.bool), batch_size=[7])
        >>> step["done"], step["observation"] = step["terminated"], torch.randn(7, 3)
        >>> data = TensorDict(observation=torch.randn(7, 3), action=torch.randn(7, 2), next=step, batch_size=[7])
        >>> out = loss(data)
        >>> loss.total(out).backward()
        >>> data["td_error"].shape
        torch.Size([7])
    """

    @dataclass
    class _AcceptedKeys:
        """Entries by role: ``reward``, ``done`` and ``terminated`` are read under ``"next"``."""

        value: NestedKey = "state_value"
        action: NestedKey | list[NestedKey] = "action"
        log_prob: NestedKey = "_log_prob"
        priority: NestedKey = "td_error"
        state_action_value: NestedKey = "state_action_value"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"

    default_keys = _AcceptedKeys
    _schedulable_buffers = frozenset({"temperature", "expectile"})

    actor_network: TensorDictModuleBase
    value_network: TensorDictModuleBase
    temperature: Tensor
    expectile: Tensor

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModuleBase | list[TensorDictModuleBase],
        value_network: TensorDictModuleBase | None,
        *,
        num_qvalue_nets: int = 2,
        loss_function: str = "smooth_l1",
        temperature: float = 1.0,
        expectile: float = 0.5,
        gamma: float | None = None,
        priority_key: str | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: str | None = None,
    ) -> None:
        self._refuse_gamma(gamma)
        _check_networks(actor_network, value_network)
        _check_coefficients(temperature, expectile)
        super().__init__()
        self._set_deprecated_ctor_keys(priority_key=priority_key)
        self._register_reduction(reduction, scalar_output_mode)
        self.loss_function = loss_function
        self.separate_losses = separate_losses
        assert value_network is not None
        of_actor = list(actor_network.parameters()) if separate_losses else []
        of_others = [*of_actor, *value_network.parameters()] if separate_losses else []
        self.convert_to_functional(actor_network, "actor_network")
        self.convert_to_functional(value_network, "value_network", compare_against=of_actor)
        self._register_critics(
            qvalue_network,
            num_qvalue_nets,
            delay=True,
            compare_against=of_others,
            deactivate_vmap=deactivate_vmap,
            expand_single=False,
        )
        self._register_unsaved_coefficients(temperature=temperature, expectile=expectile)
        self.out_keys = ["loss_actor", "loss_qvalue", "loss_value", "entropy"]

    def _iter_in_keys(self) -> Iterator[NestedKey]:
        yield from self._transition_keys()
        yield from self._network_in_keys(self.actor_network, self.value_network)
        yield from self.qvalue_network.in_keys

    @staticmethod
    def loss_value_diff(diff: Tensor, expectile: float | Tensor = 0.8) -> Tensor:
        r"""Element-wise :math:`|\tau - 1[u \le 0]|\, u^2`, see :func:`~tritonrl.objectives.expectile.expectile_loss`."""
        return expectile_loss(diff, expectile)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The terms of the loss and the entropy; see the class for what is read, returned and written.

        Args:
            tensordict: the data, batch size ``[*B]``.

        Returns:
            A tensordict of batch size ``[]``, or with ``reduction="none"`` of batch size ``[*B]``.

        Raises:
            KeyError: if an entry is missing.
            RuntimeError: if shapes do not pair up, e.g. the log-probability and the values.
            NotImplementedError: for an unknown reduction or distance.
        """
        data = self._prepare(tensordict)
        # The target critics and V are evaluated once, for the actor and the value function together.
        target_value, value = self._target_action_value(data), self._state_value(data)
        loss_actor, log_prob = self._actor_term(data, target_value - value.detach())
        loss_qvalue, squared_error = self._qvalue_term(data)
        losses = {
            "loss_actor": loss_actor,
            "loss_qvalue": loss_qvalue,
            "loss_value": self._value_term(data, target_value - value),
        }
        entropy = masked_mean(-log_prob, self._loss_mask(data, log_prob))
        out = self._result(losses, {"entropy": entropy}, tensordict)
        self._write_priority(tensordict, squared_error.max(0).values)
        tensordict.set(self.tensor_keys.log_prob, log_prob)
        self._clear_weakrefs(tensordict, data, out)
        return out

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The term of the actor alone, reduced, and no metadata. Writes ``_log_prob`` into the data."""
        data = self._prepare(tensordict)
        with torch.no_grad():
            advantage = self._target_action_value(data) - self._state_value(data)
        loss, log_prob = self._actor_term(data, advantage)
        tensordict.set(self.tensor_keys.log_prob, log_prob)
        self._clear_weakrefs(tensordict, data)
        return loss, {}

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The term of the critics alone, reduced, and ``td_error``: the squared error of each critic, ``[N, *B]``."""
        data = self._prepare(tensordict)
        loss, squared_error = self._qvalue_term(data)
        self._clear_weakrefs(tensordict, data)
        return loss, {"td_error": squared_error}

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The term of the value function alone, reduced, and no metadata."""
        data = self._prepare(tensordict)
        loss = self._value_term(data, self._target_action_value(data) - self._state_value(data))
        self._clear_weakrefs(tensordict, data)
        return loss, {}

    # -- terms ----------------------------------------------------------------------------------------------------

    def _actor_term(self, data: TensorDictBase, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """The reduced loss, and the log-probability of the stored action, ``[*B]``, without gradient."""
        with swap_params(self.actor_network_params, self.actor_network):
            distribution = self.actor_network.get_dist(data.copy())
        log_prob = log_prob_of_action(distribution, data, self.tensor_keys.action)
        if log_prob.shape != advantage.shape:
            raise RuntimeError(
                f"the policy gives the stored action a log-probability of shape {tuple(log_prob.shape)} and the "
                f"critics a value of shape {tuple(advantage.shape)}: both must have one number for each step (a "
                "torch.distributions.Independent sums over the dimensions of an action)"
            )
        loss = -advantage_weight(advantage, self.temperature) * log_prob
        return self._reduce_loss(loss, data), log_prob.detach()

    def _qvalue_term(self, data: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The reduced loss, summed over the critics, and the squared error of each, ``[N, *B]``, without gradient."""
        with torch.no_grad():
            next_value = self._state_value(self._next_inputs(data, self.value_network))
        target = self._td_target(data, next_value)
        prediction = self._taken_action_value(data)
        loss = self._distance(prediction, target).sum(0)
        return self._reduce_loss(loss, data), (prediction.detach() - target).square()

    def _value_term(self, data: TensorDictBase, advantage: Tensor) -> Tensor:
        return self._reduce_loss(self.loss_value_diff(advantage, self.expectile), data)

    # -- values ---------------------------------------------------------------------------------------------------

    def _taken_action_value(self, data: TensorDictBase, params: TensorDictBase | None = None) -> Tensor:
        """What each critic says about the stored action, ``[N, *B]``."""
        return self._critic_values(data, params)

    def _target_action_value(self, data: TensorDictBase) -> Tensor:
        """The least that a target critic says about the stored action, ``[*B]``, without gradient."""
        with torch.no_grad():
            return self._taken_action_value(data, self.target_qvalue_network_params).min(0).values

    def _state_value(self, inputs: TensorDictBase) -> Tensor:
        """V, ``[*B]``."""
        return self._value_of("value_network", inputs, key=self.tensor_keys.value)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A single critic was once saved with a leading dimension of 1."""
        for name in ("qvalue_network_params", "target_qvalue_network_params"):
            for key, leaf in self._container(name).items(include_nested=True, leaves_only=True):
                full = f"{prefix}{name}." + (key if isinstance(key, str) else ".".join(key))
                if full in state_dict and state_dict[full].shape == (1, *leaf.shape):
                    state_dict[full] = state_dict[full].squeeze(0)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _check_networks(actor: Any, value_network: Any) -> None:
    check_policy(actor)
    if value_network is None:
        raise TypeError("value_network is missing: implicit Q-learning regresses a value function")


def _check_coefficients(temperature: float, expectile: float) -> None:
    if not temperature >= 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    if not 0 < expectile < 1:
        raise ValueError(f"expectile must be between 0 and 1 (exclusive), got {expectile}")
