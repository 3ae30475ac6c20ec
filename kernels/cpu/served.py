"""The ops whose tensors are the operands of one kernel, and how a public call like one before it is served again.

Of such a call everything is known but the numbers (:mod:`tritonrl.kernels.repeat`): its results are allocated and the prepared
kernel is run. For a small rollout that is half of what the call took before.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..repeat import NOTES, Key, Noted, Repeat, Serve
from ..repeat import forget as forget_repeats
from ..results import Results
from ..specs import ALL_SPECS, allocate, plain_names
from . import dispatch
from .dispatch import Op, Prepared, execute, operands_of, prepared_for
from .moments import merge
from .sequences import compute, offsets_of

_MOST_KEPT = 4096
_repeats: dict[Key, Serve] = {}


def forget() -> None:
    """Forget all calls, as if none had been made; what was compiled stays. For who changes how calls are prepared."""
    dispatch.forget()
    _repeats.clear()
    forget_repeats()


def note(op: str, args: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
    """Tell who wants to know (:mod:`tritonrl.kernels.repeat`) of a call of this backend."""
    if NOTES.calls is not None:
        NOTES.calls.append(Noted(op, args, results))


def noting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let the function of an op tell of its calls."""

    @functools.wraps(function)
    def noted(*args: Any) -> Any:
        returned = function(*args)
        note(function.__name__, args, returned if isinstance(returned, tuple) else (returned,))
        return returned

    return noted


class Call(NamedTuple):
    """What a call of an op comes down to; ``moments``: whether those of the first result are wanted."""

    kernel: Op
    arguments: list[Tensor | None]
    masks: Sequence[Tensor | None]
    time_dim: int
    moments: bool = False


Takes = Callable[[Sequence[Any], torch.Size], Call]
"""From the arguments of an op and the shape of its results."""


def as_they_come(kernel: Op) -> Takes:
    """For an op whose tensors stand in front of its schema, in the order of the kernel, and its masks behind it."""
    names = plain_names(kernel.name)
    tensors, plain = names.index("time_dim"), len(names)
    masks = slice(plain, plain + len(set(ALL_SPECS[kernel.name].optional) & {"valid", "skip"}))
    done = names.index("done")
    terminated = names.index("terminated") if "terminated" in names else done

    def takes(args: Sequence[Any], shape: torch.Size) -> Call:
        arguments = list(args[:tensors])
        if arguments[terminated] is None:
            arguments[terminated] = arguments[done]
        return Call(kernel, arguments, args[masks], args[tensors])

    return takes


class Served:
    """The backend function of an op that is one kernel, and moments where the op has them."""

    def __init__(self, op: str, takes: Takes, recurrence: Callable[..., Tensor]) -> None:
        self.op, self.takes, self.recurrence = op, takes, recurrence
        self.steps = slice(-1 if ALL_SPECS[op].moments else None)  # the results that have a number for every step

    def __call__(self, *args: Any) -> Any:
        """The results for these arguments, in schema order."""
        results = allocate(self.op, args)
        steps, shape = results[self.steps], results[0].shape

        def fill(args: tuple[Any, ...]) -> None:
            call = self.takes(args, shape)
            given = call.kernel, call.arguments, steps, call.time_dim, call.masks
            _add_moments(call, results, dispatch.run(*given, offsets_of(self.op, args), call.moments))

        compute(self.op, args, results, self.recurrence, fill)
        note(self.op, args, results)
        return results if len(results) > 1 else results[0]

    def prepared(self, args: Sequence[Any], results: tuple[Tensor, ...]) -> Prepared:
        """What was prepared for a call with these arguments and results."""
        call = self.takes(args, results[0].shape)
        given = call.kernel, call.arguments, results[self.steps], call.time_dim, call.masks
        return prepared_for(*given, measured=call.moments)

    def fill(self, results: tuple[Tensor, ...], args: Sequence[Any], prepared: Prepared) -> None:
        """Compute what a call like the one that ``prepared`` was for results in."""
        call = self.takes(args, results[0].shape)
        partials = execute(prepared, operands_of(call.arguments, results[self.steps], call.masks))
        _add_moments(call, results, partials)


def _add_moments(call: Call, results: tuple[Tensor, ...], partials: array[float] | None) -> None:
    if call.moments:
        merge(partials, call.masks, results[0].shape, results[-1])


def repeated(key: Key) -> Serve | None:
    """What serves a public call like one before it."""
    return _repeats.get(key)


def keep_repeat(key: Key, repeat: Repeat, function: Callable[..., Any]) -> bool:
    """Keep how a public call is repeated, which ``function`` of this backend served. Returns whether that can be."""
    if len(_repeats) >= _MOST_KEPT:
        _repeats.clear()
    op, args, results = repeat.noted
    if isinstance(function, Served) and results[0].numel() and offsets_of(op, args) is None:
        _repeats[key] = _by_kernel(function, repeat)
    else:
        _repeats[key] = _by_function(function, repeat)
    return True


def _by_kernel(function: Served, repeat: Repeat) -> Serve:
    op, args, results = repeat.noted
    prepared, made = function.prepared(args, results), Results(ALL_SPECS[op].like, args, results)
    # Not of `repeat` itself, which holds the tensors of the call.
    arguments, constants, returned = itemgetter(*repeat.places), repeat.constants, _returned(repeat)

    def again(values: Sequence[Any]) -> Any:
        args = arguments((*values, *constants))
        results = made.allocate(args)
        function.fill(results, args, prepared)
        return results[returned]

    return again


def _by_function(function: Callable[..., Any], repeat: Repeat) -> Serve:
    arguments, constants, returned = itemgetter(*repeat.places), repeat.constants, _returned(repeat)

    def again(values: Sequence[Any]) -> Any:
        results = function(*arguments((*values, *constants)))
        return results[returned] if isinstance(results, tuple) else results

    return again


def _returned(repeat: Repeat) -> slice | int:
    """Which of an op's results the public function returns."""
    return slice(repeat.returned) if repeat.returned else 0
