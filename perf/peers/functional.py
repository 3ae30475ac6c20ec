"""TorchRL's value functions, and ours of the same names: one adapter, two packages."""

from __future__ import annotations

import importlib
import warnings
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..data import Problem
from ..ops import as_tuple
from .base import Call, NotServed, Peer, numbers_only

# Our argument name -> theirs.
_RENAMED = {"value": "state_value", "next_value": "next_state_value"}


class Functional(Peer):
    """A module with TorchRL's functions. ``functions``: op -> the name of the function."""

    module: ClassVar[str]
    functions: ClassVar[dict[str, str]]
    tensor_discounts: ClassVar[bool] = True

    def refusal(self, problem: Problem) -> str | None:
        """Refuses ops that it has no function for, and tensor discounts where the function wants numbers."""
        if problem.op not in self.functions:
            return f"has no {problem.op}"
        if not self.tensor_discounts and (problem_with := numbers_only(problem.arguments, "gamma", "lmbda")):
            return problem_with
        return super().refusal(problem)

    def given(self, problem: Problem) -> dict[str, Any]:
        """Our arguments under their names. They want flags of the full shape: one for several features is expanded to it."""
        given = {_RENAMED.get(name, name): x for name, x in problem.arguments.items()}
        for name in ("done", "terminated"):
            if isinstance(given.get(name), Tensor):
                given[name] = given[name].expand(problem.shape)
        if problem.op == "td1_return":
            given.pop("lmbda")
        return given

    def bind(self, problem: Problem) -> Call:
        """The function with its arguments by keyword."""
        function = getattr(importlib.import_module(self.module), self.functions[problem.op], None)
        if function is None:
            raise NotServed(f"{self.module} has no {self.functions[problem.op]}")
        call = partial(function, **self.given(problem))
        return lambda: as_tuple(call())


class OursByName(Functional):
    """Our drop-in functions: the kernels with the argument checks and names of TorchRL in front."""

    name = "tritonrl functional"
    module = "tritonrl.objectives.value.functional"
    functions: ClassVar[dict[str, str]] = {
        "gae": "generalized_advantage_estimate",
        "td_lambda_return": "td_lambda_return_estimate",
        "td1_return": "td1_return_estimate",
        "vtrace": "vtrace_advantage_estimate",
        "reward_to_go": "reward2go",
    }


class _TorchRL(Functional):
    package = "torchrl"
    module = "torchrl.objectives.value.functional"
    # They index with data-dependent shapes, or copy from the host.
    capturable = False

    def bind(self, problem: Problem) -> Call:
        """As for every module of functions; its deprecation warnings are not ours to print."""
        warnings.filterwarnings("ignore", module=r"torchrl(\.|$)")
        return super().bind(problem)


class TorchRLLoop(_TorchRL):
    """TorchRL's loop over time."""

    name = "torchrl loop"
    tensor_discounts = True
    functions: ClassVar[dict[str, str]] = {
        "gae": "generalized_advantage_estimate",
        "td_lambda_return": "td_lambda_return_estimate",
        "td1_return": "td1_return_estimate",
        "vtrace": "vtrace_advantage_estimate",
        "reward_to_go": "reward2go",
    }

    def refusal(self, problem: Problem) -> str | None:
        """On a GPU every step is several launches: past some thousands of steps one call takes a second."""
        if problem.device.type == "cuda" and problem.case.steps > 4096:
            return "left out above 4096 steps on a GPU, where one call takes seconds"
        return super().refusal(problem)


class TorchRLVectorised(_TorchRL):
    """TorchRL's vectorised functions (a convolution per trajectory, or a T x T matrix with tensor discounts)."""

    name = "torchrl vectorised"
    functions: ClassVar[dict[str, str]] = {
        "gae": "vec_generalized_advantage_estimate",
        "td_lambda_return": "vec_td_lambda_return_estimate",
        "td1_return": "vec_td1_return_estimate",
    }

    def refusal(self, problem: Problem) -> str | None:
        """The T x T matrices of tensor discounts do not fit in memory for long T."""
        discounts = [problem.arguments.get(name) for name in ("gamma", "lmbda")]
        if any(isinstance(x, torch.Tensor) for x in discounts) and problem.case.lanes * problem.case.steps**2 > 2**28:
            return "left out: with tensor discounts it makes a T x T matrix for every lane"
        return super().refusal(problem)
