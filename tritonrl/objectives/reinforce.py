"""REINFORCE with a learnt baseline."""

from __future__ import annotations

from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase, dispatch
from torch import Tensor

from tritonrl.objectives.on_policy import OnPolicyLoss

__all__ = ["ReinforceLoss"]


class ReinforceLoss(OnPolicyLoss):
    r"""The likelihood-ratio policy gradient with a baseline, Williams 1992 (REINFORCE),
    https://doi.org/10.1007/BF00992696.

    .. math::
        L_{actor} = -\mathbb{E}\left[\log \pi(a|o)\, \mathrm{sg}(A)\right], \qquad
        L_{value} = \mathbb{E}\left[d(y, V(o))\right]

    with advantage A and value target y from the data, or computed by the value estimator (default GAE with gamma 0.99
    and lambda 0.95; see ``make_value_estimator``). The action is the stored one; nothing corrects for the age of the
    data, so they should come from the current policy.

    The data are not written to: every call on data without an advantage computes a new one. They hold, for batch size
    ``[*B]``: what the networks read; ``action``; and either ``advantage`` and ``value_target``, ``[*B, 1]``, or
    ``("next", ...)`` observations, ``reward``, ``done`` and ``terminated``. ``set_keys`` renames them.

    The result has the terms to add up, ``loss_actor`` and ``loss_value``, and with ``clip_value`` the metric
    ``value_clip_fraction``. Steps that a validity mask excludes count in none of them.

    Args:
        actor_network: the policy, a probabilistic tensordict module. Several actions come from a
            ``CompositeDistribution``.
        critic_network: the value function, writing ``state_value`` ``[*B, 1]``.

    Keyword Args:
        delay_value: take next values from ``target_critic_network_params``, which a ``SoftUpdate`` or ``HardUpdate``
            moves. Needs ``functional=True``.
        loss_critic_type: the distance d, ``"l1"``, ``"l2"`` or ``"smooth_l1"``.
        gamma: gone; the discount belongs to the value estimator.
        advantage_key, value_target_key: gone; use ``set_keys``.
        separate_losses: keep the critic's gradient away from parameters that it shares with the actor.
        functional: hold the parameters in ``actor_network_params`` and ``critic_network_params``. Otherwise the
            networks are plain sub-modules.
        actor, critic: other names of ``actor_network`` and ``critic_network``.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        clip_value: let the value move by at most this much (a float or a one-element tensor) away from the stored
            ``state_value``. Where the loss computes the advantage itself, the stored value is the current one, and
            nothing is clipped.

    Raises:
        TypeError: if a network is missing, or for ``gamma``.
        ValueError: for a ``clip_value`` that is no float and no one-element tensor.
        RuntimeError: for a key in the constructor, or ``delay_value=True`` without ``functional=True``.

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
        >>> loss = ReinforceLoss(actor, critic)
        >>> out = loss(data)
        >>> bool(torch.isclose(out["loss_actor"], -data["action_log_prob"].mean()))
        True
        >>> loss.total(out).backward()
    """

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential | None = None,
        critic_network: TensorDictModuleBase | None = None,
        *,
        delay_value: bool = False,
        loss_critic_type: str = "smooth_l1",
        gamma: float | None = None,
        advantage_key: str | None = None,
        value_target_key: str | None = None,
        separate_losses: bool = False,
        functional: bool = True,
        actor: ProbabilisticTensorDictSequential | None = None,
        critic: TensorDictModuleBase | None = None,
        reduction: str | None = None,
        clip_value: float | Tensor | None = None,
    ) -> None:
        self._refuse_gamma(gamma)
        actor_network = self._required_one_of("actor_network", actor_network, "actor", actor)
        critic_network = self._required_one_of("critic_network", critic_network, "critic", critic)
        if delay_value and not functional:
            raise RuntimeError(
                "delay_value=True needs functional=True: the delayed critic is in target_critic_network_params"
            )
        if clip_value is not None and not isinstance(clip_value, (float, Tensor)):
            raise ValueError(f"clip_value must be a float or a one-element tensor, got {clip_value!r}")
        super().__init__()
        self._set_deprecated_ctor_keys(advantage_key=advantage_key, value_target_key=value_target_key)
        self.reduction = "mean" if reduction is None else reduction
        self.delay_value = delay_value
        self._register_networks(
            actor_network,
            critic_network,
            functional=functional,
            separate_losses=separate_losses,
            delay_value=delay_value,
        )
        self._register_critic_options(loss_critic_type, clip_value)
        self.out_keys = ["loss_actor", "loss_value"]

    def _target_critic_params(self) -> TensorDictBase | None:
        return self.target_critic_network_params if self.delay_value else None

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The terms of the loss and the metric; see the class for what is read and returned.

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
        data, _ = self._prepare(tensordict)
        advantage = data.get(self.tensor_keys.advantage).detach()
        objective = self._likelihood_objective(data, self._actor_distribution(data), advantage)
        value_loss, metrics = self._value_regression(data)
        return self._reduce_entries(TensorDict({"loss_actor": objective, "loss_value": value_loss, **metrics}), data)

    def loss_critic(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor | None]:
        """The critic's term alone, element-wise ``[*B, 1]`` and not reduced.

        Returns:
            The loss and the share of clipped values (None without ``clip_value``).
        """
        loss, metrics = self._value_regression(tensordict)
        return loss, metrics.get("value_clip_fraction")
