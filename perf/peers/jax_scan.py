"""JAX: ``lax.scan`` over time, jitted, on the CPU."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from ..data import Problem
from ..ops import Outputs
from .base import Call, Peer, numbers_only


class JaxScan(Peer):
    """Coefficients, ``lax.scan`` and finish in one jitted function."""

    name = "jax lax.scan"
    package = "jax"
    devices = ("cpu",)
    differentiable = False

    def refusal(self, problem: Problem) -> str | None:
        """GAE and the general recurrence, in fp32, with numbers for gamma and lambda."""
        if problem.op not in ("gae", "linear_recurrence"):
            return f"not written for {problem.op}"
        if problem.case.dtype != "float32":
            return "run in float32 only"
        return numbers_only(problem.arguments, "gamma", "lmbda") or super().refusal(problem)

    def bind(self, problem: Problem) -> Call:
        """Arrays are made and the function is compiled here; a call waits for its result."""
        jax: Any = importlib.import_module("jax")
        cpu = jax.devices("cpu")[0]
        given = problem.arguments
        time_axis = problem.time_dim % len(problem.shape)
        if problem.op == "gae":
            ends = given.get("terminated", given["done"])
            names = ("reward", "value", "next_value", "done", "terminated")
            tensors = [(given | {"terminated": ends})[name].expand(problem.shape) for name in names]
            function = _gae(time_axis, given["gamma"], given["lmbda"])
        else:
            tensors, function = [given["a"], given["b"]], _linear(time_axis, given["reverse"])
        arrays = [jax.device_put(x.contiguous().numpy(), cpu) for x in tensors]
        jitted = jax.jit(function)

        def call() -> Outputs:
            return tuple(_tensor(x) for x in jax.block_until_ready(jitted(*arrays)))

        return call


def _jax() -> tuple[Any, Any]:
    return importlib.import_module("jax"), importlib.import_module("jax.numpy")


def _scan(a: Any, b: Any, axis: int, reverse: bool) -> Any:
    jax, jnp = _jax()

    def step(y: Any, ab: tuple[Any, Any]) -> tuple[Any, Any]:
        y = ab[1] + ab[0] * y
        return y, y

    a, b = jnp.moveaxis(a, axis, 0), jnp.moveaxis(b, axis, 0)
    return jnp.moveaxis(jax.lax.scan(step, jnp.zeros_like(b[0]), (a, b), reverse=reverse)[1], 0, axis)


def _gae(axis: int, gamma: float, lmbda: float) -> Any:
    _, jnp = _jax()

    def function(reward: Any, value: Any, next_value: Any, done: Any, terminated: Any) -> Any:
        delta = reward + gamma * jnp.where(terminated, 0.0, next_value) - value
        advantage = _scan(jnp.where(done, 0.0, gamma * lmbda), delta, axis, True)
        return advantage, advantage + value

    return function


def _linear(axis: int, reverse: bool) -> Any:
    def function(a: Any, b: Any) -> Any:
        return (_scan(a, b, axis, reverse),)

    return function


def _tensor(x: Any) -> Tensor:
    return torch.from_dlpack(x)
