"""Evaluate a network without training it: for the length of a block its parameters need no gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from tritonrl.objectives.functional_params import swap_params

__all__ = ["hold_out_net", "hold_out_params"]


@contextmanager
def hold_out_net(network: nn.Module) -> Iterator[None]:
    """Inside the block no parameter of ``network`` requires a gradient; afterwards each is as it was before.

    A parameter that was frozen stays frozen, also when only some are. Works as a decorator too. While ``torch.compile``
    traces, where flags cannot change, the detached parameters are swapped in instead.

    Args:
        network: the network to hold out. Its inputs still get gradients.

    Examples:
        >>> net = nn.Linear(2, 1)
        >>> with hold_out_net(net):
        ...     net(torch.ones(2)).requires_grad
        False
        >>> net(torch.ones(2)).requires_grad
        True
    """
    if torch.compiler.is_compiling():
        with swap_params(TensorDict.from_module(network).data, network):
            yield
        return
    held = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


@contextmanager
def hold_out_params(params: TensorDictBase | Iterable[Tensor]) -> Iterator[TensorDictBase | tuple[Tensor, ...]]:
    """Yield the parameters detached: same storage, no gradient.

    Args:
        params: a tensordict of parameters, or an iterable of tensors.

    Yields:
        A detached tensordict, or a tuple of detached tensors.

    Examples:
        >>> net = nn.Linear(2, 1)
        >>> with hold_out_params(net.parameters()) as (weight, bias):
        ...     weight.requires_grad
        False
    """
    if isinstance(params, TensorDictBase):
        yield params.detach()
    else:
        yield tuple(parameter.detach() for parameter in params)
