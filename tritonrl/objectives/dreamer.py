"""The three losses of Dreamer, Hafner et al. 2019, https://arxiv.org/abs/1912.01603: model, actor and value function."""

from __future__ import annotations

from tritonrl.objectives.dreamer_actor import DreamerActorLoss
from tritonrl.objectives.dreamer_model import DreamerModelLoss
from tritonrl.objectives.dreamer_value import DreamerValueLoss

__all__ = ["DreamerActorLoss", "DreamerModelLoss", "DreamerValueLoss"]
