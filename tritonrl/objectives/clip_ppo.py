"""Proximal policy optimisation with a clipped objective."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor
from torch.distributions import Distribution

from tritonrl.objectives.log_weight import LogWeight
from tritonrl.objectives.metrics import effective_sample_size, masked_max, masked_mean
from tritonrl.objectives.on_policy import AdvantageNorm
from tritonrl.objectives.ppo_loss import Metrics, PPOLoss

__all__ = ["ClipPPOLoss"]


class ClipPPOLoss(PPOLoss):
    r"""PPO with a clipped importance weight, Schulman et al. 2017, https://arxiv.org/abs/1707.06347.

    .. math::
        L_{objective} =
        -\mathbb{E}\left[\min\big(w A,\; \mathrm{clip}(w, 1 - \epsilon_{low}, 1 + \epsilon_{high}) A\big)\right]

    Everything else is as in :class:`PPOLoss`, whose arguments and entries are not repeated here. The further metrics
    are ``clip_fraction`` (share of weights outside the range), ``ESS`` (effective sample size as a share of the batch,
    over the first dimension), ``max_ratio`` and ``mean_ratio`` (of the weights).

    With ``delay_actor`` the range limits pi / pi_prox, and both terms carry the weight pi_prox / pi_behaviour.

    Keyword Args:
        clip_epsilon: the range: one number in [0, 1], or a pair (low, high) with low < 1. Schedule it by assignment to
            ``clip_epsilon``, or to ``clip_epsilon_low`` and ``clip_epsilon_high``.
        clip_value: as in :class:`PPOLoss`; True stands for ``clip_epsilon``, False for None.

    Raises:
        ValueError: for a range out of bounds, or ``clip_value=True`` with a pair.

    Example:
        >>> from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule
        >>> logits = TensorDictModule(torch.nn.Linear(3, 2), in_keys=["observation"], out_keys=["logits"])
        >>> draw = ProbabilisticTensorDictModule(
        ...     ["logits"], ["action"], distribution_class=torch.distributions.Categorical, return_log_prob=True
        ... )
        >>> critic = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["observation"], out_keys=["state_value"])
        >>> loss = ClipPPOLoss(ProbabilisticTensorDictSequential(logits, draw), critic, clip_epsilon=0.2)
        >>> loss.clip_epsilon = 0.1  # a schedule; a compiled loss is not compiled again
        >>> loss.clip_epsilon
        tensor(0.1000)
    """

    _schedulable_buffers = frozenset({"clip_epsilon", "clip_epsilon_low", "clip_epsilon_high"})

    clip_epsilon: Tensor
    clip_epsilon_low: Tensor
    clip_epsilon_high: Tensor

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential | None = None,
        critic_network: TensorDictModuleBase | None = None,
        *,
        clip_epsilon: float | Tensor | tuple[float, float] = 0.2,
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
        clip_value: bool | float | Tensor | None = None,
        delay_actor: bool = False,
        max_importance_ratio: float | Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        bounds = _checked_clip_epsilon(clip_epsilon)
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
            clip_value=_clip_value_or_epsilon(clip_value, bounds),
            delay_actor=delay_actor,
            max_importance_ratio=max_importance_ratio,
            device=device,
        )
        self._asymmetric = isinstance(bounds, tuple)
        if isinstance(bounds, tuple):
            self._register_coefficient("clip_epsilon_low", bounds[0], device)
            self._register_coefficient("clip_epsilon_high", bounds[1], device)
        else:
            self._register_coefficient("clip_epsilon", bounds, device)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("clip_epsilon") and "_asymmetric" in self.__dict__ and name not in self._buffers:
            self._assign_other_range(name, value)
        elif name == "clip_epsilon" and isinstance(value, (tuple, list)):
            raise AttributeError("clip_epsilon is one number in this loss: build it with a pair to assign a pair")
        else:
            super().__setattr__(name, value)

    def _assign_other_range(self, name: str, value: Any) -> None:
        """Assign to a range that this loss has no buffer for: a pair, to a loss built with a pair, makes sense."""
        if not self._asymmetric:
            raise AttributeError(
                f"cannot assign {name}: this loss was built with one number, schedule clip_epsilon instead"
            )
        if not isinstance(value, (tuple, list)):
            raise AttributeError(
                f"cannot assign one number to {name}: this loss was built with a pair, schedule clip_epsilon_low and "
                "clip_epsilon_high instead"
            )
        self.clip_epsilon_low, self.clip_epsilon_high = _checked_clip_epsilon(value)

    def _iter_out_keys(self) -> Iterator[str]:
        first, *rest = super()._iter_out_keys()
        yield from (first, "clip_fraction", *rest, "ESS", "kl_approx", "max_ratio", "mean_ratio")

    def _clip_bounds(self) -> tuple[Tensor, Tensor]:
        """The range of log w."""
        if self._asymmetric:
            return (-self.clip_epsilon_low).log1p(), self.clip_epsilon_high.log1p()
        return (-self.clip_epsilon).log1p(), self.clip_epsilon.log1p()

    def _objective(
        self,
        data: TensorDictBase,
        weight: LogWeight,
        advantage: Tensor,
        distribution: Distribution,
        reference: Distribution | None,
    ) -> tuple[Tensor, Metrics]:
        low, high = self._clip_bounds()
        clipped = weight.ratio.clamp(low, high)
        gain = torch.minimum(weight.total.exp() * advantage, weight.corrected(clipped).exp() * advantage)
        outside = (clipped != weight.ratio).to(weight.ratio.dtype)
        return -gain, {"clip_fraction": masked_mean(outside, self._loss_mask(data, outside))}

    def _weight_metrics(self, data: TensorDictBase, weight: LogWeight) -> Metrics:
        log_weight = weight.total.detach()
        mask = self._loss_mask(data, log_weight)
        ratio = log_weight.exp()
        return {
            "ESS": effective_sample_size(log_weight, mask).squeeze(-1),
            "max_ratio": masked_max(ratio, mask),
            "mean_ratio": masked_mean(ratio, mask),
        }


def _checked_clip_epsilon(clip_epsilon: Any) -> Any:
    """The range as a number, or as a pair.

    Raises:
        ValueError: if it is neither, or out of bounds.
    """
    if isinstance(clip_epsilon, (tuple, list)):
        if len(clip_epsilon) != 2:
            raise ValueError(f"clip_epsilon must be a number or a pair (low, high), got {clip_epsilon!r}")
        low, high = clip_epsilon
        if not (0 <= low < 1 and high >= 0):
            raise ValueError(f"clip_epsilon=(low, high) must have 0 <= low < 1 and high >= 0, got {clip_epsilon!r}")
        return low, high
    if isinstance(clip_epsilon, bool) or not isinstance(clip_epsilon, (int, float, Tensor)):
        raise ValueError(f"clip_epsilon must be a number or a pair (low, high), got {clip_epsilon!r}")
    if not isinstance(clip_epsilon, Tensor) and not 0 <= clip_epsilon <= 1:
        raise ValueError(f"clip_epsilon must be between 0 and 1, got {clip_epsilon!r}")
    return clip_epsilon


def _clip_value_or_epsilon(clip_value: bool | float | Tensor | None, clip_epsilon: Any) -> float | Tensor | None:
    """``clip_value`` with True and False spelt out."""
    if clip_value is True:
        if isinstance(clip_epsilon, tuple):
            raise ValueError(
                f"clip_value=True stands for clip_epsilon, which is the pair {clip_epsilon}: pass clip_value as a "
                "number"
            )
        return clip_epsilon
    return None if clip_value is False else clip_value
