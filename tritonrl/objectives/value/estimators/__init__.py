"""Value estimators: modules that read a rollout tensordict and write advantages and value targets."""

from __future__ import annotations

from .base import ValueEstimatorBase
from .gae import GAE
from .td0 import TD0Estimator
from .td1 import TD1Estimator
from .td_lambda import TDLambdaEstimator

__all__ = ["GAE", "TD0Estimator", "TD1Estimator", "TDLambdaEstimator", "ValueEstimatorBase"]
