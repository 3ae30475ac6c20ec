"""Discounts and other coefficients as buffers: tensors, so that compiled code does not depend on their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor

from tritonrl.objectives.coefficients import CoefficientBuffers

__all__ = ["EstimatorCoefficients", "as_coefficient", "at_precision_of"]


def as_coefficient(name: str, value: float | Tensor, device: torch.device | None = None) -> Tensor:
    """The buffer of a coefficient: a tensor as it is, a number in float64.

    A Python number is a float64, and the buffer keeps all of it: 0.99 in float32 is off by 1e-8, which a discount over
    thousands of steps multiplies. :func:`at_precision_of` rounds it to what the data need.

    Raises:
        TypeError: if ``value`` is neither a number nor a tensor.
    """
    if isinstance(value, Tensor):
        return value if device is None else value.to(device)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or a tensor, got {value!r} ({type(value).__name__}).")
    device = torch.get_default_device() if device is None else device
    dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64.
    return torch.tensor(float(value), dtype=dtype, device=device)


def at_precision_of(coefficient: Tensor, *data: Tensor) -> Tensor:
    """A 0-dim coefficient in the precision in which ``data`` are computed: float64 if one of them is, else float32.

    So float32 data see the float32 number that TorchRL uses, and float64 data the exact one. A coefficient with
    dimensions is data of its own and stays what it is.
    """
    if coefficient.ndim:
        return coefficient
    exact = any(tensor.dtype == torch.float64 for tensor in data)
    return coefficient.to(torch.float64 if exact else torch.float32)


class EstimatorCoefficients(CoefficientBuffers):
    """Mix-in: the discounts of a value estimator. ``gae.gamma = 0.97`` changes one in place."""

    _schedulable_buffers: ClassVar[frozenset[str]] = frozenset({"gamma", "lmbda", "rho_thresh", "c_thresh"})
    _device: torch.device | None

    def _register_coefficient(self, name: str, value: float | Tensor) -> None:
        """A tensor is kept, not copied: gradients reach it, and per-step discounts are allowed."""
        self.register_buffer(name, as_coefficient(name, value, self._device))

    def _coefficient(self, name: str, *data: Tensor) -> Tensor:
        """A coefficient on the device and in the precision of ``data``."""
        value = getattr(self, name)
        if value.device != data[0].device:
            value = value.to(data[0].device)
            self._buffers[name] = value  # Copied to the device once: later calls find it there.
        return at_precision_of(value, *data)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the buffers without rounding them: ``loss.half()`` must not turn a gamma of 0.99 into 0.9902."""
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None and not buffer.ndim}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            if after is not None and after.dtype != buffer.dtype and after.device.type not in ("meta", "mps"):
                self._buffers[name] = buffer.to(after.device)
        return self
