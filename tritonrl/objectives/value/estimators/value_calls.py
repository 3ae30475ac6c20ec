"""How the values of the states and of the next states are obtained: one vmapped call, two calls, or calls on chunks."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from tritonrl.objectives.functional_params import swap_params

from .chunks import Chunking
from .network_inputs import NetworkInputs

__all__ = ["ValueCaller", "Values", "held_out"]


class Values(NamedTuple):
    """Values ``[*B, T, *F]``, both with their graph.

    Attributes:
        value: of the states.
        next_value: of the true next states.
        valid: bool ``[*B, T]``, False where ``shifted`` had no room for a step; None if every step was evaluated.
    """

    value: Tensor
    next_value: Tensor
    valid: Tensor | None = None


@dataclass(frozen=True)
class ValueCaller:
    """Calls a value network and reads one entry of what it writes.

    The network's own parameters never enter a graph. Parameters that are passed in are used as they come.

    Attributes:
        network: writes ``key``.
        key: the value entry.
        chunking: if active, each call becomes one call per chunk.
        randomness: mode of ``torch.vmap`` for random operations.
        deactivate_vmap: two plain calls instead of a vmapped one (cuDNN recurrent networks cannot be vmapped).
    """

    network: TensorDictModuleBase
    key: NestedKey
    chunking: Chunking
    randomness: str = "error"
    deactivate_vmap: bool = False

    def both(
        self, inputs: NetworkInputs, params: TensorDictBase | None = None, target_params: TensorDictBase | None = None
    ) -> Values:
        """Values under ``params``, next values under ``target_params``.

        ``params`` are by default the network's own, ``target_params`` by default ``params``. With one set of parameters
        this is a single call, vmapped over root and next, unless vmap is off, chunks are asked for, or it is compiled.
        """
        one_set = target_params is None or target_params is params
        # In a graph two calls cost nothing, and F.linear under vmap fails there once the batch size is dynamic.
        plain = self.deactivate_vmap or self.chunking.active or torch.compiler.is_compiling()
        if not one_set or plain:
            next_params = params if one_set else target_params
            return Values(self.one(inputs.root, params), self.one(inputs.next, next_params))
        stacked = torch.stack([inputs.root, inputs.next], 0)
        with self._parameters(params, stacked):
            value, next_value = torch.vmap(self._read, randomness=self.randomness)(stacked).unbind(0)
        return Values(value, next_value)

    def one(self, inputs: TensorDictBase, params: TensorDictBase | None = None) -> Tensor:
        """Values of ``inputs`` in plain calls, one for each chunk."""
        with self._parameters(params, inputs):
            if not self.chunking.active:
                return self._read(inputs)
            dim = self.chunking.dim_of(inputs)
            return torch.cat([self._read(piece) for piece in self.chunking.split(inputs)], dim)

    def _read(self, inputs: TensorDictBase) -> Tensor:
        value = self.network(inputs).get(self.key, None)
        if value is None:
            raise KeyError(
                f"The value network did not write {self.key!r}; its out_keys are {list(self.network.out_keys)}."
            )
        return value

    def _parameters(self, params: TensorDictBase | None, inputs: TensorDictBase) -> AbstractContextManager:
        return held_out(self.network, inputs) if params is None else swap_params(params, self.network)


def held_out(network: nn.Module, inputs: TensorDictBase) -> AbstractContextManager:
    """Inside the block a call of ``network`` has no gradient to its parameters, only to those ``inputs`` that want one.

    The ``requires_grad`` flags of the network are never touched, not even for the length of the block.
    """
    if torch.is_grad_enabled() and any(leaf.requires_grad for leaf in inputs.values(True, True)):
        return swap_params(TensorDict.from_module(network).data, network)
    # No graph can come of it but one to the parameters, which is not wanted.
    return torch.no_grad()
