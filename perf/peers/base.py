"""What the runner knows of a contender, ours included."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from ..data import RAGGED, Problem
from ..ops import Arguments, Outputs

Call = Callable[[], Outputs]


class NotServed(Exception):
    """This contender does not compute this problem; the message says why, for the record."""


class Peer:
    """Somebody who computes the same thing.

    A subclass says what it needs (``package``), where it runs (``devices``), whether gradients pass through it, and binds a
    problem to a call without arguments. When it solves a smaller problem, ``smaller`` says so in a few words (they stand
    beside every figure of it), and :meth:`reduced` turns a problem into the one that it does solve: the gate then holds it
    against the exact answer to that.
    """

    name: ClassVar[str]
    package: ClassVar[str | None] = None
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    differentiable: ClassVar[bool] = True
    capturable: ClassVar[bool] = True
    compiles: ClassVar[bool] = False
    ragged: ClassVar[bool] = False  # knows masks, packed sequences, derived next values and moments
    smaller: ClassVar[str] = ""

    def missing(self) -> str | None:
        """Why this peer cannot run on this machine at all; ``None`` when it can."""
        if self.package is None:
            return None
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        try:
            importlib.import_module(self.package)
        except Exception as error:  # a broken install is an absent peer, not a failed run
            return f"{self.package} cannot be imported ({type(error).__name__}: {error})"
        return None

    def refusal(self, problem: Problem) -> str | None:
        """Why this peer is not timed on this problem; ``None`` when it is. Cheap: nothing is compiled or computed."""
        case = problem.case
        if problem.device.type not in self.devices:
            return f"does not run on {problem.device.type}"
        if case.direction == "backward" and not self.differentiable:
            return "has no gradient"
        if case.mode == "graph" and not self.capturable:
            return "cannot be captured in a CUDA graph"
        unknown = [] if self.ragged else [name for name in case.variants if name in RAGGED]
        if unknown:
            return f"has no {', '.join(unknown)}"
        if self.compiles and not case.compiled_peers:
            return "compiled for a few shapes only"
        return None

    def reduced(self, problem: Problem) -> Problem:
        """The problem that this peer solves."""
        return problem

    def bind(self, problem: Problem) -> Call:
        """A call that computes the (reduced) problem; conversions happen here, outside the clock.

        Raises:
            NotServed: if it turns out that this peer cannot.
        """
        raise NotImplementedError


def numbers_only(arguments: Arguments, *names: str) -> str | None:
    """Which of these arguments are tensors, for peers that take only numbers."""
    tensors = [name for name in names if isinstance(arguments.get(name), Tensor)]
    return f"takes {', '.join(tensors)} as a number only" if tensors else None
