"""Evaluate an ensemble: one template, parameters with a leading member dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tritonrl.objectives.functional_params import swap_params

__all__ = ["EnsembleCall"]


class EnsembleCall:
    """``call(*inputs, params)``: the network on the inputs, once for each member of ``params``.

    A plain object and not a closure, so that a loss that holds one can be pickled.

    Args:
        network: the template.
        in_dims: as for ``torch.vmap``, the parameters last: ``(None, 0)`` gives the same data to every member,
            ``(0, 0)`` gives member ``i`` slice ``i`` of the data.
        method: name of the method to call; the module itself if None.
        loop: call one member after the other instead of ``torch.vmap``. A compiled call does so anyhow.
        randomness: what ``torch.vmap`` does with random operations.

    Examples:
        >>> from tensordict import TensorDict
        >>> from tritonrl.objectives.functional_params import expand_params
        >>> net = nn.Linear(3, 1)
        >>> params = expand_params(net, 5).params
        >>> EnsembleCall(net, (None, 0))(torch.ones(2, 3), params).shape
        torch.Size([5, 2, 1])
    """

    def __init__(
        self,
        network: nn.Module,
        in_dims: tuple[int | None, ...] = (None, 0),
        *,
        method: str | None = None,
        loop: bool = False,
        randomness: str = "error",
    ) -> None:
        self.network = network
        self.in_dims = in_dims
        self.method = method
        self.loop = loop
        self.randomness = randomness

    def _call_member(self, *inputs_and_params: Any) -> Any:
        *inputs, params = inputs_and_params
        with swap_params(params, self.network):
            call = self.network if self.method is None else getattr(self.network, self.method)
            return call(*inputs)

    def __call__(self, *inputs_and_params: Any) -> Any:
        # While compiling, a loop as well: torch.vmap fixes the batch size of what a network concatenates, so that each
        # size would be compiled by itself. Random operations that all members share are possible under vmap only.
        loop = self.loop or (torch.compiler.is_compiling() and self.randomness != "same")
        if not loop:
            return torch.vmap(self._call_member, self.in_dims, randomness=self.randomness)(*inputs_and_params)
        members = range(inputs_and_params[-1].shape[0])
        columns = [
            [value] * len(members) if dim is None else value.unbind(dim)
            for value, dim in zip(inputs_and_params, self.in_dims, strict=True)
        ]
        # An input that every member shares may be written to by the network: each member gets a shallow copy.
        rows = [
            [getattr(v, "copy", lambda v=v: v)() for v in row[:-1]] + [row[-1]] for row in zip(*columns, strict=True)
        ]
        return torch.stack([self._call_member(*row) for row in rows])


def vmap_module(
    module: nn.Module,
    in_dims: tuple[int | None, ...] = (None, 0),
    out_dims: int = 0,
    randomness: str = "error",
    *,
    func: str | None = None,
    pseudo_vmap: bool = False,
) -> EnsembleCall:
    """An :class:`EnsembleCall` in the argument order of ``torch.vmap``.

    Raises:
        NotImplementedError: for ``out_dims`` other than 0.
    """
    if out_dims != 0:
        raise NotImplementedError(f"vmap_module: members are stacked along dim 0, got out_dims={out_dims}.")
    return EnsembleCall(module, in_dims, method=func, loop=pseudo_vmap, randomness=randomness)
