"""Value estimators: modules that read a rollout tensordict and write advantages and value targets."""

from __future__ import annotations

from .base import ValueEstimatorBase
from .deprecated import TD0Estimate, TD1Estimate, TDLambdaEstimate
from .finite_check import check_finite
from .gae import GAE
from .multi_agent_gae import MultiAgentGAE
from .td0 import TD0Estimator
from .td1 import TD1Estimator
from .td_lambda import TDLambdaEstimator
from .vtrace import VTrace

__all__ = [
    "GAE",
    "MultiAgentGAE",
    "TD0Estimate",
    "TD0Estimator",
    "TD1Estimate",
    "TD1Estimator",
    "TDLambdaEstimate",
    "TDLambdaEstimator",
    "VTrace",
    "ValueEstimatorBase",
    "check_finite",
]
