"""``rl_triton`` (GPU), where it can be imported. Not on PyPI, so its signature is read, not known: see :func:`_matched`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

from ..data import Problem
from ..ops import Outputs, as_tuple
from .base import Call, NotServed, Peer, numbers_only

_FUNCTIONS = ("gae", "compute_gae", "gae_triton", "triton_gae", "fused_gae")
# Names that RL code gives to these things. The gate refuses a wrong guess: it is reported as wrong, never timed.
_SPELLINGS: dict[str, tuple[str, ...]] = {
    "reward": ("rewards", "reward", "r"),
    "value": ("values", "value", "v"),
    "next_value": ("next_values", "next_value"),
    "done": ("dones", "done", "terminations", "terminals"),
    "gamma": ("gamma", "discount"),
    "lmbda": ("lam", "lmbda", "lambda_", "gae_lambda", "lambd"),
    "last_value": ("last_value", "last_values", "bootstrap_value", "bootstrap_values", "next_value_last"),
}


class RlTriton(Peer):
    """GAE of rows in fp32, without truncation."""

    name = "rl_triton"
    package = "rl_triton"
    devices = ("cuda",)
    differentiable = False
    smaller = "one flag, no truncation, next value taken from value, [N, T] fp32 only"

    def refusal(self, problem: Problem) -> str | None:
        """GAE of fp32 rows, with numbers for gamma and lambda."""
        case = problem.case
        if case.op != "gae" or case.layout != "NT" or case.dtype != "float32":
            return "has only GAE of fp32 rows"
        return numbers_only(problem.arguments, "gamma", "lmbda") or super().refusal(problem)

    def reduced(self, problem: Problem) -> Problem:
        """One flag; the next value is the value ahead."""
        value, next_value = problem.arguments["value"], problem.arguments["next_value"]
        ahead = torch.cat([value[:, 1:], next_value[:, -1:]], 1)
        return problem.with_arguments(next_value=ahead, terminated=None)

    def bind(self, problem: Problem) -> Call:
        """The first function whose every required parameter has a name that we know."""
        module: Any = importlib.import_module(self.package or "")
        given = problem.arguments | {"last_value": problem.arguments["next_value"][:, -1].contiguous()}
        for name in _FUNCTIONS:
            function = getattr(module, name, None)
            keywords = None if function is None else _matched(function, given)
            if function is not None and keywords is not None:
                return lambda f=function, k=keywords: _two(f(**k))  # type: ignore[misc]
        raise NotServed(f"no GAE of a signature that is known here among {', '.join(_FUNCTIONS)}")


def _matched(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any] | None:
    """Our arguments under the function's own names; ``None`` when it requires one that we do not recognise."""
    keywords = {}
    for parameter in inspect.signature(function).parameters.values():
        ours = next((name for name, spelled in _SPELLINGS.items() if parameter.name in spelled), None)
        if ours is not None:
            keywords[parameter.name] = given[ours]
        elif parameter.default is parameter.empty:
            return None
    return keywords


def _two(results: Any) -> Outputs:
    return as_tuple(results)[:2]
