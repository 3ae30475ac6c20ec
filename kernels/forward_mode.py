"""Forward-mode derivatives: ``torch.autograd.forward_ad``, and ``torch.func.jvp``, ``jacfwd`` and ``hessian``.

A kernel knows nothing of tangents, and would drop them without a word. Where there are some, a call is computed by the textbook
functions, which are made of operations that PyTorch differentiates in any mode: a loop over time, slow and right. Not by the
backend that is made of them, which copies results into the layout that an op promises: in place, where ``vmap`` cannot follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad

from . import packed, textbook
from .masked import derived_next_value
from .moments import measure
from .specs import by_name
from .textbook import counted


def is_on() -> bool:
    """Whether somebody takes forward-mode derivatives: of anything, as far as a compiler can tell."""
    level: int = forward_ad._current_level
    return level >= 0


def is_asked_of(args: Sequence[Any]) -> bool:
    """Whether what is made of these has tangents, or may have some."""
    if torch._C._are_functorch_transforms_active():
        return any(each.key() == TransformType.Jvp for each in retrieve_all_functorch_interpreters())
    return is_on() and any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in args)


def compute(op: str, args: tuple[Any, ...]) -> Any:
    """The results of ``op``, and their tangents."""
    named = by_name(op, packed.folded(op, args, textbook.linear_recurrence))
    named.pop("cu_seqlens", None)
    if "terminated" in named and named["terminated"] is None:
        named["terminated"] = named["done"]
    if op == "gae_extended":
        return _gae_extended(named)
    function: Callable[..., Any] = getattr(textbook, op)
    return function(**named)


def _gae_extended(named: dict[str, Any]) -> tuple[Tensor, ...]:
    with_moments, bootstrap_value = named.pop("moments"), named.pop("bootstrap_value")
    counts, value = counted(named["valid"], named["skip"]), named["value"]
    if named["next_value"] is None:
        value = value.expand(torch.broadcast_shapes(named["reward"].shape, value.shape))
        last = (bootstrap_value, counts, named["time_dim"], textbook.linear_recurrence)
        named["next_value"] = derived_next_value(value, *last)
    advantage, target = textbook.gae(**named)
    moments = measure(advantage.detach(), counts) if with_moments else advantage.new_empty(0)
    return advantage, target, moments
