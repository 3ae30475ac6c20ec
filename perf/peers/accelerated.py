"""``accelerated-scan`` (PyPI, GPU): the general recurrence, forwards in time, in Triton."""

from __future__ import annotations

import importlib
from typing import Any

from ..data import Problem
from ..ops import Outputs
from .base import Call, Peer


class AcceleratedScan(Peer):
    """``accelerated_scan.scalar.scan(gates, tokens)`` over ``[B, C, T]``, T a power of two."""

    name = "accelerated-scan"
    package = "accelerated_scan"
    devices = ("cuda",)

    def refusal(self, problem: Problem) -> str | None:
        """The general recurrence of rows, with a power of two of steps."""
        case = problem.case
        if case.op != "linear_recurrence":
            return "has only the general recurrence"
        if case.layout != "NT" or case.steps & (case.steps - 1):
            return "takes rows of a power of two of steps only"
        return super().refusal(problem)

    def bind(self, problem: Problem) -> Call:
        """Lanes become channels."""
        scan: Any = importlib.import_module("accelerated_scan.scalar").scan
        gates, tokens = problem.arguments["a"].unsqueeze(0), problem.arguments["b"].unsqueeze(0)

        def call() -> Outputs:
            return (scan(gates, tokens).squeeze(0),)

        return call
