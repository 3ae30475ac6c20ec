"""An opt-in debug switch: estimators that look for NaN and infinity in what they read and in what they would write.

Off, which is the default, it costs one Python bool and no operation on the device. On, each checked entry is waited for
on the host, and a compiled estimator has a graph break at the check (under ``fullgraph=True`` an error that says so).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from tensordict import NestedKey
from torch import Tensor

from .signals import Steps

__all__ = ["check_finite", "finite", "finite_steps"]

VARIABLE = "TRITONRL_DEBUG_FINITE"
OFF = ("", "0")

_on = os.environ.get(VARIABLE, "") not in OFF


@contextmanager
def check_finite(enabled: bool = True) -> Iterator[None]:
    """Within this block every value estimator refuses NaN and infinity, in all threads; ``enabled=False`` allows them.

    Looked at are rewards, values and next values (where they count: a next value behind ``terminated`` does not, nor does
    padding), discounts, and then all that would be written. Nothing is written when the check fails. The environment
    variable ``TRITONRL_DEBUG_FINITE=1``, read when the package is imported, is the same for a whole process.

    This is for debugging. It synchronises with the device at every call, breaks the graph of a compiled estimator, and
    what was compiled without it is compiled anew inside the block.

    Raises:
        FloatingPointError: from an estimator's call, naming the entry, how many of its elements are not finite, and the
            first of them.

    Examples:
        >>> from tensordict import TensorDict
        >>> from tritonrl.objectives.value import TD0Estimator
        >>> values = {"state_value": torch.zeros(3, 1), "reward": torch.tensor([[1.0], [torch.nan], [1.0]])}
        >>> done = torch.zeros(3, 1, dtype=torch.bool)
        >>> rollout = TensorDict({"state_value": torch.zeros(3, 1), "next": {**values, "done": done}}, batch_size=[3])
        >>> with check_finite():
        ...     TD0Estimator(gamma=0.9, value_network=None)(rollout)
        Traceback (most recent call last):
        ...
        FloatingPointError: ('next', 'reward') of shape (3, 1): 1 of 3 elements is not finite; the first is nan at [1, 0].
    """
    global _on
    before, _on = _on, enabled
    try:
        yield
    finally:
        _on = before


def finite(entries: Mapping[NestedKey, Tensor]) -> Mapping[NestedKey, Tensor]:
    """The entries as they are; with the switch on, every element must be finite.

    Raises:
        FloatingPointError: naming the first entry that is not.
    """
    if _on:
        _refuse_non_finite(entries)
    return entries


def finite_steps(steps: Steps, keys: Mapping[str, NestedKey]) -> Steps:
    """The steps as they are; with the switch on, they must be finite wherever they count.

    Args:
        steps: as read from the rollout.
        keys: what to call those of ``gamma``, ``reward``, ``value`` and ``next_value`` that are to be looked at.

    Raises:
        FloatingPointError: naming the first entry that is not.
    """
    if _on:
        counts = torch.ones_like(steps.done) if steps.valid is None else _like(steps.valid, steps.done)
        read = {
            "gamma": steps.gamma,
            "reward": _where(counts, steps.reward),
            "value": _where(counts, steps.value),
            "next_value": _where(counts.logical_and(~steps.terminated.bool()), steps.next_value),
        }
        _refuse_non_finite({key: read[name] for name, key in keys.items()})
    return steps


@torch.compiler.disable(reason=f"{VARIABLE} or check_finite() is on, and looking at numbers is not for a graph")
def _refuse_non_finite(entries: Mapping[NestedKey, Tensor]) -> None:
    for key, entry in entries.items():
        bad = ~torch.isfinite(entry.detach())
        if bad.any():
            _refuse(key, entry.detach(), bad)


def _like(valid: Tensor, done: Tensor) -> Tensor:
    return valid.reshape(valid.shape + (1,) * (done.ndim - valid.ndim)).expand(done.shape)


def _where(counts: Tensor, entry: Tensor) -> Tensor:
    return torch.where(counts.bool(), entry.detach(), 0)


def _refuse(key: NestedKey, entry: Tensor, bad: Tensor) -> None:
    number, first = int(bad.sum()), bad.nonzero()[0].tolist()
    verb = "is" if number == 1 else "are"
    raise FloatingPointError(
        f"{key!r} of shape {tuple(entry.shape)}: {number} of {entry.numel()} elements {verb} not finite; the first is "
        f"{entry[tuple(first)]} at {first}."
    )
