"""Calls that a backend has no kernel for, composed of those that it has.

A backend names in ``MASKED`` the ops whose optional masks it takes itself, in ``PACKED`` those whose packed sequences it
knows the ends of, and defines ``gae_extended`` if it has one (which derives next values past masks if it says
``DERIVES_PAST_MASKS``). It need do none of this: a call without masks and offsets reaches it with the arguments that it
always had, and the rest is served here, at the price of more passes over the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .masked import derived_next_value, select, unmasked
from .moments import measure
from .packed import folded, is_packed
from .specs import allocate, by_name, plain_names
from .textbook import counted


def serves_itself(op: str, args: Sequence[Any], backend: Any) -> bool:
    """Whether the module ``backend`` has a function of its own for this call."""
    if is_packed(op, args) and not knows_ends(op, backend):
        return False
    if op == "gae_extended":
        return hasattr(backend, op) and (not derives_past_masks(args) or getattr(backend, "DERIVES_PAST_MASKS", False))
    return op in getattr(backend, "MASKED", ()) or all(x is None for x in args[len(plain_names(op)) :])


def knows_ends(op: str, backend: Any) -> bool:
    """Whether the module ``backend`` finds the ends of packed sequences itself."""
    return op in getattr(backend, "PACKED", ())


def serve(op: str, args: Sequence[Any], backend: Any) -> Any:
    """Run ``op`` on the module ``backend``, by composition where it does not know what is asked for."""
    if op == "gae_extended":
        check_extended(args)
    if not knows_ends(op, backend):
        args = folded(op, args, backend.linear_recurrence)
    if op != "gae_extended" and all(x is None for x in args[len(plain_names(op)) :]):
        return getattr(backend, op)(*args[: len(plain_names(op))])
    if serves_itself(op, args, backend):
        return getattr(backend, op)(*args)
    if op == "gae_extended":
        return _gae_extended(args, backend)
    plain, counts = unmasked(op, args)
    results = getattr(backend, op)(*plain)
    return in_promised_layout(op, args, select((results,) if isinstance(results, Tensor) else results, counts))


def in_promised_layout(op: str, args: Sequence[Any], computed: Sequence[Tensor | None]) -> Any:
    """Results in the layout and dtype that the op promises: copied, where rewritten inputs have given others."""
    found = []
    for result, x in zip(allocate(op, args), computed, strict=True):
        as_it_is = x is not None and (x.shape, x.stride(), x.dtype) == (result.shape, result.stride(), result.dtype)
        found.append(x if as_it_is else result if x is None or not result.numel() else result.copy_(x))
    return tuple(found) if len(found) > 1 else found[0]


def derives_past_masks(args: Sequence[Any]) -> bool:
    """Whether a call of ``gae_extended`` has masks and next values that are to be derived, which not every kernel can."""
    named = by_name("gae_extended", args)
    return named["next_value"] is None and (named["valid"] is not None or named["skip"] is not None)


def check_extended(args: Sequence[Any]) -> None:
    """Refuse a call that says nothing of what follows a step.

    Raises:
        ValueError: if there is neither ``next_value`` nor ``bootstrap_value``.
    """
    named = by_name("gae_extended", args)
    if named["next_value"] is None and named["bootstrap_value"] is None:
        raise ValueError("tritonrl::gae_extended needs next_value or bootstrap_value")


def _gae_extended(args: Sequence[Any], backend: Any) -> Any:
    named = by_name("gae_extended", args)
    moments, bootstrap_value = named.pop("moments"), named.pop("bootstrap_value")
    counts = counted(named["valid"], named["skip"])
    if named["next_value"] is None:
        value = named["value"].expand(torch.broadcast_shapes(named["reward"].shape, named["value"].shape))
        named["next_value"] = derived_next_value(
            value, bootstrap_value, counts, named["time_dim"], backend.linear_recurrence
        )
    advantage, target = serve("gae", tuple(named.values()), backend)
    return in_promised_layout(
        "gae_extended", args, (advantage, target, measure(advantage, counts) if moments else None)
    )
