"""The importance-weighted policy gradient, base of the PPO family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase, dispatch
from torch import Tensor
from torch.distributions import Distribution

from tritonrl.objectives.advantage import align_advantage
from tritonrl.objectives.log_weight import (
    LogWeight,
    as_key_list,
    behaviour_log_prob,
    cap_correction,
    log_prob_of_action,
)
from tritonrl.objectives.metrics import masked_mean
from tritonrl.objectives.on_policy import AdvantageNorm, OnPolicyLoss

__all__ = ["Metrics", "PPOLoss"]

Metrics = dict[str, Tensor | TensorDictBase]
"""What a loss reports, by name."""


class PPOLoss(OnPolicyLoss):
    r"""Importance-weighted policy gradient, the base of the PPO family.

    .. math::
        L = -\mathbb{E}\left[w A\right] - c_H\, \mathbb{E}\left[H(\pi(\cdot|o))\right]
        + c_V\, \mathbb{E}\left[d(y, V(o))\right], \qquad w = \frac{\pi(a|o)}{\pi_{behaviour}(a|o)}

    with advantage A and value target y from the data, or computed by the value estimator (default GAE with gamma 0.99
    and lambda 0.95; see ``make_value_estimator``). Schulman et al. 2017, https://arxiv.org/abs/1707.06347.

    The data are not written to. They hold, for batch size ``[*B]``: what the networks read; ``action``; its
    ``action_log_prob`` under the behaviour policy, ``[*B]``; and either ``advantage`` and ``value_target``, ``[*B,
    1]``, or ``("next", ...)`` observations, ``reward``, ``done`` and ``terminated``. ``set_keys`` renames them.

    The result has the terms to add up, ``loss_objective``, ``loss_entropy`` and ``loss_critic``, and the metrics
    ``kl_approx`` (mean of -log w), ``entropy``, ``composite_entropy`` (by head), ``value_clip_fraction`` and
    ``explained_variance``. Steps that a validity mask excludes count in none of them.

    Args:
        actor_network: the policy, a probabilistic tensordict module. Several actions come from a
            ``CompositeDistribution``.
        critic_network: the value function, writing ``state_value`` ``[*B, 1]``. It can be left out if the advantage is
            always in the data and ``critic_coeff`` is None or 0.

    Keyword Args:
        entropy_bonus: whether to add the entropy term.
        samples_mc_entropy: samples for the entropy of a distribution without a closed form.
        entropy_coeff: c_H, default 0.01; or, for a composite action, one for each head, by the name of its action.
        log_explained_variance: whether to report ``explained_variance``.
        critic_coeff: c_V, default 1.0; 0 switches the critic's term off.
        loss_critic_type: the distance d, ``"l1"``, ``"l2"`` or ``"smooth_l1"``.
        normalize_advantage: shift and scale the advantage of each batch to mean 0 and standard deviation 1.
        normalize_advantage_exclude_dims: dimensions that keep statistics of their own (the agents', say).
        advantage_norm: scale the advantage by running statistics of the value targets instead. They are updated by
            training-mode calls that compute the advantage themselves.
        gamma: gone; the discount belongs to the value estimator.
        separate_losses: keep the critic's gradient away from parameters that it shares with the actor.
        advantage_key, value_target_key, value_key: gone; use ``set_keys``.
        functional: hold the parameters in ``actor_network_params`` and ``critic_network_params``. Otherwise the
            networks are plain sub-modules.
        actor, critic: other names of ``actor_network`` and ``critic_network``.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        clip_value: let the value move by at most this much away from the stored ``state_value``. Where the loss
            computes the advantage itself, the stored value is the current one, and nothing is clipped.
        delay_actor: hold the policy that limits the step, pi_prox, in ``target_actor_network_params``, apart from the
            policy that collected the data (Hilton et al. 2021, https://arxiv.org/abs/2110.00641). Needs
            ``functional=True``.
        max_importance_ratio: limit w to this number, through the part of it that carries no gradient.
        device: where the coefficients live; by default with the parameters.

    Raises:
        TypeError: if a network is missing; for ``gamma``, or an ``entropy_coeff`` that is no number and no mapping.
        ValueError: for options out of range, or that exclude each other.
        RuntimeError: for a key in the constructor.

    Example:
        >>> from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule
        >>> logits = TensorDictModule(torch.nn.Linear(3, 2), in_keys=["observation"], out_keys=["logits"])
        >>> draw = ProbabilisticTensorDictModule(
        ...     ["logits"], ["action"], distribution_class=torch.distributions.Categorical, return_log_prob=True
        ... )
        >>> actor = ProbabilisticTensorDictSequential(logits, draw)
        >>> critic = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["observation"], out_keys=["state_value"])
        >>> data = actor(TensorDict({"observation": torch.randn(5, 3)}, [5])).detach()
        >>> data = data.update({"advantage": torch.randn(5, 1), "value_target": torch.randn(5, 1)})
        >>> loss = PPOLoss(actor, critic, entropy_coeff=0.0)
        >>> out = loss(data)
        >>> bool(torch.isclose(out["loss_objective"], -data["advantage"].mean()))  # on-policy data: every w is 1
        True
        >>> loss.total(out).backward()
    """

    _schedulable_buffers = frozenset({"entropy_coeff", "critic_coeff", "max_importance_ratio"})

    max_importance_ratio: Tensor | None

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential | None = None,
        critic_network: TensorDictModuleBase | None = None,
        *,
        entropy_bonus: bool = True,
        samples_mc_entropy: int = 1,
        entropy_coeff: float | Tensor | Mapping[NestedKey, float] | None = None,
        log_explained_variance: bool = True,
        critic_coeff: float | Tensor | None = None,
        loss_critic_type: str = "smooth_l1",
        normalize_advantage: bool = False,
        normalize_advantage_exclude_dims: tuple[int, ...] = (),
        advantage_norm: AdvantageNorm | None = None,
        gamma: float | None = None,
        separate_losses: bool = False,
        advantage_key: str | None = None,
        value_target_key: str | None = None,
        value_key: str | None = None,
        functional: bool = True,
        actor: ProbabilisticTensorDictSequential | None = None,
        critic: TensorDictModuleBase | None = None,
        reduction: str | None = None,
        clip_value: float | Tensor | None = None,
        delay_actor: bool = False,
        max_importance_ratio: float | Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._refuse_gamma(gamma)
        actor_network = self._required_one_of("actor_network", actor_network, "actor", actor)
        critic_network = self._one_of("critic_network", critic_network, "critic", critic)
        critic_coeff = self._critic_coeff_or_none(critic_coeff, critic_network)
        if delay_actor and not functional:
            raise ValueError(
                "delay_actor=True needs functional=True: the proximal policy is in target_actor_network_params"
            )
        advantage_norm = self._checked_advantage_norm(advantage_norm, normalize_advantage)
        if max_importance_ratio is not None and not max_importance_ratio > 0:
            raise ValueError(f"max_importance_ratio must be larger than 0, got {max_importance_ratio}")
        super().__init__()
        self._set_deprecated_ctor_keys(
            advantage_key=advantage_key, value_target_key=value_target_key, value_key=value_key
        )
        self.reduction = "mean" if reduction is None else reduction
        self._register_networks(
            actor_network,
            critic_network,
            functional=functional,
            separate_losses=separate_losses,
            delay_actor=delay_actor,
        )
        self._register_entropy_options(entropy_bonus, samples_mc_entropy, entropy_coeff, device)
        self._register_critic_coeff(critic_coeff, device)
        self._register_critic_options(loss_critic_type, clip_value, device)
        self._register_coefficient("max_importance_ratio", max_importance_ratio, device)
        self.log_explained_variance = log_explained_variance
        self.normalize_advantage = normalize_advantage
        self.normalize_advantage_exclude_dims = normalize_advantage_exclude_dims
        self.advantage_norm = advantage_norm
        self.delay_actor = delay_actor
        self.out_keys = list(self._iter_out_keys())

    # -- keys -----------------------------------------------------------------------------------------------------

    def _iter_in_keys(self) -> Iterator[NestedKey]:
        yield from super()._iter_in_keys()
        yield from as_key_list(self.tensor_keys.sample_log_prob)

    def _iter_out_keys(self) -> Iterator[str]:
        """What dispatch returns, in order."""
        yield "loss_objective"
        if self.entropy_bonus:
            yield from ("entropy", "loss_entropy")
        if self._critic_is_on:
            yield "loss_critic"
            if self.clip_value is not None:
                yield "value_clip_fraction"

    # -- the loss -------------------------------------------------------------------------------------------------

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The terms of the loss and the metrics; see the class for what is read and returned.

        Args:
            tensordict: the data, batch size ``[*B]``; it is not written to.

        Returns:
            A tensordict of batch size ``[]``. With ``reduction="none"`` its ``loss_*`` entries have the shape ``[*B]``.

        Raises:
            KeyError: if an entry is missing.
            ValueError: if the shapes of advantage and log-probabilities do not pair up.
            RuntimeError: if a stored action or log-probability requires grad, or there is no critic for the advantage.
            NotImplementedError: for an unknown reduction or critic loss.
        """
        data, computed = self._prepare(tensordict)
        advantage = self._scaled_advantage(data, computed)
        reference = self._reference_policy(data)
        distribution = self._actor_distribution(data)
        weight = self._log_weight(data, distribution, reference)
        advantage = align_advantage(advantage, weight.ratio)
        objective, metrics = self._objective(data, weight, advantage, distribution, reference)
        entries: Metrics = {"loss_objective": objective, **metrics}
        entries["kl_approx"] = masked_mean(-weight.ratio, self._loss_mask(data, weight.ratio))
        if self.entropy_bonus:
            entries.update(self._entropy_terms(distribution, data))
        if self._critic_is_on:
            entries.update(self._critic_terms(data, self.log_explained_variance))
        entries.update(self._weight_metrics(data, weight))
        return self._reduce_entries(TensorDict(entries), data)

    def loss_critic(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The critic's term alone, element-wise ``[*B, 1]`` and not reduced.

        Returns:
            The loss, the share of clipped values (None without ``clip_value``) and the explained variance (or None).
        """
        if not self._critic_is_on:
            raise RuntimeError(f"{type(self).__name__} has no critic term: critic_network or critic_coeff is None or 0")
        terms = self._critic_terms(tensordict, self.log_explained_variance)
        return terms["loss_critic"], terms.get("value_clip_fraction"), terms.get("explained_variance")

    def _scaled_advantage(self, data: TensorDictBase, computed: bool) -> Tensor:
        advantage = data.get(self.tensor_keys.advantage)
        if self.normalize_advantage:
            return self._normalized(advantage, data, self.normalize_advantage_exclude_dims)
        if self.advantage_norm is not None:
            return self._scaled_by_norm(advantage, data, computed, self.advantage_norm)
        return advantage

    def _reference_policy(self, data: TensorDictBase) -> Distribution | None:
        """The policy from which a step is measured, where it takes more than the stored log-probability.

        Called before the actor runs, whose outputs replace entries of the data (loc, scale) in the copy.
        """
        if not self.delay_actor:
            return None
        with torch.no_grad():
            return self._actor_distribution(data.copy(), self.target_actor_network_params)

    def _log_weight(
        self, data: TensorDictBase, distribution: Distribution, reference: Distribution | None
    ) -> LogWeight:
        """The log-weight of each stored action, ``[*B, 1]``."""
        keys = self.tensor_keys
        log_prob = log_prob_of_action(distribution, data, keys.action)
        behaviour = behaviour_log_prob(data, keys.sample_log_prob, log_prob)
        if self.delay_actor and reference is not None:
            proximal = log_prob_of_action(reference, data, keys.action).detach()
            ratio, correction = log_prob - proximal, proximal - behaviour
        else:
            ratio, correction = log_prob - behaviour, None
        correction = cap_correction(ratio, correction, self.max_importance_ratio)
        return LogWeight(ratio.unsqueeze(-1), None if correction is None else correction.unsqueeze(-1))

    def _objective(
        self,
        data: TensorDictBase,
        weight: LogWeight,
        advantage: Tensor,
        distribution: Distribution,
        reference: Distribution | None,
    ) -> tuple[Tensor, Metrics]:
        """The element-wise loss of the actor and the metrics that come with it. This is what the family differs in."""
        return -weight.total.exp() * advantage, {}

    def _weight_metrics(self, data: TensorDictBase, weight: LogWeight) -> Metrics:
        """Statistics of the importance weights."""
        return {}

    # -- construction ---------------------------------------------------------------------------------------------

    @staticmethod
    def _critic_coeff_or_none(
        critic_coeff: float | Tensor | None, critic_network: TensorDictModuleBase | None
    ) -> float | Tensor | None:
        """None where the critic's term is off, else the coefficient."""
        if critic_network is None:
            if critic_coeff is not None and critic_coeff != 0:
                raise TypeError(f"missing argument: critic_network (critic_coeff is {critic_coeff})")
            return None
        if critic_coeff is None:
            return 1.0
        if isinstance(critic_coeff, (int, float)) and not isinstance(critic_coeff, bool):
            return critic_coeff or None
        return critic_coeff
