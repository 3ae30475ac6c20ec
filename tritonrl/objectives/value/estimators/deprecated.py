"""Former names of estimators."""

from __future__ import annotations

import warnings
from typing import Any

from .td0 import TD0Estimator
from .td1 import TD1Estimator
from .td_lambda import TDLambdaEstimator

__all__ = ["TD0Estimate", "TD1Estimate", "TDLambdaEstimate"]


class _FormerName:
    """Mix-in: an estimator under its former name. It warns, and is otherwise the estimator."""

    def __init__(self, **options: Any) -> None:
        former = type(self).__name__
        present = former.removesuffix("Estimate") + "Estimator"
        warnings.warn(f"{former} is now called {present}.", category=DeprecationWarning, stacklevel=2)
        super().__init__(**options)


class TD0Estimate(_FormerName, TD0Estimator):
    """Former name of :class:`TD0Estimator`."""


class TD1Estimate(_FormerName, TD1Estimator):
    """Former name of :class:`TD1Estimator`."""


class TDLambdaEstimate(_FormerName, TDLambdaEstimator):
    """Former name of :class:`TDLambdaEstimator`."""
