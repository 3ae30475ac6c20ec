"""Soft actor-critic for continuous actions (and, under TorchRL's import path, the one for discrete actions)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor

from tritonrl.objectives.actor_keys import ActorKeys, check_policy
from tritonrl.objectives.discrete_sac import DiscreteSACLoss
from tritonrl.objectives.ensemble import EnsembleCall
from tritonrl.objectives.off_policy import OffPolicyLoss
from tritonrl.objectives.policy_sample import PolicySample, sample_policy
from tritonrl.objectives.soft_actor_critic import ActorTerm, CriticTerm, SoftActorCriticLoss
from tritonrl.objectives.target_entropy import TargetEntropy

__all__ = ["DiscreteSACLoss", "SACLoss"]


class SACLoss(TargetEntropy, ActorKeys, SoftActorCriticLoss):
    r"""Soft actor-critic, Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905 (without a value network) and
    https://arxiv.org/abs/1801.01290 (with one).

    With N critics :math:`Q_i`, delayed copies :math:`\bar Q_i` and actions :math:`\tilde a \sim \pi(\cdot|o)`,
    :math:`a' \sim \pi(\cdot|o')` drawn by reparameterisation

    .. math::
        L_Q &= \mathbb{E}\Big[\sum_i d(Q_i(o, a), y)\Big], \quad
        y = r + \gamma^n (1 - z) \min_i \big[\bar Q_i(o', a') - \alpha \log \pi(a'|o')\big] \\
        L_\pi &= \mathbb{E}\big[\alpha \log \pi(\tilde a|o) - \min_i Q_i(o, \tilde a)\big] \\
        L_\alpha &= -\mathbb{E}\big[\log\alpha\, (\log \pi(\tilde a|o) + \bar H)\big]

    with z the terminated flag, n = ``steps_to_next_obs`` and the target entropy :math:`\bar H`. With a value network
    the target is :math:`y = r + \gamma^n (1 - z) \bar V(o')`; the batch is cut into N parts along its first dimension,
    one to train each critic; and :math:`L_V = \mathbb{E}[d(V(o), \min_i \bar Q_i(o, \tilde a) - \alpha \log \pi)]`.

    The data, of batch size ``[*B]``, hold what the networks read, at the root and under ``"next"``; the action, under
    the key that the actor writes; ``("next", reward | done | terminated)``, ``[*B, 1]``; optionally
    ``steps_to_next_obs`` and ``priority_weight``, ``[*B]``. ``td_error``, ``[*B]``, is written into them:
    :math:`\max_i |Q_i - y|`, with a value network :math:`(Q - y)^2`. ``set_keys`` renames them.

    The result has ``loss_actor``, ``loss_qvalue``, ``loss_alpha`` and, with a value network, ``loss_value``, to be added
    up (``loss.total(out)``), and the metrics ``alpha`` and ``entropy``. Each term has a gradient to its own network
    only. A ``log_alpha`` that left its bounds is brought back, in place, by the next call.

    Args:
        actor_network: the policy, a probabilistic tensordict module whose distribution has ``rsample``. Several actions
            come from a ``CompositeDistribution``.
        qvalue_network: the critic, writing ``state_action_value`` ``[*B, 1]``: one module, of which
            ``num_qvalue_nets`` independently initialised copies are made, or a list of that many.
        value_network: the state value, writing ``state_value`` ``[*B, 1]``; None for the later form of the algorithm.

    Keyword Args:
        num_qvalue_nets: N.
        loss_function: the distance d, ``"l1"``, ``"l2"`` or ``"smooth_l1"``.
        alpha_init: the first alpha.
        min_alpha, max_alpha: bounds of alpha; None for none.
        action_spec: for ``target_entropy="auto"``: anything with a shape, or a container that holds it under the key of
            the action; ``actor_network.spec`` if None.
        fixed_alpha: keep alpha as it is.
        target_entropy: a number, or ``"auto"`` for minus the number of elements of the action.
        delay_actor, delay_qvalue, delay_value: keep delayed copies, for a target updater to move. That of the actor is
            used with a value network only, for the target of V.
        gamma: gone; the discount belongs to the value estimator (``make_value_estimator``).
        priority_key: gone; use ``set_keys``.
        separate_losses: keep the gradients of critics and value away from parameters that they share with the actor.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        skip_done_states: keep next states that are not finite away from every network where the step is done.
        deactivate_vmap: evaluate the critics one after the other.
        use_prioritized_weights: whether ``priority_weight`` weighs every term; ``"auto"``: if it is there.
        scalar_output_mode: what becomes of the metrics where nothing is reduced, ``"exclude"`` or ``"non_tensor"``.

    Raises:
        TypeError: for ``gamma``, or an actor without ``get_dist``.
        ValueError: for options out of range, or a critic that is listed twice.
        RuntimeError: for a key in the constructor.

    Example:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import NormalParamExtractor, ProbabilisticTensorDictModule
        >>> class Q(torch.nn.Linear):
        ...     def forward(self, observation, action):
        ...         return super().forward(torch.cat([observation, action], -1))
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), NormalParamExtractor())
        >>> actor = ProbabilisticTensorDictSequential(
        ...     TensorDictModule(net, ["observation"], ["loc", "scale"]),
        ...     ProbabilisticTensorDictModule(["loc", "scale"], ["action"], distribution_class=torch.distributions.Normal),
        ... )
        >>> critic = TensorDictModule(Q(5, 1), ["observation", "action"], ["state_action_value"])
        >>> loss = SACLoss(actor, critic, delay_qvalue=False, target_entropy=-2.0)
        >>> data = TensorDict({"observation": torch.randn(6, 3), "action": torch.randn(6, 2)}, [6])
        >>> data["next"] = {"observation": torch.randn(6, 3), "reward": torch.randn(6, 1)}
        >>> _ = data["next"].update({key: torch.zeros(6, 1, dtype=torch.bool) for key in ("done", "terminated")})
        >>> out = loss(data)
        >>> loss.total(out).backward()
        >>> data["td_error"].shape
        torch.Size([6])
    """

    @dataclass
    class _AcceptedKeys(OffPolicyLoss._AcceptedKeys):
        """Entries by role; ``action`` and ``log_prob`` are lists for a composite action."""

        action: NestedKey | list[NestedKey] = "action"
        value: NestedKey = "state_value"
        state_action_value: NestedKey = "state_action_value"
        log_prob: NestedKey | list[NestedKey] | None = "action_log_prob"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    value_network: Any
    qvalue_network: Any

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModule | list[TensorDictModule],
        value_network: TensorDictModule | None = None,
        *,
        num_qvalue_nets: int = 2,
        loss_function: str = "smooth_l1",
        alpha_init: float = 1.0,
        min_alpha: float | None = None,
        max_alpha: float | None = None,
        action_spec: Any = None,
        fixed_alpha: bool = False,
        target_entropy: str | float = "auto",
        delay_actor: bool = False,
        delay_qvalue: bool = True,
        delay_value: bool = True,
        gamma: float | None = None,
        priority_key: str | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        skip_done_states: bool = False,
        deactivate_vmap: bool = False,
        use_prioritized_weights: str | bool = "auto",
        scalar_output_mode: str | None = None,
    ) -> None:
        self._refuse_gamma(gamma)
        check_policy(actor_network)
        super().__init__()
        self._set_deprecated_ctor_keys(priority_key=priority_key)
        self._register_reduction(reduction, scalar_output_mode)
        self.loss_function = loss_function
        self.separate_losses = separate_losses
        self.skip_done_states = skip_done_states
        self.use_prioritized_weights = use_prioritized_weights
        self.convert_to_functional(actor_network, "actor_network", create_target_params=delay_actor)
        self._read_actor_keys(actor_network)
        foreign = list(actor_network.parameters()) if separate_losses else []
        self.value_network = None
        if value_network is not None:
            self.convert_to_functional(
                value_network, "value_network", create_target_params=delay_value, compare_against=foreign
            )
            foreign += list(value_network.parameters()) if separate_losses else []
        self._register_critics(
            qvalue_network,
            num_qvalue_nets,
            delay=delay_qvalue,
            compare_against=foreign,
            deactivate_vmap=deactivate_vmap,
        )
        self._register_temperature(alpha_init, min_alpha, max_alpha, fixed_alpha, self.device)
        spec = getattr(actor_network, "spec", None) if action_spec is None else action_spec
        self._register_target_entropy(target_entropy, spec, self.device)
        self.out_keys = list(self._iter_out_keys())

    def _make_vmap(self) -> None:
        super()._make_vmap()
        # Each critic has data of its own. A loop, since torch.vmap over the data too bakes the size of the batch into a
        # compiled graph (its rule for torch.cat does).
        self._evaluate_parts = EnsembleCall(self.qvalue_network, (0, 0), loop=True)

    @property
    def device(self) -> torch.device | None:
        """Device of the parameters."""
        return self._default_device

    @property
    def target_entropy_buffer(self) -> Tensor:
        """Another name of :attr:`target_entropy`."""
        return self.target_entropy

    # -- keys -----------------------------------------------------------------------------------------------------

    def _iter_in_keys(self) -> Iterator[NestedKey]:
        networks = (self.qvalue_network, self.value_network)
        yield from self._input_keys(*(network for network in networks if network is not None))
        yield from self._transition_keys()

    def _iter_out_keys(self) -> Iterator[str]:
        yield from super()._iter_out_keys()
        if self.value_network is not None:
            yield "loss_value"

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        super()._forward_value_estimator_keys(**kwargs)
        if "action" in kwargs:
            self._set_target_entropy_from_spec(self.device)

    # -- parts of the terms ---------------------------------------------------------------------------------------

    def _act(self, inputs: TensorDictBase, params: TensorDictBase | None = None) -> PolicySample:
        """Draw an action for ``inputs`` and write it into them."""
        sample = sample_policy(self._policy(inputs, params), self.tensor_keys.action, inputs.batch_dims)
        for key, action in sample.action.items():
            inputs.set(key, action)
        return sample

    def _smallest_value(self, inputs: TensorDictBase, params: TensorDictBase) -> Tensor:
        """min_i Q_i of the action in ``inputs``, ``[*B]``."""
        return self._checked_values(self._critic_values(inputs, params), inputs.batch_size).amin(0)

    @torch.no_grad()
    def _next_soft_value(self, data: TensorDictBase, alpha: Tensor) -> Tensor:
        """min_i Q_i(o', a') - alpha log pi(a'|o') under the delayed critics and the actor as it is, ``[*B]``."""
        inputs = self._following(data, self.qvalue_network)
        sample = self._act(inputs)
        return self._smallest_value(inputs, self.target_qvalue_network_params) - alpha * sample.log_prob

    @torch.no_grad()
    def _next_state_value(self, data: TensorDictBase) -> Tensor:
        """V(o') under the delayed value network, ``[*B]``."""
        inputs = self._following(data, self.value_network)
        if self._made_by_actor() & set(self.value_network.in_keys):
            self._policy(inputs, self.target_actor_network_params)  # It computes what the value network reads.
        return self._state_value(inputs, self.target_value_network_params)

    def _state_value(self, inputs: TensorDictBase, params: TensorDictBase | None = None) -> Tensor:
        """V(o), ``[*B]``."""
        return self._value_of("value_network", inputs, params, self.tensor_keys.value)

    def _value_of_own_part(self, data: TensorDictBase) -> Tensor:
        """The batch in N parts along its first dimension, each valued by one critic: ``[*B]``."""
        number, batch = self.num_qvalue_nets, data.batch_size
        if not batch or batch[0] % number != 0:
            raise RuntimeError(
                f"with a value network each of the {number} critics is trained on its own part of the batch, whose "
                f"first dimension must be divisible by {number}, got the batch size {tuple(batch)}"
            )
        inputs = data.select(*self.qvalue_network.in_keys, strict=False)
        parts = inputs.reshape(number, batch[0] // number, *batch[1:])
        value = self._evaluate_parts(parts, self.qvalue_network_params).get(self.tensor_keys.state_action_value)
        return value.reshape(batch)

    # -- the terms ------------------------------------------------------------------------------------------------

    def _critic_term(self, data: TensorDictBase, alpha: Tensor) -> CriticTerm:
        return self._critic_term_v2(data, alpha) if self.value_network is None else self._critic_term_v1(data)

    def _critic_term_v2(self, data: TensorDictBase, alpha: Tensor) -> CriticTerm:
        target = self._td_target(data, self._next_soft_value(data, alpha))
        return self._all_critics_term(self._checked_values(self._critic_values(data), data.batch_size), target)

    def _critic_term_v1(self, data: TensorDictBase) -> CriticTerm:
        target = self._td_target(data, self._next_state_value(data))
        prediction = self._value_of_own_part(data)
        return CriticTerm(self._distance(prediction, target), (prediction.detach() - target).square())

    def _state_value_term(self, data: TensorDictBase, alpha: Tensor) -> Tensor | None:
        if self.value_network is None:
            return None
        inputs = data.detach()
        value = self._state_value(inputs)
        with torch.no_grad():
            sample = self._act(inputs, self.target_actor_network_params)
            target = self._smallest_value(inputs, self.target_qvalue_network_params) - alpha * sample.log_prob
        return self._distance(value, target)

    def _actor_term(self, data: TensorDictBase, alpha: Tensor) -> ActorTerm:
        inputs = data.copy()
        sample = self._act(inputs)
        value = self._smallest_value(inputs, self.qvalue_network_params.data)
        return ActorTerm(alpha * sample.log_prob - value, sample.log_prob)

    # -- the terms alone ------------------------------------------------------------------------------------------

    def qvalue_v2_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The term of the critics alone, with the soft value of the next action as target.

        Returns:
            The reduced loss, and ``{"td_error": ...}``. Nothing is written.
        """
        data = self._prepare(tensordict, detach=False)
        term = self._critic_term_v2(data, self._current_alpha())
        return self._reduced(term.loss, data), {"td_error": term.td_error}

    def qvalue_v1_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The term of the critics alone, with the value network as target.

        Returns:
            The reduced loss, and ``{"td_error": ...}``. Nothing is written.

        Raises:
            RuntimeError: without a value network.
        """
        self._require_value_network()
        data = self._prepare(tensordict, detach=False)
        term = self._critic_term_v1(data)
        return self._reduced(term.loss, data), {"td_error": term.td_error}

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The term of the value network alone.

        Returns:
            The reduced loss, and an empty dictionary.

        Raises:
            RuntimeError: without a value network.
        """
        self._require_value_network()
        data = self._prepare(tensordict, detach=False)
        term = self._state_value_term(data, self._current_alpha())
        assert term is not None
        return self._reduced(term, data), {}

    def _require_value_network(self) -> None:
        if self.value_network is None:
            raise RuntimeError("this SACLoss has no value network: pass value_network to have its terms")
