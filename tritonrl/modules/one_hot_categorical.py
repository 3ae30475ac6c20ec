"""A categorical distribution whose outcomes are one-hot encoded."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor
from torch.distributions import OneHotCategorical as TorchOneHotCategorical
from torch.distributions import RelaxedOneHotCategorical
from torch.types import _size

from tritonrl.modules.greedy_action import one_hot_argmax

__all__ = ["OneHotCategorical", "ReparamGradientStrategy"]


class ReparamGradientStrategy(Enum):
    """Where the gradient of a sample of discrete outcomes comes from."""

    PassThrough = 1
    """The sample is one-hot, its gradient that of the probabilities (straight-through: Bengio et al. 2013)."""
    RelaxedOneHot = 2
    """The sample is a point of the simplex near a corner (Gumbel-softmax: Jang et al. 2017), with its own gradient."""


class OneHotCategorical(TorchOneHotCategorical):
    """Categorical distribution over one-hot vectors: what policies over the ``one_hot`` action space draw from.

    Args:
        logits: unnormalised log-probabilities, ``[*B, n]``. Read back, ``logits`` are normalised.
        probs: unnormalised probabilities, instead of ``logits``.
        grad_method: where the gradient of :meth:`rsample` comes from.
        temperature: of the relaxed samples.

    Raises:
        ValueError: if both of ``logits`` and ``probs`` are given, or neither.

    Example:
        >>> choice = OneHotCategorical(logits=torch.tensor([[0.0, 9.0, 0.0]]))
        >>> choice.mode, choice.log_prob(choice.mode)
        (tensor([[0, 1, 0]]), tensor([-0.0002]))
    """

    num_params = 1

    def __init__(
        self,
        logits: Tensor | None = None,
        probs: Tensor | None = None,
        grad_method: ReparamGradientStrategy = ReparamGradientStrategy.PassThrough,
        temperature: float = 1.0,
    ) -> None:
        # Validation reads the numbers: it would wait for the device, and break a compiled graph.
        super().__init__(probs=probs, logits=logits, validate_args=False)
        self.grad_method = grad_method
        self.temperature = temperature

    def expand(self, batch_shape: _size, _instance: OneHotCategorical | None = None) -> OneHotCategorical:
        new = self._get_checked_instance(OneHotCategorical, _instance)
        new.grad_method, new.temperature = self.grad_method, self.temperature
        return super().expand(batch_shape, new)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return True

    @property
    def mode(self) -> Tensor:
        """The most probable outcome, int64."""
        return one_hot_argmax(self.logits)

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable outcome, int64."""
        return self.mode

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability ``[*B]`` of a one-hot vector ``[*B, n]`` of any type."""
        logits, value = torch.broadcast_tensors(self.logits, value)
        return logits.gather(-1, value.argmax(-1, keepdim=True)).squeeze(-1)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """A one-hot vector, int64, ``[*sample_shape, *B, n]``."""
        return super().sample(torch.Size(sample_shape)).long()

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A differentiable sample ``[*sample_shape, *B, n]``, in the type of the logits; see ``grad_method``."""
        if self.grad_method is ReparamGradientStrategy.RelaxedOneHot:
            temperature = torch.full_like(self.logits[..., 0], self.temperature).unsqueeze(-1)
            relaxed = RelaxedOneHotCategorical(temperature, logits=self.logits, validate_args=False)
            return relaxed.rsample(torch.Size(sample_shape))
        return self.sample(sample_shape).to(self.probs.dtype) + (self.probs - self.probs.detach())
