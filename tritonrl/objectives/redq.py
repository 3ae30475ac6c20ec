"""Randomised ensembled double Q-learning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import InteractionType, ProbabilisticTensorDictSequential, TensorDictModuleBase, dispatch
from tensordict.nn.probabilistic import set_interaction_type
from torch import Tensor

from tritonrl.objectives.actor_keys import ActorKeys, check_policy
from tritonrl.objectives.functional_params import swap_params
from tritonrl.objectives.log_weight import as_key_list
from tritonrl.objectives.metrics import masked_mean
from tritonrl.objectives.off_policy import OffPolicyLoss
from tritonrl.objectives.policy_sample import PolicySample, sample_policy
from tritonrl.objectives.target_entropy import TargetEntropy
from tritonrl.objectives.temperature import EntropyTemperature

__all__ = ["REDQLoss"]

_GSDE_NOISE = "_eps_gSDE"


class REDQLoss(ActorKeys, TargetEntropy, EntropyTemperature, OffPolicyLoss):
    r"""Randomised ensembled double Q-learning, Chen et al. 2021, https://arxiv.org/abs/2101.05982.

    A soft actor-critic with many critics, of which a random few make each target:

    .. math::
        L_{actor} &= \mathbb{E}\Big[\frac1N \sum_i \big(\alpha \log \pi(\tilde a|o)
        - Q_{i, \mathrm{sg}}(o, \tilde a)\big)\Big] \\
        L_{qvalue} &= \mathbb{E}\Big[\frac1N \sum_i d\big(Q_i(o, a), y\big)\Big], \qquad
        y = r + \gamma^n (1 - z) \min_{i \in \mathcal{M}} \big(\bar{Q}_i(o', a') - \alpha \log \pi(a'|o')\big) \\
        L_{alpha} &= -\mathbb{E}\left[\alpha\, \big(\mathrm{sg}(\log \pi) + \bar{H}\big)\right]

    with fresh actions of the policy at this step and at the next, M critics drawn anew in each call, z the terminated
    flag and bars for target parameters. The gradient of the actor runs through its sample, not to the critics, and y has
    none. y is computed by the value estimator (default TD(0) with gamma 0.99; see ``make_value_estimator``), n is
    ``steps_to_next_obs`` where the data have it, else 1. The temperature is kept within its bounds in what is computed
    from it; ``log_alpha`` itself may leave them, and its gradient is that of an unbounded one.

    The data, of batch size ``[*B]``, hold what the networks read, at the root and under ``"next"`` (there without the
    action); ``action``; and ``("next", reward | done | terminated)``, ``[*B, 1]``. ``set_keys`` renames them. The
    largest squared TD error of the critics, ``[*B]``, is written into them as ``td_error``. Priority weights are not
    used.

    The result has the terms to add up, ``loss_actor``, ``loss_qvalue`` and ``loss_alpha``, and, free of gradient:
    ``alpha`` and ``entropy``, 0-dim; ``state_action_value_actor`` Q_i(o, a~), ``[N, *B]``; ``action_log_prob_actor``
    log pi(a~|o), ``"next.state_value"`` (one string), the minimum above, and ``target_value`` y, ``[*B]`` each.

    Args:
        actor_network: the policy pi, a probabilistic tensordict module whose distribution can be reparameterised. Its
            ``return_log_prob`` is set to True.
        qvalue_network: a critic, a tensordict module that reads ``action`` and writes ``state_action_value``
            ``[*B, 1]``, of which ``num_qvalue_nets`` are drawn; or a list of that many critics.

    Keyword Args:
        num_qvalue_nets: N.
        sub_sample_len: M, brought into the range from 1 to N - 1, as in TorchRL. ``loss.sub_sample_len = N`` takes the
            minimum over all.
        loss_function: the distance d, ``"l1"``, ``"l2"`` or ``"smooth_l1"``.
        alpha_init: the temperature to begin with.
        min_alpha, max_alpha: its bounds; None for none.
        action_spec: spec of the action, for ``target_entropy="auto"``; by default the ``spec`` of the actor.
        fixed_alpha: do not learn alpha.
        target_entropy: the entropy to aim at, in nats; ``"auto"`` is minus the number of numbers in an action.
        delay_qvalue: whether the target has critics of its own, that a target updater moves.
        gSDE: the actor is driven by state-dependent noise, ``"_eps_gSDE"`` in the data; the loss gives it zeros,
            ``[*B]``, and draws from the distribution instead.
        gamma: gone; the discount belongs to the value estimator.
        priority_key: gone; use ``set_keys``.
        separate_losses: keep the critics' gradient away from parameters that they share with the actor.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``: element-wise terms, ``[N, *B]`` for actor and critics
            and ``[2, *B]`` (this step and the next) for alpha.
        deactivate_vmap: evaluate the critics one after the other.
        scalar_output_mode: what becomes of ``alpha`` and ``entropy`` with ``reduction="none"``: ``"exclude"`` leaves
            them out, ``"non_tensor"`` keeps them as non-tensor data. None excludes them and says so.

    Raises:
        ValueError: for an option out of range, no critic at all, or one that is listed twice.
        TypeError: for ``gamma``, an unknown keyword, or an actor without distribution.
        RuntimeError: for a key in the constructor, or a list of another length than ``num_qvalue_nets``.

    Example:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import NormalParamExtractor, ProbabilisticTensorDictModule, TensorDictModule
        >>> from torch.distributions import Independent, Normal
        >>> class Q(torch.nn.Linear):
        ...     def forward(self, *inputs):
        ...         return super().forward(torch.cat(inputs, -1))
        >>> def normal(loc, scale):
        ...     return Independent(Normal(loc, scale), 1)
        >>> parameters = torch.nn.Sequential(torch.nn.Linear(4, 4), NormalParamExtractor())
        >>> actor = ProbabilisticTensorDictSequential(
        ...     TensorDictModule(parameters, in_keys=["observation"], out_keys=["loc", "scale"]),
        ...     ProbabilisticTensorDictModule(["loc", "scale"], ["action"], distribution_class=normal),
        ... )
        >>> critic = TensorDictModule(Q(6, 1), in_keys=["observation", "action"], out_keys=["state_action_value"])
        >>> loss = REDQLoss(actor, critic, num_qvalue_nets=3, target_entropy=-2.0)
        >>> from tritonrl.objectives import SoftUpdate
        >>> updater = SoftUpdate(loss, tau=0.005)
        >>> ended = torch.zeros(5, 1, dtype=torch.bool)
        >>> next_data = {"observation": torch.randn(5, 4), "reward": torch.ones(5, 1), "done": ended, "terminated": ended}
        >>> data = {"observation": torch.randn(5, 4), "action": torch.randn(5, 2), "next": next_data}
        >>> out = loss(TensorDict(data, [5]))
        >>> loss.total(out).backward()
        >>> updater.step()
        >>> out["state_action_value_actor"].shape
        torch.Size([3, 5])
    """

    @dataclass
    class _AcceptedKeys:
        """Entries by role: ``reward``, ``done`` and ``terminated`` are read under ``"next"``. ``action`` and
        ``sample_log_prob`` are lists for a composite action."""

        action: NestedKey | list[NestedKey] = "action"
        value: NestedKey = "state_value"
        sample_log_prob: NestedKey | list[NestedKey] = "action_log_prob"
        priority: NestedKey = "td_error"
        state_action_value: NestedKey = "state_action_value"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"

    default_keys = _AcceptedKeys
    _target_entropy_name = "target_entropy_buffer"

    qvalue_network: TensorDictModuleBase

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        *,
        num_qvalue_nets: int = 10,
        sub_sample_len: int = 2,
        loss_function: str = "smooth_l1",
        alpha_init: float = 1.0,
        min_alpha: float | None = 0.1,
        max_alpha: float | None = 10.0,
        action_spec: Any = None,
        fixed_alpha: bool = False,
        target_entropy: str | float = "auto",
        delay_qvalue: bool = True,
        gSDE: bool = False,
        gamma: float | None = None,
        priority_key: str | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        scalar_output_mode: str | None = None,
    ) -> None:
        self._refuse_gamma(gamma)
        check_policy(actor_network)
        super().__init__()
        self._set_deprecated_ctor_keys(priority_key=priority_key)
        self._register_reduction(reduction, scalar_output_mode)
        self.loss_function = loss_function
        self.delay_qvalue = delay_qvalue
        self.gSDE = gSDE
        actor_network.return_log_prob = True
        self.convert_to_functional(actor_network, "actor_network")
        self._read_actor_keys(actor_network, "sample_log_prob")
        self._register_critics(
            qvalue_network,
            num_qvalue_nets,
            delay=delay_qvalue,
            compare_against=list(actor_network.parameters()) if separate_losses else None,
            deactivate_vmap=deactivate_vmap,
        )
        self.sub_sample_len = max(1, min(sub_sample_len, num_qvalue_nets - 1))
        self._register_temperature(alpha_init, min_alpha, max_alpha, fixed_alpha, self._default_device)
        spec = getattr(actor_network, "spec", None) if action_spec is None else action_spec
        self._register_target_entropy(target_entropy, spec, self._default_device)
        self.out_keys = list(self._iter_out_keys())

    @property
    def alpha(self) -> Tensor:
        """The temperature, within its bounds, without gradient."""
        return self._clamped_log_alpha().exp()

    # -- keys -----------------------------------------------------------------------------------------------------

    def _iter_in_keys(self) -> Iterator[NestedKey]:
        yield from self._input_keys(self.qvalue_network)
        yield from self._transition_keys()
        yield from as_key_list(self.tensor_keys.sample_log_prob)

    def _iter_out_keys(self) -> Iterator[str]:
        """What dispatch returns, in order."""
        yield from ("loss_actor", "loss_qvalue", "loss_alpha")
        if self.reduction != "none":
            yield from ("alpha", "entropy")
        yield from ("state_action_value_actor", "action_log_prob_actor", "next.state_value", "target_value")

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        super()._forward_value_estimator_keys(**kwargs)
        if "action" in kwargs:
            self._set_target_entropy_from_spec(self._default_device)

    # -- the terms ------------------------------------------------------------------------------------------------

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The terms of the loss and the metrics; see the class for what is read and returned.

        Args:
            tensordict: the transitions, batch size ``[*B]``; ``td_error`` is written into them.

        Returns:
            A tensordict of batch size ``[]``.

        Raises:
            KeyError: if an entry is missing.
            RuntimeError: if shapes do not match, the target entropy is not known, or nothing in the actor can be
                trained although gradients are on.
            NotImplementedError: for an unknown reduction or ``loss_function``, or a policy that cannot be
                reparameterised.
        """
        target_entropy = self.target_entropy
        data = self._prepare(tensordict, detach=False)
        selected = self._select_critics()
        inputs, sample = self._act_here_and_next(data)
        alpha, (log_prob, next_log_prob) = self.alpha, sample.log_prob.unbind(0)
        actor_values = self._critic_values(inputs[0], self.qvalue_network_params.data)
        next_value = self._next_state_value(inputs[1], selected) - alpha * next_log_prob.detach()
        target = self._td_target(data, next_value)
        values = self._critic_values(data)
        losses = {
            "loss_actor": alpha * log_prob - actor_values,
            "loss_qvalue": self._distance(values, target),
            "loss_alpha": self._exponential_alpha_term(sample.log_prob, target_entropy),
        }
        metrics = {
            "state_action_value_actor": actor_values.detach(),
            "action_log_prob_actor": log_prob.detach(),
            "next.state_value": next_value,
            "target_value": target,
        }
        reduced = {key: self._reduce_members(loss, data) for key, loss in losses.items()}
        out = self._result({**reduced, **metrics}, {"alpha": alpha, "entropy": self._entropy(sample, data)}, None)
        self._write_priority(tensordict, (values.detach() - target).square().amax(0))
        self._clear_weakrefs(data, tensordict, *inputs)
        return out

    def _select_critics(self) -> Tensor:
        """M different members of the ensemble, ``[M]``, drawn where the parameters are: no copy between devices."""
        return torch.randperm(self.num_qvalue_nets, device=self._default_device)[: self.sub_sample_len].sort().values

    def _act_here_and_next(self, data: TensorDictBase) -> tuple[list[TensorDictBase], PolicySample]:
        """What actor and critics read at this step and at the next, with fresh actions, and both draws, ``[2, *B]``.

        The two are one draw from one distribution, so that a seed gives the numbers that it gives in TorchRL. The next
        action carries no gradient.
        """
        made = self._made_by_actor() | ({_GSDE_NOISE} if self.gSDE else set())
        inputs = [data.copy(), self._next_inputs(data, self.actor_network, self.qvalue_network, without=made)]
        if self.gSDE:
            for entry in inputs:
                entry.set(_GSDE_NOISE, torch.zeros(entry.shape, device=entry.device))
        here = self._distribution_params(inputs[0])
        with torch.no_grad():
            following = self._distribution_params(inputs[1])
        with set_interaction_type(InteractionType.RANDOM):
            distribution = self.actor_network.build_dist_from_params(torch.stack([here, following], 0))
        sample = sample_policy(distribution, self.tensor_keys.action, data.batch_dims + 1)
        if torch.is_grad_enabled() and not sample.log_prob.requires_grad:
            raise RuntimeError("the log-probability of the actor has no gradient: nothing in the actor can be trained")
        for key, action in sample.action.items():
            inputs[0].set(key, action[0])
            inputs[1].set(key, action[1].detach())
        return inputs, sample

    def _distribution_params(self, inputs: TensorDictBase) -> TensorDictBase:
        """The parameters of the policy's distribution."""
        actor = self.actor_network
        given = inputs.select(*actor.in_keys, strict=False)
        with swap_params(self.actor_network_params, actor), set_interaction_type(InteractionType.RANDOM):
            params = actor.get_dist_params(given.copy())
        # What the distribution does not read, the observation above all, need not be stacked.
        return params.exclude(*(set(actor.in_keys) - set(actor[-1].in_keys)))

    @torch.no_grad()
    def _next_state_value(self, inputs: TensorDictBase, selected: Tensor) -> Tensor:
        """The least of the selected target critics' values of the next action, ``[*B]``."""
        return self._critic_values(inputs, self.target_qvalue_network_params[selected]).amin(0)

    def _exponential_alpha_term(self, log_prob: Tensor, target_entropy: Tensor) -> Tensor:
        """Element-wise loss of the temperature, with alpha itself in front rather than its logarithm.

        The bounds are passed straight through: beyond them log_alpha still gets the gradient that brings it back.
        """
        log_alpha = self.log_alpha + (self._clamped_log_alpha() - self.log_alpha).detach()
        return -log_alpha.exp() * (log_prob.detach() + target_entropy)

    def _entropy(self, sample: PolicySample, data: TensorDictBase) -> Tensor:
        by_step = -sample.log_prob.movedim(0, -1)
        return masked_mean(by_step, self._loss_mask(data, by_step))

    def _reduce_members(self, loss: Tensor, data: TensorDictBase) -> Tensor:
        """Reduce an element-wise loss ``[N, *B]``, over the members too: a mask ``[*B]`` holds for each of them."""
        reduced = self._reduce_loss(loss.movedim(0, -1), data)
        return reduced.movedim(-1, 0) if self.reduction == "none" else reduced
