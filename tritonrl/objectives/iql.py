"""Implicit Q-learning, under the import path that TorchRL's scripts use."""

from __future__ import annotations

from tritonrl.objectives.discrete_iql import DiscreteIQLLoss
from tritonrl.objectives.iql_loss import IQLLoss

__all__ = ["DiscreteIQLLoss", "IQLLoss"]
