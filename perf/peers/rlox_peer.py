"""``rlox`` (PyPI, Rust, CPU): batched GAE in fp32 and fp64 over flat arrays, and V-trace of a single lane."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from ..data import Problem
from ..ops import Outputs
from .base import Call, NotServed, Peer, numbers_only


class Rlox(Peer):
    """Rows of one flag; the next value of a step is the value of the following one, so nothing can be truncated."""

    name = "rlox"
    package = "rlox"
    devices = ("cpu",)
    differentiable = False
    smaller = "one flag, no truncation, next value taken from value, [N, T] only"

    def refusal(self, problem: Problem) -> str | None:
        """It has batched GAE of rows, with numbers for gamma and lambda."""
        case = problem.case
        if case.op != "gae":
            return f"has no batched {case.op}"
        if case.layout != "NT":
            return "takes rows of time only"
        if case.dtype not in ("float32", "float64"):
            return f"takes no {case.dtype}"
        return numbers_only(problem.arguments, "gamma", "lmbda") or super().refusal(problem)

    def reduced(self, problem: Problem) -> Problem:
        """The same rewards, values and ends; the next value of a row's last step stays, all others are the value ahead."""
        value, next_value = problem.arguments["value"], problem.arguments["next_value"]
        ahead = torch.cat([value[:, 1:], next_value[:, -1:]], 1)
        return problem.with_arguments(next_value=ahead, terminated=None)

    def bind(self, problem: Problem) -> Call:
        """Flat numpy views; the flag becomes a float beforehand, as its fp32 function asks."""
        given: dict[str, Any] = problem.arguments
        name = "compute_gae_batched_f32" if problem.case.dtype == "float32" else "compute_gae_batched"
        function = getattr(importlib.import_module("rlox"), name, None)
        if function is None:
            raise NotServed(f"rlox has no {name}")
        dtype = given["value"].dtype
        flat = [given[key].to(dtype).contiguous().view(-1).numpy() for key in ("reward", "value", "done")]
        last = given["next_value"][:, -1].contiguous().numpy()
        steps, gamma, lmbda = problem.case.steps, given["gamma"], given["lmbda"]

        def call() -> Outputs:
            advantage, target = function(*flat, last, steps, gamma, lmbda)
            return _tensor(advantage, problem), _tensor(target, problem)

        return call


def _tensor(x: Any, problem: Problem) -> Tensor:
    return torch.from_numpy(x).view(problem.shape)
