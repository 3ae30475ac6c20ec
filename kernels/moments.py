r"""Count, mean and M2 (the sum of squared deviations) of many numbers, in parts that can be merged.

Parts merge exactly, whoever computed them: the tiles of a kernel, the minibatches of an epoch, the ranks of a process group
(Chan, Golub and LeVeque 1983). With :math:`n = \sum n_i`:

.. math:: \bar x = \tfrac1n \sum n_i \bar x_i, \qquad M = \sum M_i + n_i (\bar x_i - \bar x)^2
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dtypes import accumulate_dtype, moments_dtype
from .textbook import counted


def measure(x: Tensor, counts: Tensor | None = None) -> Tensor:
    """``[count, mean, M2]`` of the numbers that count."""
    dtype, x = moments_dtype(x.device), x.detach()
    if counts is None and x.numel():
        x = x.to(accumulate_dtype(x.dtype))
        # No copy in a wider dtype: the reductions themselves add up in float64 on the CPU, in a tree on a GPU.
        mean = x.mean(dtype=dtype)
        deviation = x - mean.to(x.dtype)
        correction = deviation.mean(dtype=dtype)  # What rounding the mean to the dtype of the data left over.
        m2 = deviation.square().sum(dtype=dtype) - x.numel() * correction.square()
        return torch.stack([torch.full_like(mean, x.numel()), mean, m2.clamp_min(0.0)])
    x = x.to(dtype)
    weight = torch.ones_like(x) if counts is None else counts.expand(x.shape).to(dtype)
    kept = x if counts is None else torch.where(counts, x, 0.0)
    count = weight.sum()
    mean = kept.sum() / count.clamp_min(1.0)
    deviation = torch.where(weight != 0, kept - mean, 0.0)
    return torch.stack([count, mean, (deviation * deviation).sum()])


def merge_moments(partials: Tensor) -> Tensor:
    """Merge moments of disjoint parts into those of the whole.

    Args:
        partials: ``[..., 3]``, each row a count, a mean and an M2: the moments of several calls, or of several processes,
            stacked (:func:`torch.stack`, ``all_gather``). Parts of count zero change nothing.

    Returns:
        ``[3]``: count, mean and M2 of the whole. Not differentiable. The same parts in the same order give the same bits.

    Raises:
        RuntimeError: if the last dimension of ``partials`` is not 3.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance".

    Example:
        >>> merge_moments(torch.tensor([[2.0, 1.0, 2.0], [2.0, 5.0, 2.0]]))        # 0, 2 and 4, 6
        tensor([ 4.,  3., 20.])
    """
    if not isinstance(partials, Tensor):
        raise TypeError(f"partials must be a tensor, got {type(partials).__name__}")
    if not partials.dim() or partials.shape[-1] != 3:
        raise RuntimeError(f"partials has shape {tuple(partials.shape)}, expected [..., 3]: count, mean, M2")
    count, mean, m2 = partials.detach().reshape(-1, 3).unbind(-1)
    total = count.sum()
    mean, m2 = torch.where(count > 0, mean, 0.0), torch.where(count > 0, m2, 0.0)
    overall = (count * mean).sum() / total.clamp_min(1.0)
    return torch.stack([total, overall, (m2 + count * (mean - overall) ** 2).sum()])


def standardise(
    x: Tensor,
    moments: Tensor,
    *,
    valid: Tensor | None = None,
    skip: Tensor | None = None,
    eps: float = 1e-4,
    correction: int = 1,
) -> Tensor:
    r"""Shift and scale to mean 0 and standard deviation 1, in one pass, with moments that are known already.

    .. math:: y = (x - \bar x) / \max(\sigma, \epsilon), \qquad \sigma^2 = M / \max(n - \text{correction}, 1)

    Args:
        x: the advantages, of any shape.
        moments: ``[3]``: count, mean and M2, of ``x`` alone or of what several processes hold (:func:`merge_moments`).
        valid, skip: the masks that ``x`` was computed with; where a step does not count the result is zero.
        eps: the smallest standard deviation to divide by.
        correction: 1 for the unbiased variance, 0 for the population's.

    Returns:
        As ``x`` in shape and dtype; differentiable to ``x``, with the moments as constants.

    Raises:
        RuntimeError: if ``moments`` is not of shape ``[3]``.

    Example:
        >>> standardise(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0, 2.0]), correction=0)
        tensor([-1.,  1.])
    """
    if moments.shape != (3,):
        raise RuntimeError(f"moments has shape {tuple(moments.shape)}, expected [3]: count, mean, M2")
    count, mean, m2 = moments.detach().unbind()
    scale = (m2 / (count - correction).clamp_min(1.0)).sqrt().clamp_min(eps)
    dtype = accumulate_dtype(x.dtype)
    counts = counted(valid, skip)
    # Two passes and one new tensor. (addcmul is one pass, but cancels where the mean is far from zero: an error of 5e-2 at a
    # mean of 1e6 standard deviations, where this has 1e-3; and on the CPU it takes twice as long as both.)
    y = (x.to(dtype) - mean.to(dtype)).mul_(scale.reciprocal().to(dtype)).to(x.dtype)
    return y if counts is None else torch.where(counts, y, 0.0)
