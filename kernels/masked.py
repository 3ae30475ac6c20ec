"""A masked call is an unmasked call on rewritten inputs: the identity that serves whatever knows nothing of masks.

Where a step does not count, its numbers become zero and its discounts one, and then nothing but the flags decides what
passes through it. An invalid step is done. A step in front of an invalid one is done too, but not terminated, so that it
closes on its next value. A skipped step has a coefficient of one, unless it is done: the state passes through unchanged.
What comes out there is selected away. Everything is a select, so a NaN that does not count stays where it is.

Made of differentiable pieces: :mod:`.ops` takes second derivatives of masked calls through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .dtypes import accumulate_dtype
from .specs import ALL_SPECS, by_name, full_shape, plain_names
from .textbook import closes, counted, next_step

Recurrence = Callable[[Tensor, Tensor, Tensor | None, int, bool], Tensor]
_DISCOUNTS = ("gamma", "lmbda", "rho_thresh", "c_thresh")
_FLAGS = ("done", "terminated", "valid", "skip")


def unmasked(op: str, args: Sequence[Any]) -> tuple[list[Any], Tensor]:
    """The arguments that give the same results without masks, and where those results count."""
    named = by_name(op, args)
    spec, valid, skip, time_dim = ALL_SPECS[op], named["valid"], named.get("skip"), named["time_dim"]
    shape = full_shape([x for x in (args[i] for i in spec.shaped_by) if x is not None])
    counts = counted(valid, skip)
    assert counts is not None, f"{op} was called without masks"
    done = named["done"]
    if "terminated" in named and named["terminated"] is None:
        named["terminated"] = done
    if valid is not None:
        done = closes(done.expand(shape), time_dim, valid) | ~valid
    named["done"] = done
    dtype = accumulate_dtype(args[spec.like].dtype)
    for name, x in named.items():
        if not isinstance(x, Tensor) or name in _FLAGS:
            continue
        if name in _DISCOUNTS:
            # A single number stays one, unless it has to change for a skipped step.
            named[name] = torch.where(counts, x.to(dtype), 1.0) if x.dim() or skip is not None else x
        elif name == "advantage":  # the state, which a skipped step has as well
            named[name] = x if valid is None else torch.where(valid, x, 0.0)
        else:
            named[name] = torch.where(counts, x, 0.0)
    return [named[name] for name in plain_names(op)], counts


def select(results: Sequence[Tensor | None], counts: Tensor) -> tuple[Tensor | None, ...]:
    """Results of full shape, zero where they do not count; absent and empty ones as they are."""
    return tuple(x if x is None or not x.numel() else torch.where(counts, x, 0.0) for x in results)


def state_of(
    advantage: Tensor, done: Tensor, valid: Tensor | None, skip: Tensor, time_dim: int, recurrence: Recurrence
) -> Tensor:
    """The state behind the advantages of a call with ``skip``: what passes through the skipped steps, where zeros are kept.

    The gradient with respect to a discount is ``g[t]`` times the state that entered step ``t``, skipped or not.
    """
    passes = skip & ~done if valid is None else skip & ~done & valid
    a = torch.where(passes, 1.0, 0.0).to(accumulate_dtype(advantage.dtype))
    return recurrence(a.expand(advantage.shape), advantage, None, time_dim, True).to(advantage.dtype)


def derived_next_value(
    value: Tensor, bootstrap_value: Tensor, counts: Tensor | None, time_dim: int, recurrence: Recurrence
) -> Tensor:
    """``V'[t]``: the value of the next step that counts, ``bootstrap_value`` where there is none.

    With masks ``ahead[t] = V[t]`` where ``t`` counts and ``ahead[t+1]`` elsewhere, which is the recurrence again.
    """
    ahead = value
    if counts is not None:
        keeps = torch.where(counts, 0.0, 1.0).to(accumulate_dtype(value.dtype)).expand(value.shape)
        ahead = recurrence(keeps, torch.where(counts, value, 0.0), bootstrap_value, time_dim, True).to(value.dtype)
    lanes = value.shape[:time_dim] + value.shape[value.dim() + time_dim + 1 :]
    return next_step(ahead, bootstrap_value.to(value.dtype).expand(lanes), time_dim)
