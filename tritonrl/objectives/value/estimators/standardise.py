"""Standardisation to mean 0 and standard deviation 1: of a whole batch, of its valid steps, or group by group."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["standardise"]


def standardise(
    x: Tensor,
    min_std: float,
    *,
    valid: Tensor | None = None,
    groups: Tensor | None = None,
    dim: tuple[int, ...] | None = None,
) -> Tensor:
    """``(x - mean) / max(std, min_std)``.

    Without ``valid`` the standard deviation is the unbiased one; with it, mean and (biased) standard deviation are
    those of the valid elements, and the others become 0. A sample of one element becomes 0. Neither shapes nor control
    flow depend on the data, so it compiles whole and never waits for the device.

    Args:
        x: any shape.
        min_std: lower bound of the standard deviation.
        valid: bool, the leading dimensions of ``x``; statistics are over the elements where it is True.
        groups: integer, the leading dimensions of ``x``: one id per element; each group is standardised by itself, with
            the unbiased standard deviation.
        dim: dimensions to reduce (all by default). Not together with ``groups``.

    Raises:
        ValueError: if ``groups`` or ``valid`` do not match the leading dimensions of ``x``.

    Examples:
        >>> standardise(torch.tensor([1.0, 2.0, 3.0]), 1e-4)
        tensor([-1.,  0.,  1.])
        >>> standardise(torch.tensor([1.0, 3.0, 7.0]), 1e-4, groups=torch.tensor([5, 5, 9]))
        tensor([-0.7071,  0.7071,  0.0000])
    """
    exact = x if x.dtype == torch.float64 else x.float()  # min_std squared is 0 in half precision.
    if valid is not None:
        valid = _expand_right(valid, x, "valid")
    if groups is not None:
        result = _by_group(exact, min_std, _expand_right(groups, x, "group ids"), valid)
    else:
        result = _by_dim(exact, min_std, tuple(range(x.ndim)) if dim is None else dim, valid)
    return result.to(x.dtype)


def _by_dim(x: Tensor, min_std: float, dim: tuple[int, ...], valid: Tensor | None) -> Tensor:
    if valid is None:
        centred = x - x.mean(dim, keepdim=True)
        freedom: Tensor | int = max(math.prod([x.shape[d] for d in dim]) - 1, 1)
    else:
        freedom = valid.sum(dim, keepdim=True).clamp_min(1)
        mean = torch.where(valid, x, 0.0).sum(dim, keepdim=True) / freedom
        centred = torch.where(valid, x - mean, 0.0)
    return centred / _std(centred.square().sum(dim, keepdim=True) / freedom, min_std)


def _by_group(x: Tensor, min_std: float, groups: Tensor, valid: Tensor | None) -> Tensor:
    flat = x.flatten() if valid is None else torch.where(valid, x, 0.0).flatten()
    weight = torch.ones_like(flat) if valid is None else valid.flatten().to(flat.dtype)
    index = _dense_ids(groups.flatten())

    def total(per_element: Tensor) -> Tensor:
        return torch.zeros_like(per_element).index_add(0, index, per_element)

    count = total(weight)
    mean = total(flat) / count.clamp_min(1.0)
    centred = (flat - mean[index]) * weight  # weight is 0 or 1, and flat is finite wherever it is 0
    std = _std(total(centred.square()) / (count - 1.0).clamp_min(1.0), min_std)
    return (centred / std[index]).view_as(x)


def _std(variance: Tensor, min_std: float) -> Tensor:
    # Clamped before the root: the root has an infinite slope at 0, and constant data would have NaN gradients.
    return variance.clamp_min(min_std**2).sqrt()


def _dense_ids(ids: Tensor) -> Tensor:
    """Ids renumbered 0, 1, ... in sorted order. Unlike torch.unique, no shape here depends on how many there are."""
    ordered, order = ids.sort()
    starts = torch.zeros_like(order)
    starts[1:] = (ordered[1:] != ordered[:-1]).long()
    return torch.empty_like(order).scatter(0, order, starts.cumsum(0))


def _expand_right(leading: Tensor, x: Tensor, name: str) -> Tensor:
    """``leading`` [*B] expanded over the trailing dimensions of ``x`` [*B, *F]."""
    if leading.ndim > x.ndim:
        raise ValueError(
            f"{name} of shape {tuple(leading.shape)} have more dimensions than the data, {tuple(x.shape)}."
        )
    aligned = leading.reshape(leading.shape + (1,) * (x.ndim - leading.ndim))
    if any(size not in (1, full) for size, full in zip(aligned.shape, x.shape, strict=True)):
        raise ValueError(f"{name} of shape {tuple(leading.shape)} do not match the data, {tuple(x.shape)}.")
    return aligned.expand(x.shape)
