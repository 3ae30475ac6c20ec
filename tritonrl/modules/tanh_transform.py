"""The squashing of the real line onto a bounded interval, and its log-determinant, without overflow."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.nn.functional import softplus

__all__ = ["Bound", "SquashTransform", "check_bounds", "tanh_log_derivative"]

Bound = float | Tensor
"""One end of an action interval: a number, or a tensor that broadcasts against the action."""


def tanh_log_derivative(x: Tensor) -> Tensor:
    r"""Logarithm of the derivative of tanh, finite wherever ``x`` is.

    .. math:: \log(1 - \tanh^2 x) = 2\,(\log 2 - x - \mathrm{softplus}(-2x))

    The left-hand side is :math:`\log 0` in float32 from about ``|x| = 9`` on.

    Args:
        x: any shape.

    Returns:
        Tensor of the shape of ``x``.

    Example:
        >>> tanh_log_derivative(torch.tensor([0.0, 40.0]))
        tensor([  0.0000, -78.6137])
    """
    return 2.0 * (math.log(2.0) - x - softplus(-2.0 * x))


class SquashTransform(Transform):
    r"""Maps the real line onto an interval by a scaled tanh.

    .. math:: y = \frac{high - low}{2} \tanh x + \frac{high + low}{2}

    Args:
        low: lower end of the interval, a number or a tensor that broadcasts against ``x``.
        high: upper end, likewise.
        safe: keep ``y`` strictly inside the interval by the resolution of its type (1e-6 in float32), where the tanh
            would round to the very end. The gradient is that of tanh all the same.

    Example:
        >>> squash = SquashTransform(0.0, 10.0)
        >>> squash(torch.tensor(0.0))
        tensor(5.)
        >>> bool(squash(torch.tensor(-100.0)) > 0)
        True
        >>> squash.inv(torch.tensor(5.0))
        tensor(0.)
    """

    domain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, low: Bound = -1.0, high: Bound = 1.0, safe: bool = True) -> None:
        super().__init__()
        self.low = low
        self.high = high
        self.safe = safe
        self.codomain = constraints.interval(low, high)

    @property
    def half_width(self) -> Bound:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SquashTransform) and all(
            _same(mine, theirs) for mine, theirs in ((self.low, other.low), (self.high, other.high))
        )

    def __hash__(self) -> int:
        # Equal transforms must have equal hashes, and tensor bounds that are equal have none of their own.
        return hash(type(self))

    def _call(self, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        if self.safe:
            y = y + (_inside(y, torch.finfo(y.dtype).resolution) - y).detach()
        return y * self.half_width + (self.high + self.low) / 2

    def _inverse(self, y: Tensor) -> Tensor:
        unit = (2.0 * y - (self.low + self.high)) / (self.high - self.low)
        # The margin of `_call`, so that an action that it moved inside comes back to where it was moved to. Without
        # it: the number next to 1.
        finfo = torch.finfo(unit.dtype)
        return torch.atanh(_inside(unit, finfo.resolution if self.safe else finfo.eps / 2))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        half_width = self.half_width
        log_half = half_width.log() if isinstance(half_width, Tensor) else math.log(half_width)
        return tanh_log_derivative(x) + log_half


def check_bounds(name: str, low: Bound, high: Bound, shape: torch.Size) -> None:
    """Refuse an interval that is empty or does not fit the action.

    Tensor bounds on an accelerator, or in a graph that is being compiled, are not compared: it would wait for the
    device.

    Args:
        name: of the caller, for the message.
        low: lower end.
        high: upper end.
        shape: of the action.

    Raises:
        RuntimeError: if ``low`` is not below ``high``.
        ValueError: if a bound does not broadcast against the action.
    """
    for bound_name, bound in (("low", low), ("high", high)):
        if isinstance(bound, Tensor) and not _broadcasts_to(bound.shape, shape):
            raise ValueError(
                f"{name}: {bound_name} of shape {tuple(bound.shape)} does not broadcast against an action of shape "
                f"{tuple(shape)}"
            )
    if not isinstance(low, Tensor) and not isinstance(high, Tensor):
        empty = low >= high
    elif torch.compiler.is_compiling() or any(isinstance(b, Tensor) and b.device.type != "cpu" for b in (low, high)):
        empty = False
    else:
        empty = bool((torch.as_tensor(low) >= torch.as_tensor(high)).any())
    if empty:
        raise RuntimeError(f"{name}: high must be strictly greater than low, got low={low} and high={high}")


def _inside(unit: Tensor, margin: float) -> Tensor:
    return unit.clamp(-1.0 + margin, 1.0 - margin)


def _same(mine: Bound, theirs: Bound) -> bool:
    """Whether two bounds are one. Tensors are compared by value only where they are not the same tensor."""
    if mine is theirs:
        return True
    if isinstance(mine, Tensor) or isinstance(theirs, Tensor):
        return torch.equal(torch.as_tensor(mine), torch.as_tensor(theirs).to(torch.as_tensor(mine)))
    return mine == theirs


def _broadcasts_to(shape: torch.Size, target: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, target) == target
    except RuntimeError:
        return False
