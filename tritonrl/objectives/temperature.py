"""The entropy temperature of the soft actor-critics: its bounds, its loss and the entropy that it aims at."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import NestedKey
from torch import Tensor, nn

__all__ = ["EntropyTemperature", "auto_target_entropy"]


class EntropyTemperature(nn.Module):
    """Mix-in: the temperature alpha = exp(log_alpha), learnt (a parameter) or fixed (a buffer).

    Learning alpha was introduced in Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications",
    https://arxiv.org/abs/1812.05905.
    """

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

        Raises:
            ValueError: if a number is not positive, or the lower bound exceeds the upper one.
        """
        for name, value in (("alpha_init", alpha_init), ("min_alpha", min_alpha), ("max_alpha", max_alpha)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
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


def auto_target_entropy(action_spec: Any, action_key: NestedKey = "action") -> float:
    """``-dim(A)``, the usual target of SAC: minus the number of numbers in one action.

    Args:
        action_spec: anything with a ``shape`` (a spec of TorchRL, a ``gymnasium.spaces.Box``), or a container of such by
            key. Of a container that has a (batch) shape itself, those leading dimensions do not count. Of several
            actions, all count.
        action_key: where in a container the action is.

    Examples:
        >>> import types
        >>> auto_target_entropy(types.SimpleNamespace(shape=(3,)))
        -3.0
    """
    batch_dims = 0
    leaf = action_spec
    for part in (action_key,) if isinstance(action_key, str) else action_key:
        if not _is_container(leaf) or part not in list(leaf.keys()):
            break
        batch_dims = len(getattr(leaf, "shape", None) or ())
        leaf = leaf[part]
    return -float(_count(leaf, batch_dims))


def _is_container(spec: Any) -> bool:
    return hasattr(spec, "keys") and hasattr(spec, "__getitem__")


def _count(spec: Any, batch_dims: int) -> int:
    if _is_container(spec):
        own = max(batch_dims, len(getattr(spec, "shape", None) or ()))
        return sum(_count(entry, own) for _, entry in spec.items())
    shape = getattr(spec, "shape", None)
    if shape is None:
        raise ValueError(f"action_spec must have a shape, got {type(spec).__name__}")
    return math.prod(shape[batch_dims:])
