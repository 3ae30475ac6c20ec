"""What a loss reports beside the losses: statistics over the valid entries, free of gradient.

A mask is boolean, ``True`` where the entry counts, and has the leading dimensions of the values it filters. Invalid
entries are left out by selection, so that a NaN among them stays there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tritonrl.objectives.reduction import expand_validity_mask


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of the valid entries (0 if there is none), detached, 0-dim.

    Example:
        >>> masked_mean(torch.tensor([1.0, float("nan"), 3.0]), torch.tensor([True, False, True]))
        tensor(2.)
    """
    values = values.detach()
    if mask is None:
        return values.mean()
    mask = expand_validity_mask(mask, values)
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum().clamp_min(1)


def masked_max(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Largest valid entry (0 if there is none), detached, 0-dim."""
    values = values.detach()
    if mask is None:
        return values.max()
    mask = expand_validity_mask(mask, values)
    largest = torch.where(mask, values, torch.full_like(values, -math.inf)).max()
    return torch.where(mask.any(), largest, torch.zeros_like(largest))


def effective_sample_size(log_weight: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Share of the batch that importance weighting leaves in effect, Kish (1965), over the first dimension.

    .. math:: \mathrm{ESS} = \frac{\left(\sum_i w_i\right)^2}{B \sum_i w_i^2}, \qquad w_i = \exp(\ell_i)

    1 when all weights are equal, 1/B when one weight is everything.

    Args:
        log_weight: logarithm of the importance weights, ``[B, *]``.
        mask: which entries count; B is then their number in each column, and a column without any gets 0.

    Returns:
        Tensor ``[*]``, detached: the first dimension is gone.

    Example:
        >>> effective_sample_size(torch.zeros(4))
        tensor(1.)
    """
    log_weight = log_weight.detach()
    if mask is None:
        return _exp_ratio(log_weight) / log_weight.shape[0]
    mask = expand_validity_mask(mask, log_weight)
    count = mask.sum(0)
    share = _exp_ratio(torch.where(mask, log_weight, torch.full_like(log_weight, -math.inf))) / count.clamp_min(1)
    return torch.where(count > 0, share, torch.zeros_like(share))


def _exp_ratio(log_weight: Tensor) -> Tensor:
    """(sum of the weights) squared / sum of the squared weights, along the first dimension, without overflow."""
    return (2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp()


def explained_variance(value: Tensor, value_target: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Share of the target's variance that the value function explains, over the first dimension.

    .. math:: 1 - \frac{\mathrm{Var}(y - V)}{\mathrm{Var}(y) + \epsilon}

    with biased variances and the machine epsilon of the dtype: 1 for perfect values, 0 for a constant, negative for
        worse.

    Args:
        value: values V, ``[B, *]``.
        value_target: targets y, same shape.
        mask: which entries count.

    Returns:
        Tensor ``[*]``, detached: the first dimension is gone.

    Example:
        >>> explained_variance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
        tensor(1.)
    """
    target = value_target.detach()
    residual = target - value.detach()
    eps = torch.finfo(target.dtype).eps
    return 1 - _variance(residual, mask) / (_variance(target, mask) + eps)


def _variance(values: Tensor, mask: Tensor | None) -> Tensor:
    """Biased variance of the valid entries along the first dimension."""
    if mask is None:
        return values.var(0, correction=0)
    mask = expand_validity_mask(mask, values)
    zero = torch.zeros_like(values)
    count = mask.sum(0).clamp_min(1)
    mean = torch.where(mask, values, zero).sum(0) / count
    return torch.where(mask, values - mean, zero).square().sum(0) / count
