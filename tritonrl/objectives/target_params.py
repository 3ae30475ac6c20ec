"""Target parameters: detached copies of a network's parameters, registered as buffers, that an updater moves."""

from __future__ import annotations

import os
import warnings

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictParams
from torch import Tensor
from torch.nn.parameter import Buffer

__all__ = [
    "TARGET_NET_WARNING",
    "is_target_name",
    "make_target_params",
    "source_name",
    "target_name",
    "warn_stale_targets",
]

_PREFIX = "target_"
_SUFFIX = "_params"

TARGET_NET_WARNING = (
    "No target network updater has been associated with this loss module, but target parameters have been found. "
    "They keep their first values unless you update them: build a SoftUpdate or a HardUpdate on the loss and call "
    "its step(), or update them by hand and silence this warning with the environment variable RL_WARNINGS=False."
)


def is_target_name(name: str) -> bool:
    """Whether ``name`` is that of target parameters: ``target_<network>_params``."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def source_name(target: str) -> str:
    """``target_<network>_params`` -> ``<network>_params``."""
    return target.removeprefix(_PREFIX)


def target_name(source: str) -> str:
    """``<network>_params`` -> ``target_<network>_params``."""
    return f"{_PREFIX}{source}"


def make_target_params(source: TensorDictBase) -> TensorDictParams:
    """A detached clone of every parameter and buffer of ``source``, held as buffers.

    A tensor that appears under two keys (tied weights) is cloned once, so that the copy is tied too.
    """
    clones: dict[int, Tensor] = {}

    def clone(leaf: Tensor) -> Tensor:
        if id(leaf) not in clones:
            clones[id(leaf)] = Buffer(leaf.detach().clone())
        return clones[id(leaf)]

    copied = source._param_td if isinstance(source, TensorDictParams) else source
    # filter_empty=False keeps the sub-modules without parameters, so that the copy fits the same module.
    return TensorDictParams(copied.apply(clone, filter_empty=False), no_convert=True)


def _warnings_wanted() -> bool:
    return os.environ.get("RL_WARNINGS", "True").strip().lower() not in ("0", "false", "no", "off", "f", "n")


def warn_stale_targets(stacklevel: int = 2) -> None:
    """Emit the warning about targets that nobody updates, unless the user or a compiler does not want it."""
    if not torch.compiler.is_compiling() and _warnings_wanted():
        warnings.warn(TARGET_NET_WARNING, category=UserWarning, stacklevel=stacklevel + 1)
