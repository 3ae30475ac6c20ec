"""The ops whose tensors are the operands of one kernel, and how a public call like one before it is served again.

Of such a call everything is known but the numbers (:mod:`tritonrl.kernels.repeat`): its results are allocated and the prepared
kernel is run. For a small rollout that is half of what the call took before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from torch import Tensor

from ..repeat import NOTES, Key, Noted, Repeat, Serve
from ..repeat import forget as forget_repeats
from ..results import Results
from ..specs import ALL_SPECS, allocate, plain_names
from . import dispatch
from .dispatch import Op, Prepared, execute, operands_of, prepared_for
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


class Served:
    """The backend function of an op: its tensors stand in front of its schema, its masks and offsets behind it."""

    def __init__(self, kernel: Op, recurrence: Callable[..., Tensor]) -> None:
        self.kernel, self.op, self.recurrence = kernel, kernel.name, recurrence
        names = plain_names(self.op)
        self.tensors, plain = names.index("time_dim"), len(names)
        self.masks = slice(plain, plain + len(set(ALL_SPECS[self.op].optional) & {"valid", "skip"}))
        self.done = names.index("done")
        self.terminated = names.index("terminated") if "terminated" in names else self.done

    def __call__(self, *args: Any) -> Any:
        """The results for these arguments, in schema order."""
        results = allocate(self.op, args)

        def fill(args: tuple[Any, ...]) -> None:
            given = self._arguments(args), results, args[self.tensors], args[self.masks]
            dispatch.run(self.kernel, *given, offsets_of(self.op, args))

        compute(self.op, args, results, self.recurrence, fill)
        note(self.op, args, results)
        return results if len(results) > 1 else results[0]

    def _arguments(self, args: Sequence[Any]) -> list[Tensor | None]:
        arguments = list(args[: self.tensors])
        if arguments[self.terminated] is None:
            arguments[self.terminated] = arguments[self.done]
        return arguments

    def prepared(self, args: Sequence[Any], results: tuple[Tensor, ...]) -> Prepared:
        """What was prepared for a call with these arguments and results."""
        return prepared_for(self.kernel, self._arguments(args), results, args[self.tensors], args[self.masks])

    def fill(self, results: tuple[Tensor, ...], args: Sequence[Any], prepared: Prepared) -> None:
        """Compute what a call like the one that ``prepared`` was for results in."""
        execute(prepared, operands_of(self._arguments(args), results, args[self.masks]))


def repeated(key: Key) -> Serve | None:
    """What serves a public call like one before it."""
    return _repeats.get(key)


def keep(key: Key, serve: Serve) -> bool:
    """Keep what serves calls like one before; always does."""
    if len(_repeats) >= _MOST_KEPT:
        _repeats.clear()
    _repeats[key] = serve
    return True


def keep_repeat(key: Key, repeat: Repeat, function: Callable[..., Any]) -> bool:
    """Keep how a public call is repeated, which ``function`` of this backend served. Returns whether that can be."""
    op, args, results = repeat.noted
    if isinstance(function, Served) and results[0].numel() and offsets_of(op, args) is None:
        return keep(key, _by_kernel(function, repeat))
    return keep(key, _by_function(function, repeat))


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
