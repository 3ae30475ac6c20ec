"""Loss modules, one file for each family of algorithms, and the parts that they share."""

from __future__ import annotations

from tritonrl.objectives.a2c import A2CLoss
from tritonrl.objectives.common import LossModule
from tritonrl.objectives.distance_loss import distance_loss
from tritonrl.objectives.hold_out import hold_out_net, hold_out_params
from tritonrl.objectives.kl_adaptive_lr import KLAdaptiveLR
from tritonrl.objectives.klpen_ppo import KLPENPPOLoss
from tritonrl.objectives.next_state_value import next_state_value
from tritonrl.objectives.optimizers import group_optimizers
from tritonrl.objectives.ppo import ClipPPOLoss, PPOLoss
from tritonrl.objectives.random_modules import add_random_module
from tritonrl.objectives.reduction import AUTO_LOSS_MASK_KEYS
from tritonrl.objectives.reinforce import ReinforceLoss
from tritonrl.objectives.target_update import HardUpdate, SoftUpdate, TargetNetUpdater
from tritonrl.objectives.value.registry import ValueEstimators, default_value_kwargs

__all__ = [
    "AUTO_LOSS_MASK_KEYS",
    "A2CLoss",
    "ClipPPOLoss",
    "HardUpdate",
    "KLAdaptiveLR",
    "KLPENPPOLoss",
    "LossModule",
    "PPOLoss",
    "ReinforceLoss",
    "SoftUpdate",
    "TargetNetUpdater",
    "ValueEstimators",
    "add_random_module",
    "default_value_kwargs",
    "distance_loss",
    "group_optimizers",
    "hold_out_net",
    "hold_out_params",
    "next_state_value",
]
