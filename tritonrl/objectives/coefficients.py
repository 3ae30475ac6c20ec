"""Coefficients of a loss (clip range, entropy weight, ...) as buffers that a schedule can change.

A coefficient that were a Python float would be baked into a compiled graph, and each new value would compile the graph
again. As a 0-dim buffer it is an input of the graph, moves with the module and is saved with it.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ["CoefficientBuffers"]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


class CoefficientBuffers(nn.Module):
    """Mix-in: ``register_coeff_buffer``, and plain assignment of a number to a schedulable buffer.

    ``_schedulable_buffers`` lists the names; the sets of all base classes are merged. ``loss.entropy_coeff = 0.1`` then
    copies in place: dtype, device and the identity of the tensor (which a compiled graph holds) stay.
    """

    _schedulable_buffers: ClassVar[frozenset[str]] = frozenset()
    _all_schedulable_buffers: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = (frozenset(vars(base).get("_schedulable_buffers", ())) for base in cls.__mro__)
        cls._all_schedulable_buffers = frozenset[str]().union(*own)

    def register_coeff_buffer(
        self,
        name: str,
        value: float | int | Tensor | None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        persistent: bool = True,
    ) -> None:
        """Register ``value`` as the buffer ``name``; None is stored as a plain attribute.

        Args:
            name: attribute name of the coefficient.
            value: a number, a one-element tensor, or None for a coefficient that is switched off.
            device: device of the buffer.
            dtype: dtype of the buffer; for a number torch's default float type if None, an int included: an integer
                buffer would silently round what a schedule assigns later.
            persistent: whether the state dict holds it. TorchRL keeps some coefficients as plain attributes; as
                persistent buffers they would be missing from its state dicts.

        Raises:
            ValueError: if ``value`` is a bool, not a number, or a tensor with more than one element.
        """
        if value is None:
            setattr(self, name, None)
            return
        is_scalar_tensor = isinstance(value, Tensor) and value.numel() == 1
        if not (_is_number(value) or is_scalar_tensor):
            raise ValueError(f"{name} must be a float or a scalar tensor, got {value!r}.")
        # A copy: the caller's tensor, or its graph, is not the schedule's to write into.
        data = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(float(value), dtype=dtype)
        # A number stored under None earlier lives in __dict__, and register_buffer refuses to shadow it.
        self.__dict__.pop(name, None)
        self.register_buffer(name, data.reshape(()).to(device=device, dtype=dtype), persistent=persistent)

    def _register_unsaved_coefficients(self, **values: float | Tensor | None) -> None:
        """Coefficients that TorchRL keeps as plain attributes, and hence not in its state dicts.

        They can be scheduled like all others (name them in ``_schedulable_buffers``). Their dtype is the one of the
        parameters: double-precision networks see the exact number.
        """
        parameter = next(self.parameters(), None)
        dtype, device = (None, None) if parameter is None else (parameter.dtype, parameter.device)
        for name, value in values.items():
            self.register_coeff_buffer(name, value, device=device, dtype=dtype, persistent=False)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self)._all_schedulable_buffers and _is_number(value):
            buffer = self.__dict__.get("_buffers", {}).get(name)
            if buffer is not None:
                with torch.no_grad():
                    buffer.fill_(value)
                return
            if name in self.__dict__ and self.__dict__[name] is None:
                # The coefficient was off: switching it on gives the same buffer as constructing it on.
                self.register_coeff_buffer(name, float(value), device=self._coefficient_device())
                return
        super().__setattr__(name, value)

    def _coefficient_device(self) -> torch.device | None:
        first = next(self.parameters(), None)
        return None if first is None else first.device
