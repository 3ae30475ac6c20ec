"""What people write by hand in torch: the loop over time, and the same handed to ``torch.compile``."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch

from ..data import Problem
from ..ops import Outputs
from .base import Call, Peer
from .steps import SOLVE, Scan, log_step_scan, sequential_scan


class HandWritten(Peer):
    """Coefficients, a scan, a finish."""

    longest: ClassVar[dict[str, int]] = {}

    def scan(self) -> Scan:
        """The scan; subclasses say which."""
        raise NotImplementedError

    def refusal(self, problem: Problem) -> str | None:
        """Also refuses more steps than ``longest``."""
        longest = self.longest.get(problem.device.type)
        if longest is not None and problem.case.steps > longest:
            return f"left out above {longest} steps, where it takes minutes"
        return super().refusal(problem)

    def solve(self, op: str, arguments: dict[str, Any]) -> Outputs:
        """The results of an op."""
        return SOLVE[op](self.scan(), **arguments)

    def bind(self, problem: Problem) -> Call:
        """The call, compiled where the peer is a compiled one."""
        return partial(self.solve, problem.op, problem.arguments)


class Compiled(HandWritten):
    """The same through ``torch.compile``, each op compiled for its own shape."""

    compiles = True

    def bind(self, problem: Problem) -> Call:
        """Compiles on the first call, which is outside the clock."""
        return partial(torch.compile(partial(self.solve, problem.op), dynamic=False), problem.arguments)


class PythonLoop(HandWritten):
    """The loop over time in Python."""

    name = "python loop"
    longest: ClassVar[dict[str, int]] = {"cpu": 100_000, "cuda": 4096}

    def scan(self) -> Scan:
        """One step after the other."""
        return sequential_scan


class CompiledLoop(Compiled):
    """``torch.compile`` unrolls the loop, so its compile time grows with the number of steps."""

    name = "torch.compile loop"
    longest: ClassVar[dict[str, int]] = {"cpu": 128, "cuda": 128}

    def scan(self) -> Scan:
        """One step after the other."""
        return sequential_scan


class CompiledLogStep(Compiled):
    """``torch.compile`` of a scan in log2(T) sweeps."""

    name = "torch.compile log-step"

    def scan(self) -> Scan:
        """In log2(T) sweeps."""
        return log_step_scan
