"""From an element-wise loss to what is optimised: validity masks, priority weights and the reduction itself.

A mask is always applied by selection, before anything is multiplied, so that a NaN or an infinity in a step that does
not count reaches neither the loss nor a gradient.
"""

from __future__ import annotations

from functools import reduce as fold

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.utils import expand_right
from torch import Tensor

__all__ = [
    "AUTO_LOSS_MASK_KEYS",
    "REDUCTIONS",
    "collect_validity_mask",
    "expand_validity_mask",
    "loss_mask_keys",
    "reduce_loss",
]

AUTO_LOSS_MASK_KEYS: tuple[NestedKey, ...] = (("collector", "mask"), "shifted_valid")
"""Entries that ``loss_mask_key="auto"`` looks for: True where a step counts."""

REDUCTIONS = ("mean", "sum", "none")


def loss_mask_keys(loss_mask_key: NestedKey | None) -> tuple[NestedKey, ...]:
    """The entries to look for, given the ``loss_mask_key`` of a loss.

    Raises:
        ValueError: unless the argument is ``"auto"``, None or a NestedKey (a string or a tuple of strings).
    """
    if loss_mask_key is None:
        return ()
    if loss_mask_key == "auto":
        return AUTO_LOSS_MASK_KEYS
    is_tuple = isinstance(loss_mask_key, tuple) and len(loss_mask_key) > 0
    if isinstance(loss_mask_key, str) or (is_tuple and all(isinstance(part, str) for part in loss_mask_key)):
        return (loss_mask_key,)
    raise ValueError(f"loss_mask_key must be 'auto', None or a NestedKey, got {loss_mask_key!r}.")


def expand_validity_mask(mask: Tensor, loss: Tensor) -> Tensor:
    """``mask`` in the shape of ``loss``: trailing singleton dims dropped, then expanded to the right.

    Args:
        mask: bool ``[*B]`` or ``[*B, 1]``.
        loss: ``[*B, *F]``.

    Raises:
        RuntimeError: if the mask is not bool.
        ValueError: if it has more non-singleton dims than the loss, or if their sizes differ.
    """
    if mask.dtype is not torch.bool:
        raise RuntimeError(f"a validity mask must be a bool tensor, got dtype {mask.dtype}.")
    return _match_leading_dims(mask, loss, "validity mask")


def _match_leading_dims(tensor: Tensor, loss: Tensor, what: str) -> Tensor:
    shape = tuple(tensor.shape)
    while tensor.ndim > loss.ndim and tensor.shape[-1] == 1:
        tensor = tensor.squeeze(-1)
    if tensor.ndim > loss.ndim:
        raise ValueError(
            f"a {what} of shape {shape} cannot be applied to a loss of shape {tuple(loss.shape)}: it has more "
            "non-singleton dimensions than the loss. The loss must be element-wise, its event dimensions not yet "
            "reduced."
        )
    while tensor.ndim > 0 and tensor.shape[-1] == 1 and tensor.shape != loss.shape[: tensor.ndim]:
        tensor = tensor.squeeze(-1)
    if tensor.shape != loss.shape[: tensor.ndim]:
        raise ValueError(
            f"a {what} of shape {shape} cannot be applied to a loss of shape {tuple(loss.shape)}: the leading "
            "dimensions differ."
        )
    return expand_right(tensor, loss.shape)


def collect_validity_mask(
    tensordict: TensorDictBase | None, keys: tuple[NestedKey, ...], loss: Tensor, mask: Tensor | None = None
) -> Tensor | None:
    """The logical and of ``mask`` and of every mask found in the tensordict, in the shape of ``loss``.

    Returns:
        A bool tensor, or None where there is no mask at all.
    """
    found = [mask] if mask is not None else []
    if tensordict is not None:
        found += [entry for entry in (tensordict.get(key, None) for key in keys) if entry is not None]
    if not found:
        return None
    return fold(torch.logical_and, [expand_validity_mask(entry, loss) for entry in found])


def _expand_weights(weights: Tensor, loss: Tensor, masked: bool) -> Tensor:
    if weights.shape == loss.shape:
        return weights
    if masked:
        return _match_leading_dims(weights, loss, "weight")
    raise ValueError(
        f"weights and loss must have the same shape, got {tuple(weights.shape)} and {tuple(loss.shape)} "
        "(priority weights have the batch size, without a trailing 1)."
    )


def reduce_loss(loss: Tensor, reduction: str, mask: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    r"""Reduce an element-wise loss, over the steps that count and with their weights.

    ==========  =========================================  ==========================================
    reduction   without weights                            with weights ``w``
    ==========  =========================================  ==========================================
    ``mean``    ``sum(m * loss) / max(sum(m), 1)``         ``sum(m * w * loss) / sum(m * w)``
    ``sum``     ``sum(m * loss)``                          ``sum(m * w * loss)``
    ``none``    ``m * loss``, in the shape of the loss     ``m * w * loss``
    ==========  =========================================  ==========================================

    Without a mask ``m`` is 1 everywhere; ``m * x`` stands for a select. The weighted mean is normalised by the sum of
    the weights, as in TorchRL (prioritised replay, Schaul et al. 2016, divides by the number of samples instead). Where
    nothing counts the mean is 0.

    Args:
        loss: element-wise loss, ``[*B]`` or ``[*B, *F]``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        mask: bool, ``[*B]`` or anything that :func:`expand_validity_mask` accepts. True where a step counts.
        weights: in the shape of the loss (with a mask also ``[*B]`` or ``[*B, 1]``).

    Raises:
        NotImplementedError: for another reduction.
        ValueError: if the weights or the mask do not fit the loss.
        RuntimeError: if the mask is not bool.

    Examples:
        >>> loss = torch.tensor([1.0, 2.0, float("nan")])
        >>> reduce_loss(loss, "mean", torch.tensor([True, True, False]))
        tensor(1.5000)
    """
    if reduction not in REDUCTIONS:
        raise NotImplementedError(f"Unknown reduction method {reduction}: expected one of {REDUCTIONS}.")
    if weights is not None:
        weights = _expand_weights(weights, loss, masked=mask is not None)
    if mask is not None:
        mask = expand_validity_mask(mask, loss)
        loss = torch.where(mask, loss, torch.zeros((), dtype=loss.dtype, device=loss.device))
        weights = None if weights is None else torch.where(mask, weights, torch.zeros_like(weights))
    weighted = loss if weights is None else loss * weights
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    if weights is not None:
        total_weight = weights.sum()
        return weighted.sum() / torch.where(total_weight == 0, torch.ones_like(total_weight), total_weight)
    if mask is not None:
        return weighted.sum() / mask.sum().clamp_min(1)
    return weighted.mean()
