"""The plain torch backend: the textbook twins behind the interface that all backends share.

It serves every device that has neither Triton nor Numba kernels. Results are copied into the layout that the ops promise,
because a graph compiled with one backend may run on another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import gradients, textbook
from .specs import allocate, by_name, plain_names

# The twins of the forward passes know the masks; a masked backward pass is composed (:mod:`.compose`).
MASKED = frozenset({"gae", "td_lambda_return", "reward_to_go", "vtrace"})


def _served_by(op: str, twin: Callable[..., Any]) -> Callable[..., Any]:
    """``twin`` as a backend function: absent flags and gradients filled in, results in the promised layout."""

    def run(*args: Any) -> Any:
        results = allocate(op, args)
        filled = by_name(op, args)
        if op not in MASKED:
            filled = {name: filled[name] for name in plain_names(op)}
        filled.pop("cu_seqlens", None)  # the ends of packed sequences stand in done (:mod:`.compose`)
        if "terminated" in filled and filled["terminated"] is None:
            filled["terminated"] = filled["done"]
        for name in ("grad_advantage", "grad_target"):
            if name in filled and filled[name] is None:
                filled[name] = torch.zeros_like(results[0])
        computed = twin(*filled.values())
        computed = (computed,) if isinstance(computed, Tensor) else computed
        for result, value in zip(results, computed, strict=True):
            if value is not None:
                result.copy_(value)
        return results if len(results) > 1 else results[0]

    run.__name__ = run.__qualname__ = op
    run.__doc__ = f"``tritonrl::{op}`` in plain torch."
    return run


def _linear_recurrence_backward(*args: Any) -> tuple[Tensor, Tensor]:
    return gradients.linear_recurrence_backward(*args)[:2]


linear_recurrence = _served_by("linear_recurrence", textbook.linear_recurrence)
linear_recurrence_backward = _served_by("linear_recurrence_backward", _linear_recurrence_backward)
gae = _served_by("gae", textbook.gae)
gae_backward = _served_by("gae_backward", gradients.gae_backward)
td_lambda_return = _served_by("td_lambda_return", textbook.td_lambda_return)
td_lambda_return_backward = _served_by("td_lambda_return_backward", gradients.td_lambda_return_backward)
reward_to_go = _served_by("reward_to_go", textbook.reward_to_go)
reward_to_go_backward = _served_by("reward_to_go_backward", gradients.reward_to_go_backward)
vtrace = _served_by("vtrace", textbook.vtrace)
vtrace_backward = _served_by("vtrace_backward", gradients.vtrace_backward)
