"""The two modes that every loss method runs in: deterministic sampling and recurrent networks over whole sequences."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tensordict.nn.probabilistic import set_interaction_type

__all__ = ["run_in_loss_modes", "sequence_mode"]

_WRAPPED = "_runs_in_loss_modes"


def sequence_mode() -> AbstractContextManager[Any]:
    """Recurrent modules of TorchRL read their input as ``[*B, T, ...]`` sequences inside this context.

    TorchRL keeps that mode in a variable of its own. A network that reads it exists only where the user has imported
    TorchRL, so it is looked up among the loaded modules: nothing is imported here.
    """
    torchrl_modules = sys.modules.get("torchrl.modules")
    set_recurrent_mode = getattr(torchrl_modules, "set_recurrent_mode", None)
    return nullcontext() if set_recurrent_mode is None else set_recurrent_mode(True)


def run_in_loss_modes(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method of a loss: interaction type ``self.deterministic_sampling_mode``, recurrent mode on."""
    if getattr(method, _WRAPPED, False):
        return method

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        with set_interaction_type(self.deterministic_sampling_mode), sequence_mode():
            return method(self, *args, **kwargs)

    setattr(wrapper, _WRAPPED, True)
    return wrapper
