"""Standardising with moments that are known already: one pass over the numbers, because nothing is left to be summed up."""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import backend_for
from .dtypes import accumulate_dtype, moments_dtype
from .ops import needs_no_dispatcher
from .textbook import counted

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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

    Outside of a graph (of autograd, of a compiler) one kernel reads ``x`` and the masks and writes the result, where all of
    them lie in memory alike and without gaps, as results of :mod:`tritonrl.kernels` do.

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
    if not torch.compiler.is_compiling() and needs_no_dispatcher((x, moments, valid, skip)):
        served = getattr(backend_for(x.device), "standardised", None)
        if served is not None and _lie_alike(x, moments, valid, skip):
            found: Tensor = served(x, moments, valid, skip, eps, correction)
            return found
    return _composed(x, moments, valid, skip, eps, correction)


def _lie_alike(x: Tensor, moments: Tensor, valid: Tensor | None, skip: Tensor | None) -> bool:
    """Whether the numbers can be taken one after the other as they lie in memory, each with its flags."""
    if x.dtype not in _FLOATS or moments.dtype is not moments_dtype(x.device) or moments.device != x.device:
        return False
    for mask in (valid, skip):
        if mask is not None and (
            mask.dtype is not torch.bool
            or mask.device != x.device
            or mask.shape != x.shape
            or mask.stride() != x.stride()
        ):
            return False
    return x.numel() > 0 and moments.is_contiguous() and (x.is_contiguous() or _is_dense(x))


def _is_dense(x: Tensor) -> bool:
    """Whether some order of the dimensions is that of memory, with no gaps and no overlaps."""
    extent = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if stride != extent:
            return False
        extent *= size
    return True


def _composed(
    x: Tensor, moments: Tensor, valid: Tensor | None, skip: Tensor | None, eps: float, correction: int
) -> Tensor:
    """The same of torch's own operators, which autograd knows, and of which a compiler makes one kernel, too."""
    count, mean, m2 = moments.detach().unbind()
    scale = (m2 / (count - correction).clamp_min(1.0)).sqrt().clamp_min(eps)
    dtype = accumulate_dtype(x.dtype)
    counts = counted(valid, skip)
    # Two passes and one new tensor. (addcmul is one pass, but cancels where the mean is far from zero: an error of 5e-2 at a
    # mean of 1e6 standard deviations, where this has 1e-3.)
    y = (x.to(dtype) - mean.to(dtype)).mul_(scale.reciprocal().to(dtype)).to(x.dtype)
    return y if counts is None else torch.where(counts, y, 0.0)
