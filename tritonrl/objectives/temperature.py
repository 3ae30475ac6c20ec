"""The entropy temperature of the soft actor-critics: its bounds and its loss."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

__all__ = ["EntropyTemperature"]

_UNBOUNDED_ALPHA = 1e9


class EntropyTemperature(nn.Module):
    """Mix-in: the temperature alpha = exp(log_alpha), learnt (a parameter) or fixed (a buffer).

    Learning alpha was introduced in Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications",
    https://arxiv.org/abs/1812.05905.
    """

    _schedulable_buffers: ClassVar[frozenset[str]] = frozenset(
        {"alpha_init", "log_alpha", "min_log_alpha", "max_log_alpha"}
    )

    log_alpha: Tensor
    alpha_init: Tensor
    min_log_alpha: Tensor | None
    max_log_alpha: Tensor | None

    def _register_temperature(
        self,
        alpha_init: float,
        min_alpha: float | None,
        max_alpha: float | None,
        fixed_alpha: bool,
        device: torch.device | None = None,
    ) -> None:
        """Register ``log_alpha``, ``alpha_init`` and the bounds ``min_log_alpha`` and ``max_log_alpha``.

        A lower bound of 0 is none. Where there is a lower bound and no upper one the latter is 1e9, as in TorchRL, so
        that states have the same entries.

        Raises:
            ValueError: if a number is not positive, or the lower bound exceeds the upper one.
        """
        min_alpha = None if min_alpha == 0 else min_alpha
        for name, value in (("alpha_init", alpha_init), ("min_alpha", min_alpha), ("max_alpha", max_alpha)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if min_alpha is not None and max_alpha is None:
            max_alpha = _UNBOUNDED_ALPHA
        if min_alpha is not None and max_alpha is not None and min_alpha > max_alpha:
            raise ValueError(f"min_alpha must not exceed max_alpha, got {min_alpha} and {max_alpha}")
        self.register_buffer("alpha_init", torch.tensor(float(alpha_init), device=device))
        for name, bound in (("min_log_alpha", min_alpha), ("max_log_alpha", max_alpha)):
            log_bound = None if bound is None else torch.tensor(math.log(bound), device=device)
            self.register_buffer(name, log_bound)
        log_alpha = torch.tensor(math.log(alpha_init), device=device)
        if fixed_alpha:
            self.register_buffer("log_alpha", log_alpha)
        else:
            self.register_parameter("log_alpha", nn.Parameter(log_alpha))

    def _clamped_log_alpha(self) -> Tensor:
        """log_alpha within its bounds, without gradient."""
        log_alpha = self.log_alpha.detach()
        if self.min_log_alpha is None and self.max_log_alpha is None:
            return log_alpha
        return log_alpha.clamp(self.min_log_alpha, self.max_log_alpha)

    def _current_alpha(self) -> Tensor:
        """alpha, without gradient, after log_alpha itself was brought back into its bounds."""
        self._clamp_log_alpha_()
        return self.log_alpha.detach().exp()

    def _clamp_log_alpha_(self) -> None:
        """Bring log_alpha itself back into its bounds: beyond them its gradient would only wind it up."""
        if self.min_log_alpha is not None or self.max_log_alpha is not None:
            with torch.no_grad():
                self.log_alpha.clamp_(self.min_log_alpha, self.max_log_alpha)

    def _alpha_term(self, log_prob: Tensor, target_entropy: Tensor | float) -> Tensor:
        r"""Element-wise loss of the temperature: its gradient raises alpha where the entropy is below its target.

        .. math:: -\log\alpha \, \big(\mathrm{sg}(\log \pi) + \bar{H}\big)

        with log alpha rather than alpha in front, as in the authors' code.
        """
        return -self.log_alpha * (log_prob.detach() + target_entropy)
