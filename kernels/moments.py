r"""Count, mean and M2 (the sum of squared deviations) of many numbers, in parts that can be merged.

Parts merge exactly, whoever computed them: the tiles of a kernel, the minibatches of an epoch, the ranks of a process group
(Chan, Golub and LeVeque 1983). With :math:`n = \sum n_i`:

.. math:: \bar x = \tfrac1n \sum n_i \bar x_i, \qquad M = \sum M_i + n_i (\bar x_i - \bar x)^2
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dtypes import accumulate_dtype, moments_dtype


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
