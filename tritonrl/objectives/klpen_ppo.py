"""Proximal policy optimisation with a penalty on the divergence instead of a clipped weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
)
from torch import Tensor
from torch.distributions import Distribution

from tritonrl.objectives.divergence import kl_between
from tritonrl.objectives.log_weight import LogWeight
from tritonrl.objectives.metrics import masked_mean
from tritonrl.objectives.on_policy import AdvantageNorm
from tritonrl.objectives.ppo_loss import Metrics, PPOLoss
from tritonrl.objectives.snapshot import snapshot
from tritonrl.objectives.validity import hide_invalid

__all__ = ["KLPENPPOLoss"]


class KLPENPPOLoss(PPOLoss):
    r"""PPO with an adaptive penalty on the divergence, Schulman et al. 2017 (section 4),
    https://arxiv.org/abs/1707.06347.

    .. math:: L_{objective} = -\mathbb{E}\left[w A - \beta\, \mathrm{KL}(\pi_{old}(\cdot|o)\,\|\,\pi(\cdot|o))\right]

    In training mode each call then adapts :math:`\beta`: it is multiplied by ``increment`` if the mean divergence
    exceeds 1.5 ``dtarg``, and by ``decrement`` if it is below ``dtarg`` / 1.5. ``reset()`` brings the first value back.

    Everything else is as in :class:`PPOLoss`, whose arguments and entries are not repeated here. The data must also
    hold the parameters of the old policy's distribution, as the actor wrote them (``loc`` and ``scale``, say). With
    ``delay_actor`` the old policy is the proximal one, and they are not needed. The further metric is ``kl``, ``[*B,
    1]``, not reduced.

    Keyword Args:
        dtarg: the divergence aimed at, in nats, not negative.
        beta: first weight of the penalty, a schedulable buffer.
        increment: factor of at least 1 for a penalty that was too weak.
        decrement: factor in [0, 1] for one that was too strong.
        samples_mc_kl: samples for the divergence of distributions without a closed form.

    Raises:
        ValueError: for an option out of range.
        RuntimeError: if the actor has not exactly one probabilistic module.
        KeyError: when called on data without the parameters of the old distribution.

    Example:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> logits = TensorDictModule(torch.nn.Linear(3, 2), in_keys=["observation"], out_keys=["logits"])
        >>> draw = ProbabilisticTensorDictModule(
        ...     ["logits"], ["action"], distribution_class=torch.distributions.Categorical, return_log_prob=True
        ... )
        >>> actor = ProbabilisticTensorDictSequential(logits, draw)
        >>> data = actor(TensorDict({"observation": torch.randn(5, 3)}, [5])).detach()
        >>> data["advantage"] = torch.randn(5, 1)
        >>> loss = KLPENPPOLoss(actor, critic_coeff=0, beta=3.0)
        >>> loss(data)["kl"].abs().max() < 1e-6  # nothing has moved yet ...
        tensor(True)
        >>> loss.beta  # ... so the penalty is relaxed
        tensor(1.5000)
    """

    _schedulable_buffers = frozenset({"beta"})

    beta: Tensor

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential | None = None,
        critic_network: TensorDictModuleBase | None = None,
        *,
        dtarg: float = 0.01,
        beta: float | Tensor = 1.0,
        increment: float = 2,
        decrement: float = 0.5,
        samples_mc_kl: int = 1,
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
        _check_options(dtarg, beta, increment, decrement, samples_mc_kl)
        _check_one_distribution(actor if actor_network is None else actor_network)
        super().__init__(
            actor_network,
            critic_network,
            entropy_bonus=entropy_bonus,
            samples_mc_entropy=samples_mc_entropy,
            entropy_coeff=entropy_coeff,
            log_explained_variance=log_explained_variance,
            critic_coeff=critic_coeff,
            loss_critic_type=loss_critic_type,
            normalize_advantage=normalize_advantage,
            normalize_advantage_exclude_dims=normalize_advantage_exclude_dims,
            advantage_norm=advantage_norm,
            gamma=gamma,
            separate_losses=separate_losses,
            advantage_key=advantage_key,
            value_target_key=value_target_key,
            value_key=value_key,
            functional=functional,
            actor=actor,
            critic=critic,
            reduction=reduction,
            clip_value=clip_value,
            delay_actor=delay_actor,
            max_importance_ratio=max_importance_ratio,
            device=device,
        )
        self.dtarg = dtarg
        self.increment = increment
        self.decrement = decrement
        self.samples_mc_kl = samples_mc_kl
        self._beta_init = float(beta)
        self._register_coefficient("beta", beta, device)

    def reset(self) -> None:
        """Bring the first value of beta back."""
        with torch.no_grad():
            self.beta.fill_(self._beta_init)

    # -- keys -----------------------------------------------------------------------------------------------------

    def _distribution_keys(self) -> list[NestedKey]:
        """Where the parameters of the old policy's distribution are."""
        return [unravel_key(key) for key in self.actor_network.dist_params_keys]

    def _iter_in_keys(self) -> Iterator[NestedKey]:
        yield from super()._iter_in_keys()
        yield from self._distribution_keys()

    def _iter_out_keys(self) -> Iterator[str]:
        first, *rest = super()._iter_out_keys()
        yield from (first, "kl", *rest)

    # -- the loss -------------------------------------------------------------------------------------------------

    def _reference_policy(self, data: TensorDictBase) -> Distribution | None:
        if self.delay_actor:
            return super()._reference_policy(data)
        keys = self._distribution_keys()
        missing = [key for key in keys if data.get(key, None) is None]
        if missing:
            raise KeyError(
                f"{missing} not found in the input tensordict: the penalty needs the parameters {keys} of the "
                "distribution "
                "that the data were collected with, as the actor writes them"
            )
        params = data.select(*keys, *self._present_mask_keys(data)).detach()
        # 1 is a harmless value of a location, a scale and a logit alike.
        hide_invalid(params, keys, self._loss_mask_keys(), fill=1.0)
        return self.actor_network.build_dist_from_params(params)

    def _present_mask_keys(self, data: TensorDictBase) -> list[NestedKey]:
        return [key for key in self._loss_mask_keys() if data.get(key, None) is not None]

    def _objective(
        self,
        data: TensorDictBase,
        weight: LogWeight,
        advantage: Tensor,
        distribution: Distribution,
        reference: Distribution | None,
    ) -> tuple[Tensor, Metrics]:
        assert reference is not None
        kl = kl_between(reference, distribution, self.samples_mc_kl).unsqueeze(-1)
        # Beta is about to be changed in place, and the backward pass needs the value that was used.
        beta = snapshot(self.beta) if self.training else self.beta
        loss = -(weight.total.exp() * advantage - beta * kl)
        if self.training:
            self._adapt_beta(masked_mean(kl, self._loss_mask(data, kl)))
        return loss, {"kl": kl.detach()}

    @torch.no_grad()
    def _adapt_beta(self, mean_kl: Tensor) -> None:
        """Multiply beta by the factor that the divergence calls for; a select, so that nothing waits for the device."""
        one = torch.ones_like(self.beta)
        factor = torch.where(mean_kl > 1.5 * self.dtarg, one * self.increment, one)
        factor = torch.where(mean_kl < self.dtarg / 1.5, one * self.decrement, factor)
        self.beta.mul_(factor)


def _check_options(dtarg: float, beta: float | Tensor, increment: float, decrement: float, samples_mc_kl: int) -> None:
    if not dtarg >= 0:
        raise ValueError(f"dtarg must not be negative, got {dtarg}")
    if isinstance(beta, bool) or not beta >= 0:
        raise ValueError(f"beta must be a number that is not negative, got {beta}")
    if not increment >= 1:
        raise ValueError(f"increment must be at least 1, got {increment}")
    if not 0 <= decrement <= 1:
        raise ValueError(f"decrement must be between 0 and 1, got {decrement}")
    if isinstance(samples_mc_kl, bool) or not isinstance(samples_mc_kl, int) or samples_mc_kl < 1:
        raise ValueError(f"samples_mc_kl must be an integer of at least 1, got {samples_mc_kl!r}")


def _check_one_distribution(actor: Any) -> None:
    if actor is None:
        return  # The base class says what is missing.
    count = sum(isinstance(module, ProbabilisticTensorDictModule) for module in actor.modules())
    if count != 1:
        raise RuntimeError(f"KLPENPPOLoss needs an actor with exactly one probabilistic module, got {count}")
