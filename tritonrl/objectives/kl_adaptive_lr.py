"""A learning rate that follows the KL divergence between successive policies."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["KLAdaptiveLR"]


class KLAdaptiveLR:
    """Lower the learning rate when the policy moves too far in an update, raise it when it hardly moves.

    ``step(kl)`` divides the rate of every parameter group by ``factor`` if ``kl > 2 * target_kl``, multiplies it if
    ``0 < kl < target_kl / 2``, and clamps it to ``[min_lr, max_lr]``. A KL of exactly 0 leaves the rate alone.
    (Adaptive schedule of Rudin et al. 2022, "Learning to walk in minutes", after the penalty rule of Schulman et al.
    2017.)

    Args:
        optimizer: its parameter groups are changed.
        target_kl: the KL divergence to aim at, > 0.

    Keyword Args:
        factor: > 1.
        min_lr: lower bound, > 0.
        max_lr: upper bound, >= ``min_lr``.

    Raises:
        ValueError: if an argument is outside its range.

    Examples:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
        >>> schedule = KLAdaptiveLR(optimizer, target_kl=0.01, factor=2.0)
        >>> schedule.step(0.05)
        >>> schedule.get_last_lr()
        [0.0005]
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        target_kl: float,
        *,
        factor: float = 1.5,
        min_lr: float = 1e-5,
        max_lr: float = 1e-2,
    ) -> None:
        if not 0 < target_kl < math.inf:
            raise ValueError(f"target_kl must be finite and positive, got {target_kl}.")
        if not 1 < factor < math.inf:
            raise ValueError(f"factor must be finite and greater than 1, got {factor}.")
        if not 0 < min_lr <= max_lr < math.inf:
            raise ValueError(f"min_lr and max_lr must satisfy 0 < min_lr <= max_lr < inf, got {min_lr} and {max_lr}.")
        self.optimizer = optimizer
        self.target_kl = target_kl
        self.factor = factor
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.last_kl: float | None = None

    def step(self, kl: float | Tensor) -> None:
        """Adapt the learning rates to the KL divergence measured in the last update.

        Raises:
            ValueError: if ``kl`` is not finite.
        """
        kl = float(kl)
        if not math.isfinite(kl):
            raise ValueError(f"kl must be finite, got {kl}.")
        scale = 1.0
        if kl > 2 * self.target_kl:
            scale = 1 / self.factor
        elif 0 < kl < self.target_kl / 2:
            scale = self.factor
        for group in self.optimizer.param_groups:
            self._set_lr(group, scale)
        self.last_kl = kl

    def _set_lr(self, group: dict[str, Any], scale: float) -> None:
        lr = min(max(float(group["lr"]) * scale, self.min_lr), self.max_lr)
        if isinstance(group["lr"], Tensor):
            # A compiled optimizer holds this tensor: its value changes, not the object.
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr

    def get_last_lr(self) -> list[float]:
        """The present learning rate of each parameter group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer."""
        return {key: value for key, value in vars(self).items() if key != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state given by :meth:`state_dict`."""
        vars(self).update(state_dict)
