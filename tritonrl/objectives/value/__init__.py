"""Value estimators (modules on tensordicts) and their functional form (plain tensors)."""

from __future__ import annotations

from .estimators import GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator, ValueEstimatorBase

__all__ = ["GAE", "TD0Estimator", "TD1Estimator", "TDLambdaEstimator", "ValueEstimatorBase"]
