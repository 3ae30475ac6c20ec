"""One row with one of the two libraries: the module, its batches, and what counts as one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from .networks import Networks, Scale
from .rows import Library, Row

SEED = 17


class Subject:
    """The module of a row, called once in eager mode as TorchRL's benchmark does, so that what is lazy is there."""

    def __init__(self, row: Row, library: Library, scale: Scale) -> None:
        self.row = row
        self.module: nn.Module = row.build(library, Networks(scale))
        self.data = row.batch(row.shape, 0)
        self.module(self.data.copy())
        self.parameters = [p for p in self.module.parameters() if p.requires_grad] if row.is_loss else []

    def forward(self, function: Callable[[TensorDictBase], Any], data: TensorDict) -> TensorDictBase:
        """What the module returns. It gets a shallow copy, so that what it writes is not there for the next call."""
        out = function(data.copy())
        return out[0] if isinstance(out, tuple) else out

    def call(self, function: Callable[[TensorDictBase], Any]) -> Callable[[], object]:
        """The work to be timed: forward, and of a loss the gradients of all parameters."""
        if not self.row.is_loss:
            return lambda: self.forward(function, self.data)

        def forward_and_backward() -> object:
            return torch.autograd.grad(
                total(self.forward(function, self.data)), self.parameters, allow_unused=True, materialize_grads=False
            )

        return forward_and_backward

    def results(self) -> dict[str, Tensor]:
        """What is compared between the libraries: the terms of a loss and its gradient, or an estimator's results."""
        torch.manual_seed(SEED)
        out = self.forward(self.module, self.data)
        if not self.row.is_loss:
            return {key: out[key] for key in ("advantage", "value_target")}
        gradients = torch.autograd.grad(total(out), self.parameters, allow_unused=True)
        squares = [g.square().sum() for g in gradients if g is not None]
        return losses(out) | {"norm of the gradient": torch.stack(squares).sum().sqrt()}

    def move(self, paths: Sequence[str]) -> None:
        """Change coefficients as a schedule does: in place where they are tensors, else by assignment."""
        for path in paths:
            *owners, name = path.split(".")
            owner = functools.reduce(getattr, owners, self.module)
            value = getattr(owner, name)
            if isinstance(value, Tensor):
                with torch.no_grad():
                    value.mul_(0.9)
            else:
                setattr(owner, name, value * 0.9)


def losses(out: TensorDictBase) -> dict[str, Tensor]:
    """The entries that are to be added up."""
    return {key: value.detach() for key, value in out.items() if key.startswith("loss")}


def total(out: TensorDictBase) -> Tensor:
    """Their sum."""
    terms = [value.sum() for key, value in out.items() if key.startswith("loss")]
    return torch.stack(terms).sum()


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest error of ``one`` relative to the size of what it is compared with, or infinity for other entries."""
    if one.keys() != other.keys():
        return float("inf")
    errors = [(one[key] - other[key]).abs().max() / other[key].abs().max().clamp(min=1e-3) for key in other]
    return float(torch.stack(errors).max())
