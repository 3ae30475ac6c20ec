"""Which modules draw random numbers in their forward, and so need a randomness mode under ``torch.vmap``."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["RANDOM_MODULE_LIST", "VMAP_RANDOMNESS_MODES", "add_random_module", "draws_random_numbers"]

VMAP_RANDOMNESS_MODES = ("error", "same", "different")
"""What ``torch.vmap`` may do with a random operation."""

RANDOM_MODULE_LIST: tuple[type[nn.Module], ...] = (_DropoutNd,)


def add_random_module(module: type[nn.Module]) -> None:
    """Declare that ``module`` (a class) draws random numbers in its forward.

    A loss that finds an instance of it in one of its networks evaluates ensembles with
    ``torch.vmap(..., randomness="different")`` instead of ``"error"``. Dropout layers are known already.

    Raises:
        TypeError: if ``module`` is not a subclass of ``nn.Module``.

    Examples:
        >>> class Noise(nn.Module):
        ...     def forward(self, x):
        ...         return x + torch.randn_like(x)
        >>> add_random_module(Noise)
    """
    global RANDOM_MODULE_LIST
    if not (isinstance(module, type) and issubclass(module, nn.Module)):
        raise TypeError(f"add_random_module: module must be a subclass of nn.Module, got {module!r}.")
    if module not in RANDOM_MODULE_LIST:
        RANDOM_MODULE_LIST = (*RANDOM_MODULE_LIST, module)


def draws_random_numbers(networks: Iterable[nn.Module]) -> bool:
    """Whether any of the networks contains a module declared as random."""
    return any(isinstance(module, RANDOM_MODULE_LIST) for network in networks for module in network.modules())
