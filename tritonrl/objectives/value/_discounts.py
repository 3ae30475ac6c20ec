"""Discounts and thresholds: a number, one element, or a tensor that broadcasts to the data, lined up with its time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsFloat, TypeAlias

from torch import Tensor

from ._checks import shape_text

Discount: TypeAlias = float | Tensor
"""A Python number, a 0-dim or 1-element tensor, or a tensor that broadcasts to the data (one entry per step)."""


def is_constant(discount: Discount) -> bool:
    """Whether one number serves all steps: a Python number or a tensor with one element."""
    return not isinstance(discount, Tensor) or discount.numel() == 1


def align(name: str, discount: Discount | SupportsFloat, reward: Tensor, time_dim: int) -> Discount:
    """``discount`` as a number, or as a tensor that broadcasts to ``reward`` by the usual rules, where the data are.

    Raises:
        RuntimeError: if a tensor has no dimension ``time_dim`` or does not broadcast to the shape of ``reward``.
        TypeError: if ``discount`` is neither a number nor a tensor.
    """
    if isinstance(discount, (int, float)):
        return discount
    if not isinstance(discount, Tensor):
        return _to_float(name, discount)
    aligned = align_tensor(name, discount, reward, time_dim)
    # A single number in host memory goes to the kernel as it is: no copy, no launch.
    if aligned.device == reward.device or (aligned.ndim == 0 and aligned.device.type == "cpu"):
        return aligned
    return aligned.to(reward.device)


def align_tensor(name: str, tensor: Tensor, reward: Tensor, time_dim: int) -> Tensor:
    """A view of ``tensor`` that broadcasts to ``reward`` by the usual rules; 0-dim if it has one element.

    A tensor with fewer dimensions than the data is read as its layout says: a negative ``time_dim`` counts from the
    right, like broadcasting does; a non-negative one is counted in the tensor's *own* dimensions. So ``[T, 1]`` goes
    with data ``[B, T, 1]`` at ``time_dim=-2``, and with data ``[T, B, 1]`` at ``time_dim=0``.
    """
    if tensor.numel() == 1:
        return tensor.reshape(())
    lined_up = tensor
    if 0 < tensor.ndim < reward.ndim:
        _check_has_time(name, tensor, time_dim)
        if time_dim >= 0:
            lined_up = _line_up(tensor, reward.ndim, time_dim)
    if not _broadcasts_to(lined_up.shape, reward.shape):
        raise RuntimeError(
            f"{name} of shape {shape_text(tensor.shape)} does not broadcast to reward of shape "
            f"{shape_text(reward.shape)} with time_dim={time_dim}"
        )
    return lined_up


def _to_float(name: str, number: SupportsFloat) -> float:
    """NumPy scalars and the like."""
    try:
        return float(number)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number or a torch.Tensor, got {type(number).__name__}") from None


def _check_has_time(name: str, tensor: Tensor, time_dim: int) -> None:
    # At the default layout a 1-D tensor holds one entry per feature, [F]: it has no say in time, and needs none.
    if time_dim == -2 or -tensor.ndim <= time_dim < tensor.ndim:
        return
    raise RuntimeError(
        f"{name} of shape {shape_text(tensor.shape)} has no dimension time_dim={time_dim}: "
        "give it as many dimensions as the data"
    )


def _line_up(tensor: Tensor, ndim: int, time_dim: int) -> Tensor:
    """Put the tensor's own ``time_dim`` where data of ``ndim`` dimensions has it; the others align from the right."""
    # Time goes to -2, the tensor grows to ndim dimensions on the left, and time goes to its place in the data.
    canonical = tensor.unsqueeze(-1) if tensor.ndim == 1 else tensor.transpose(time_dim, -2)
    return canonical[(None,) * (ndim - canonical.ndim)].transpose(time_dim, -2)


def _broadcasts_to(shape: Sequence[int], target: Sequence[int]) -> bool:
    if len(shape) > len(target):
        return False
    return all(size in (1, wanted) for size, wanted in zip(reversed(shape), reversed(target), strict=False))
