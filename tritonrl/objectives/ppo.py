"""The PPO family, under the import path that TorchRL's scripts use."""

from __future__ import annotations

from tritonrl.objectives.clip_ppo import ClipPPOLoss
from tritonrl.objectives.klpen_ppo import KLPENPPOLoss
from tritonrl.objectives.ppo_loss import PPOLoss

__all__ = ["ClipPPOLoss", "KLPENPPOLoss", "PPOLoss"]
