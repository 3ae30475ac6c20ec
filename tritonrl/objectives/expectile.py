"""Expectile regression and the weight that its advantage gives an action: the arithmetic of implicit Q-learning."""

from __future__ import annotations

from torch import Tensor

__all__ = ["MAX_ADVANTAGE_WEIGHT", "advantage_weight", "expectile_loss"]

MAX_ADVANTAGE_WEIGHT = 100.0
"""Upper end of the exponentiated advantage, as in the authors' code: one sample cannot take over a batch."""


def expectile_loss(diff: Tensor, expectile: float | Tensor) -> Tensor:
    r"""Asymmetric squared error, whose minimiser is an expectile (Newey and Powell 1987).

    .. math:: L_\tau(u) = |\tau - 1[u \le 0]|\; u^2

    With :math:`\tau = 1/2` that is half the squared error, and the minimiser the mean; towards 1 the minimiser goes to
    the largest value.

    Args:
        diff: u, what is regressed on minus the prediction, any shape.
        expectile: :math:`\tau`, between 0 and 1.

    Returns:
        Element-wise loss, in the shape and the dtype of ``diff``.

    Examples:
        >>> import torch
        >>> expectile_loss(torch.tensor([2.0, -2.0]), 0.75)
        tensor([3., 1.])
    """
    weight = (expectile - (diff <= 0).to(diff.dtype)).abs()
    return weight * diff.square()


def advantage_weight(advantage: Tensor, temperature: float | Tensor) -> Tensor:
    r"""How much an action counts in advantage-weighted regression (Peng et al. 2019, https://arxiv.org/abs/1910.00177).

    .. math:: w = \min\big(\exp(\beta A),\, 100\big)

    Args:
        advantage: A, any shape.
        temperature: :math:`\beta`, an inverse temperature: 0 weighs all actions alike (behaviour cloning).

    Examples:
        >>> import torch
        >>> advantage_weight(torch.tensor([0.0, 50.0]), 1.0)
        tensor([  1., 100.])
    """
    return (advantage * temperature).exp().clamp_max(MAX_ADVANTAGE_WEIGHT)
