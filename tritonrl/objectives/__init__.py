"""Loss modules, one file for each family of algorithms, and the parts that they share."""

from __future__ import annotations

from tritonrl.objectives.a2c import A2CLoss
from tritonrl.objectives.common import LossModule
from tritonrl.objectives.ddpg import DDPGLoss
from tritonrl.objectives.discrete_iql import DiscreteIQLLoss
from tritonrl.objectives.discrete_sac import DiscreteSACLoss
from tritonrl.objectives.distance_loss import distance_loss
from tritonrl.objectives.distributional_dqn import DistributionalDQNLoss
from tritonrl.objectives.dqn import DQNLoss
from tritonrl.objectives.dreamer_actor import DreamerActorLoss
from tritonrl.objectives.dreamer_model import DreamerModelLoss
from tritonrl.objectives.dreamer_value import DreamerValueLoss
from tritonrl.objectives.hold_out import hold_out_net, hold_out_params
from tritonrl.objectives.iql import IQLLoss
from tritonrl.objectives.kl_adaptive_lr import KLAdaptiveLR
from tritonrl.objectives.klpen_ppo import KLPENPPOLoss
from tritonrl.objectives.next_state_value import next_state_value
from tritonrl.objectives.optimizers import group_optimizers
from tritonrl.objectives.ppo import ClipPPOLoss, PPOLoss
from tritonrl.objectives.random_modules import add_random_module
from tritonrl.objectives.redq import REDQLoss
from tritonrl.objectives.reduction import AUTO_LOSS_MASK_KEYS
from tritonrl.objectives.reinforce import ReinforceLoss
from tritonrl.objectives.sac import SACLoss
from tritonrl.objectives.target_update import HardUpdate, SoftUpdate, TargetNetUpdater
from tritonrl.objectives.td3 import TD3Loss
from tritonrl.objectives.value.registry import ValueEstimators, default_value_kwargs

__all__ = [
    "AUTO_LOSS_MASK_KEYS",
    "A2CLoss",
    "ClipPPOLoss",
    "DDPGLoss",
    "DQNLoss",
    "DiscreteIQLLoss",
    "DiscreteSACLoss",
    "DistributionalDQNLoss",
    "DreamerActorLoss",
    "DreamerModelLoss",
    "DreamerValueLoss",
    "HardUpdate",
    "IQLLoss",
    "KLAdaptiveLR",
    "KLPENPPOLoss",
    "LossModule",
    "PPOLoss",
    "REDQLoss",
    "ReinforceLoss",
    "SACLoss",
    "SoftUpdate",
    "TD3Loss",
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
