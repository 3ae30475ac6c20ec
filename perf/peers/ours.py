"""Our own kernels, eager or compiled."""

from __future__ import annotations

import torch

from ..data import Problem
from ..ops import as_tuple, kernel_of, unsupported
from .base import Call, NotServed, Peer


class Ours(Peer):
    """``tritonrl.kernels``."""

    name = "tritonrl"
    ragged = True

    def bind(self, problem: Problem) -> Call:
        """The function with the case's arguments; compiled with ``fullgraph=True`` where the case says so."""
        problem_with = unsupported(problem.op, problem.arguments)
        if problem_with is not None:
            raise NotServed(problem_with)
        function = kernel_of(problem.op)
        given = problem.arguments
        if problem.case.mode == "compiled":
            function = torch.compile(function, fullgraph=True)
        return lambda: as_tuple(function(**given))
