"""Reverse-time discounted recurrences as torch operators on Triton, Numba and plain torch.

This is the ground floor of tritonrl, usable alone: it knows torch, triton and numba, and nothing of tensordict or of losses.
Start with :mod:`.textbook` for what is computed, and :mod:`.backend` for what computes it where.
"""

from __future__ import annotations

from .api import gae, linear_recurrence, reward_to_go, td_lambda_return, vtrace
from .backend import BackendStatus, BackendUnavailable, backends, use_backend
from .check import CheckResult, self_check
from .explain import explain
from .moments import merge_moments
from .standardise import standardise

__all__ = [
    "BackendStatus",
    "BackendUnavailable",
    "CheckResult",
    "backends",
    "explain",
    "gae",
    "linear_recurrence",
    "merge_moments",
    "reward_to_go",
    "self_check",
    "standardise",
    "td_lambda_return",
    "use_backend",
    "vtrace",
]
