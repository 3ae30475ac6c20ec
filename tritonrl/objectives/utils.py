"""The utilities of the losses under the name that TorchRL gives their module. Each lives in a file of its own."""

from __future__ import annotations

from tritonrl.objectives import random_modules as _random_modules
from tritonrl.objectives.cached_values import cache_values as _cache_values
from tritonrl.objectives.distance_loss import distance_loss
from tritonrl.objectives.ensemble import vmap_module as _vmap_func
from tritonrl.objectives.hold_out import hold_out_net, hold_out_params
from tritonrl.objectives.kl_adaptive_lr import KLAdaptiveLR
from tritonrl.objectives.next_state_value import next_state_value
from tritonrl.objectives.optimizers import group_optimizers
from tritonrl.objectives.reduction import reduce_loss as _reduce
from tritonrl.objectives.target_update import HardUpdate, SoftUpdate, TargetNetUpdater
from tritonrl.objectives.value.registry import (
    ValueEstimators,
    build_value_estimator,
    default_value_kwargs,
    dispatch_value_estimator,
    get_value_estimator_entry,
    register_value_estimator,
)

# Names with an underscore are no public surface, but losses written on TorchRL's LossModule import them.
__all__ = [
    "HardUpdate",
    "KLAdaptiveLR",
    "SoftUpdate",
    "TargetNetUpdater",
    "ValueEstimators",
    "_cache_values",
    "_reduce",
    "_vmap_func",
    "build_value_estimator",
    "default_value_kwargs",
    "dispatch_value_estimator",
    "distance_loss",
    "get_value_estimator_entry",
    "group_optimizers",
    "hold_out_net",
    "hold_out_params",
    "next_state_value",
    "register_value_estimator",
]


def __getattr__(name: str) -> object:
    if name == "RANDOM_MODULE_LIST":
        # Rebound by add_random_module: a copied name would go stale.
        return _random_modules.RANDOM_MODULE_LIST
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
