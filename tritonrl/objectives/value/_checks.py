"""Checks of the plain tensors of one call, before any arithmetic: shapes, the time dimension, the flags.

They look at shapes and dtypes only, never at values, so they cost no device synchronisation and leave nothing in a
compiled graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def shape_text(shape: Sequence[int]) -> str:
    """``(3, 128, 1)``: how a shape is written in our error messages."""
    return str(tuple(shape))


def check_tensors(**tensors: object) -> None:
    """Raise ``TypeError`` for an argument that is no tensor (a forgotten ``next_state_value=None``, say)."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")


def check_same_shape(reward: Tensor, **others: Tensor) -> None:
    """Raise ``RuntimeError`` for an argument whose shape is not the one of ``reward``; nothing is broadcast here."""
    for name, other in others.items():
        if other.shape != reward.shape:
            raise RuntimeError(
                f"{name} has shape {shape_text(other.shape)} but reward has shape {shape_text(reward.shape)}: "
                "values, rewards and end flags must share one shape"
            )


def check_time_dim(time_dim: int, reward: Tensor) -> None:
    """Raise ``RuntimeError`` for a time dimension that ``reward`` lacks, ``ValueError`` for the default on 1-D data."""
    ndim = reward.ndim
    if ndim < 2 and time_dim == -2:
        raise ValueError(
            f"time_dim=-2 (the default) expects reward of shape [*B, T, F], got shape {shape_text(reward.shape)}: "
            "pass time_dim=-1 for a single row of shape [T]"
        )
    if not -ndim <= time_dim < ndim:
        raise RuntimeError(
            f"time_dim={time_dim} is out of range for reward of shape {shape_text(reward.shape)}: "
            f"expected {-ndim} <= time_dim < {ndim}"
        )


def as_flag(name: str, flag: Tensor, *, allow_float: bool = False) -> Tensor:
    """The end flag as booleans; integers count as ``flag != 0``, floats raise ``TypeError`` unless ``allow_float``."""
    if flag.dtype is torch.bool:
        return flag
    if flag.is_complex() or (flag.is_floating_point() and not allow_float):
        raise TypeError(f"{name} must be a boolean (or integer) tensor, got {flag.dtype}: pass {name}.bool()")
    return flag != 0


def check_steps(
    time_dim: int,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None,
    values: dict[str, Tensor],
    *,
    float_done: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Check everything that is laid out like ``reward``; return ``done`` and ``terminated`` (if any) as booleans.

    Raises:
        RuntimeError: if shapes differ, or ``reward`` has no dimension ``time_dim``.
        ValueError: if ``time_dim`` is left at its default for data with fewer than two dimensions.
        TypeError: if an argument is no tensor, or a flag is neither boolean nor integer.
    """
    flags = {"done": done} if terminated is None else {"done": done, "terminated": terminated}
    check_tensors(reward=reward, **values, **flags)
    check_same_shape(reward, **values, **flags)
    check_time_dim(time_dim, reward)
    # A float done next to no terminated would have to stand for both; only an explicit terminated leaves no doubt.
    done = as_flag("done", done, allow_float=float_done and terminated is not None)
    return done, None if terminated is None else as_flag("terminated", terminated)
