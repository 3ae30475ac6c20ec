"""The advantage as a loss uses it: normalised if asked for, and laid out beside the log-weight without ambiguity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalize_advantage(advantage: Tensor, *, exclude_dims: Sequence[int] = (), mask: Tensor | None = None) -> Tensor:
    r"""Shift and scale the advantage to mean 0 and standard deviation 1.

    .. math:: \hat A = \frac{A - \mathrm{mean}(A)}{\max(\mathrm{std}(A), \epsilon)}

    The statistics run over every dimension but the excluded ones (in multi-agent data, say, the dimension of the
    agents, so that each agent keeps its own scale). Without a mask the deviation is the unbiased one and epsilon is
    1e-6; with one, the statistics see valid entries only, the deviation is the biased one and epsilon is 1e-4.

    Where a group has one entry only there is nothing to estimate a deviation from: the advantage comes back as it is.

    Args:
        advantage: any shape, usually ``[*B, 1]``.
        exclude_dims: dimensions that keep statistics of their own.
        mask: boolean, broadcastable to the advantage; ``False`` entries do not count and come back as 0.

    Returns:
        Tensor of the advantage's shape.

    Raises:
        ValueError: if an excluded dimension is out of range.

    Example:
        >>> normalize_advantage(torch.tensor([[1.0], [2.0], [3.0]])).squeeze(-1)
        tensor([-1.,  0.,  1.])
    """
    dims = _included_dims(advantage, exclude_dims)
    group_size = 1
    for dim in dims:
        group_size *= advantage.shape[dim]
    if mask is None:
        if group_size <= 1:
            return advantage
        mean = advantage.mean(dims, keepdim=True)
        return (advantage - mean) / advantage.std(dims, keepdim=True).clamp_min(1e-6)
    if not dims:
        return torch.where(mask, advantage, torch.zeros_like(advantage))
    mask = mask.expand_as(advantage)
    zero = torch.zeros_like(advantage)
    count = mask.sum(dims, keepdim=True).clamp_min(1)
    mean = torch.where(mask, advantage, zero).sum(dims, keepdim=True) / count
    centred = torch.where(mask, advantage - mean, zero)
    return centred / (centred.square().sum(dims, keepdim=True) / count).sqrt().clamp_min(1e-4)


def _included_dims(advantage: Tensor, exclude_dims: Sequence[int]) -> tuple[int, ...]:
    """The dimensions that the statistics run over."""
    ndim = advantage.ndim
    outside = [dim for dim in exclude_dims if not -ndim <= dim < ndim]
    if outside:
        raise ValueError(
            f"normalize_advantage_exclude_dims={tuple(exclude_dims)}: {outside} out of range for an advantage of shape "
            f"{tuple(advantage.shape)}"
        )
    excluded = {dim % ndim for dim in exclude_dims}
    return tuple(dim for dim in range(ndim) if dim not in excluded)


def align_advantage(advantage: Tensor, log_weight: Tensor, what: str = "log-weight") -> Tensor:
    """Give the advantage the dimensions of the log-weight, or refuse.

    Allowed are: one shape for both; an advantage ``[*B, 1]`` for log-weights ``[*B, *token, 1]`` (every token of an
    action shares its advantage); size 1 where the log-weight has more; several columns ``[*B, F]`` for one log-weight
    ``[*B, 1]``.

    Args:
        advantage: the advantage, usually ``[*B, 1]``.
        log_weight: logarithm of the importance weight, or of the probability, ``[*B, 1]`` or ``[*B, *token, 1]``.
        what: its name in the error.

    Returns:
        The advantage, viewed so that its product with the log-weight pairs every action with its own advantage.

    Raises:
        ValueError: if the shapes do not pair up, above all ``[B]`` against ``[B, 1]``, whose product would be an outer
            product over the samples.

    Example:
        >>> align_advantage(torch.zeros(5, 1), torch.zeros(5, 3, 1)).shape
        torch.Size([5, 1, 1])
    """
    theirs, ours = tuple(log_weight.shape), tuple(advantage.shape)
    if ours == theirs or (advantage.numel() == 1 and len(ours) <= len(theirs)):
        return advantage
    if len(ours) == len(theirs):
        every_lead_fits = all(a in (1, w) for a, w in zip(ours[:-1], theirs[:-1], strict=True))
        if ours[:-1] == theirs[:-1] or (ours[-1] == theirs[-1] and every_lead_fits):
            return advantage
    elif 0 < len(ours) < len(theirs) and ours[-1] == 1 and theirs[: len(ours) - 1] == ours[:-1]:
        return advantage.reshape(ours[:-1] + (1,) * (len(theirs) - len(ours) + 1))
    raise ValueError(
        f"the advantage has shape {ours} but the {what} has shape {theirs}: their product would not pair every action "
        "with its own advantage. The advantage must have the shape of the batch plus a trailing (1,), as the value "
        "estimators write it (e.g. advantage.unsqueeze(-1))."
    )
