"""Element-wise distances between a prediction and its target."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn import functional as F

__all__ = ["distance_loss"]

TensorLike = TypeVar("TensorLike", Tensor, TensorDictBase)

_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda v1, v2: (v1 - v2).abs(),
    "l2": lambda v1, v2: (v1 - v2).square(),
    "smooth_l1": lambda v1, v2: F.smooth_l1_loss(v1, v2, reduction="none", beta=1.0),
}


def distance_loss(v1: TensorLike, v2: TensorLike, loss_function: str, strict_shape: bool = True) -> TensorLike:
    """Distance of ``v1`` from ``v2``, element by element and not reduced.

    With ``x = v1 - v2``:

    * ``"l1"``: ``|x|``
    * ``"l2"``: ``x**2``
    * ``"smooth_l1"``: ``x**2 / 2`` where ``|x| < 1``, ``|x| - 1/2`` elsewhere (Huber 1964, with threshold 1)

    Args:
        v1: tensor or tensordict, usually the prediction.
        v2: tensor or tensordict, usually the target.
        loss_function: one of the names above.
        strict_shape: refuse operands whose shapes differ. ``[B]`` against ``[B, 1]`` would otherwise broadcast to
            ``[B, B]``.

    Returns:
        The distance, in the (broadcast) shape of the operands.

    Raises:
        NotImplementedError: if ``loss_function`` is not one of the names.
        RuntimeError: if the shapes differ and ``strict_shape`` is True.

    Examples:
        >>> distance_loss(torch.tensor([0.0, 0.5]), torch.tensor([3.0, 0.0]), "smooth_l1")
        tensor([2.5000, 0.1250])
    """
    distance = _DISTANCES.get(loss_function) if isinstance(loss_function, str) else None
    if distance is None:
        raise NotImplementedError(f"loss_function must be one of {sorted(_DISTANCES)}, got {loss_function!r}.")
    if strict_shape and v1.shape != v2.shape:
        raise RuntimeError(
            f"distance_loss: v1 and v2 must have the same shape, got {tuple(v1.shape)} and {tuple(v2.shape)}."
        )
    if isinstance(v1, Tensor) and isinstance(v2, Tensor):
        return distance(*torch.broadcast_tensors(v1, v2))
    return v1.apply(lambda a, b: distance_loss(a, b, loss_function, strict_shape), v2)
