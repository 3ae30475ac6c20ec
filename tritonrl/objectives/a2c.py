"""Advantage actor-critic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase, dispatch
from torch import Tensor

from tritonrl.objectives.on_policy import AdvantageNorm, OnPolicyLoss

__all__ = ["A2CLoss"]


class A2CLoss(OnPolicyLoss):
    r"""Advantage actor-critic, Mnih et al. 2016, https://arxiv.org/abs/1602.01783.

    .. math::
        L = -\mathbb{E}\left[\log \pi(a|o)\, A\right] - c_H\, \mathbb{E}\left[H(\pi(\cdot|o))\right]
        + c_V\, \mathbb{E}\left[d(y, V(o))\right]

    with advantage A and value target y from the data, or computed by the value estimator (default GAE with gamma 0.99
    and lambda 0.95; see ``make_value_estimator``). The action is the stored one; nothing corrects for the age of the
    data, so they should come from the current policy.

    The data are not written to. They hold, for batch size ``[*B]``: what the networks read; ``action``; and either
    ``advantage`` and ``value_target``, ``[*B, 1]``, or ``("next", ...)`` observations, ``reward``, ``done`` and
    ``terminated``. ``set_keys`` renames them.

    The result has the terms to add up, ``loss_objective``, ``loss_entropy`` and ``loss_critic``, and the metrics
    ``entropy``, ``composite_entropy`` (by head) and ``value_clip_fraction``. Steps that a validity mask excludes count
    in none of them.

    Args:
        actor_network: the policy, a probabilistic tensordict module. Several actions come from a
            ``CompositeDistribution``.
        critic_network: the value function, writing ``state_value`` ``[*B, 1]``.

    Keyword Args:
        entropy_bonus: whether to add the entropy term.
        samples_mc_entropy: samples for the entropy of a distribution without a closed form.
        entropy_coeff: c_H, default 0.01; or, for a composite action, one for each head, by the name of its action. 0
            leaves the entropy out altogether, also if another number is assigned later.
        critic_coeff: c_V; None switches the critic's term off.
        loss_critic_type: the distance d, ``"l1"``, ``"l2"`` or ``"smooth_l1"``.
        advantage_norm: scale the advantage by running statistics of the value targets. They are updated by
            training-mode calls that compute the advantage themselves.
        gamma: gone; the discount belongs to the value estimator.
        separate_losses: keep the critic's gradient away from parameters that it shares with the actor.
        advantage_key, value_target_key: gone; use ``set_keys``.
        functional: hold the parameters in ``actor_network_params`` and ``critic_network_params``. Otherwise the
            networks are plain sub-modules.
        actor, critic: other names of ``actor_network`` and ``critic_network``.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        clip_value: let the value move by at most this much away from the stored ``state_value``. Where the loss
            computes the advantage itself, the stored value is the current one, and nothing is clipped.

    Raises:
        TypeError: if a network is missing; for ``gamma``, or an ``entropy_coeff`` that is no number and no mapping.
        ValueError: for options out of range.
        RuntimeError: for a key in the constructor.

    Example:
        >>> import torch
        >>> from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule
        >>> logits = TensorDictModule(torch.nn.Linear(3, 2), in_keys=["observation"], out_keys=["logits"])
        >>> draw = ProbabilisticTensorDictModule(
        ...     ["logits"], ["action"], distribution_class=torch.distributions.Categorical, return_log_prob=True
        ... )
        >>> actor = ProbabilisticTensorDictSequential(logits, draw)
        >>> critic = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["observation"], out_keys=["state_value"])
        >>> data = actor(TensorDict({"observation": torch.randn(5, 3)}, [5])).detach()
        >>> data = data.update({"advantage": torch.ones(5, 1), "value_target": torch.randn(5, 1)})
        >>> loss = A2CLoss(actor, critic, entropy_coeff=0.0)
        >>> out = loss(data)
        >>> bool(torch.isclose(out["loss_objective"], -data["action_log_prob"].mean()))
        True
        >>> loss.total(out).backward()
    """

    _schedulable_buffers = frozenset({"entropy_coeff", "critic_coeff"})

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential | None = None,
        critic_network: TensorDictModuleBase | None = None,
        *,
        entropy_bonus: bool = True,
        samples_mc_entropy: int = 1,
        entropy_coeff: float | Tensor | Mapping[NestedKey, float] | None = None,
        critic_coeff: float | Tensor | None = 1.0,
        loss_critic_type: str = "smooth_l1",
        advantage_norm: AdvantageNorm | None = None,
        gamma: float | None = None,
        separate_losses: bool = False,
        advantage_key: str | None = None,
        value_target_key: str | None = None,
        functional: bool = True,
        actor: ProbabilisticTensorDictSequential | None = None,
        critic: TensorDictModuleBase | None = None,
        reduction: str | None = None,
        clip_value: float | Tensor | None = None,
    ) -> None:
        self._refuse_gamma(gamma)
        actor_network = self._required_one_of("actor_network", actor_network, "actor", actor)
        critic_network = self._required_one_of("critic_network", critic_network, "critic", critic)
        advantage_norm = self._checked_advantage_norm(advantage_norm)
        super().__init__()
        self._set_deprecated_ctor_keys(advantage_key=advantage_key, value_target_key=value_target_key)
        self.reduction = "mean" if reduction is None else reduction
        self._register_networks(actor_network, critic_network, functional=functional, separate_losses=separate_losses)
        self._register_entropy_options(entropy_bonus, samples_mc_entropy, entropy_coeff)
        if isinstance(entropy_coeff, (int, float, Tensor)) and entropy_coeff == 0:
            self.entropy_bonus = False
        self._register_critic_coeff(critic_coeff)
        self._register_critic_options(loss_critic_type, clip_value)
        self.advantage_norm = advantage_norm
        self.out_keys = list(self._iter_out_keys())

    def _iter_out_keys(self) -> Iterator[str]:
        """What dispatch returns, in order."""
        yield "loss_objective"
        if self._critic_is_on:
            yield "loss_critic"
        if self.entropy_bonus:
            yield from ("entropy", "loss_entropy")

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
            RuntimeError: if the stored action requires grad, or value and value target differ in shape.
            NotImplementedError: for an unknown reduction or critic loss.
        """
        data, computed = self._prepare(tensordict)
        advantage = data.get(self.tensor_keys.advantage)
        if self.advantage_norm is not None:
            advantage = self._scaled_by_norm(advantage, data, computed, self.advantage_norm)
        distribution = self._actor_distribution(data)
        entries: dict[str, Tensor | TensorDictBase] = {
            "loss_objective": self._likelihood_objective(data, distribution, advantage)
        }
        if self.entropy_bonus:
            entries.update(self._entropy_terms(distribution, data))
        if self._critic_is_on:
            entries.update(self._critic_terms(data))
        return self._reduce_entries(TensorDict(entries), data)

    def loss_critic(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor | None]:
        """The critic's term alone, element-wise ``[*B, 1]`` and not reduced.

        Returns:
            The loss and the share of clipped values (None without ``clip_value``).
        """
        terms = self._critic_terms(tensordict)
        return terms["loss_critic"], terms.get("value_clip_fraction")
