"""A public call like one before it: what its checks would say is known, and so is how it is served.

The checks look at layouts, dtypes, devices and at what is given at all, never at a number in memory (but for offsets on the
CPU, and with those no call is repeated unless the backend looks at them, too). So a call that agrees in all of these with one
that went well goes well, and goes the same way: to one function of the backend, with the same arguments in the same places.
Where that was so and the backend keeps such calls (:mod:`.launch` and :mod:`.cpu` do), the next one goes there at once.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from types import ModuleType
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from .backend import backend_for
from .guards import Guard, guard_of
from .number import number
from .ops import nobody_listens
from .specs import argument_names

P = ParamSpec("P")
R = TypeVar("R")
Key = tuple[Any, ...]
Serve = Callable[[Sequence[Any]], Any]


class Noted(NamedTuple):
    """A call of the backend: op, arguments, and all of its results."""

    op: str
    args: tuple[Any, ...]
    results: tuple[Tensor, ...]


class _Notes(threading.local):
    """The calls of the backend in this thread, while somebody wants to know."""

    calls: list[Noted] | None = None


NOTES = _Notes()


class Repeat(NamedTuple):
    """How a call is repeated: its arguments are those ``places`` among the given values and ``constants`` behind them.

    ``returned``: how many results of the op the public function returns; 0 for the first alone, not in a tuple.
    """

    noted: Noted
    places: tuple[int, ...]
    constants: tuple[Any, ...]
    returned: int


_MOST_KEPT = 4096
_never: set[Key] = set()  # calls that go another way than straight to the backend
# By their hashes, calls that came once: some programs have other layouts every time, and need not pay for what is kept.
_once: set[int] = set()
# Calls of the same pattern (everything but the tensors), the latest first: what knows their tensors again, and what serves
# them. A few only: who has more layouts than these finds them by their keys.
_recent: dict[Key, list[tuple[Guard, Serve]]] = {}
_LAYOUTS_PER_PATTERN = 4


def forget() -> None:
    """Forget how calls were served."""
    _never.clear()
    _once.clear()
    _recent.clear()


def repeatable(function: Callable[P, R]) -> Callable[P, R]:
    """Let a public function whose parameters are named like the arguments of its ops go the known way when called again."""
    parameters = inspect.signature(function).parameters
    order, name = tuple(parameters), f"{function.__name__}()"  # not to be taken for the op of the same name
    defaults = {name: x.default for name, x in parameters.items() if type(x.default) is float}

    @functools.wraps(function)
    def repeating(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        values: list[Any] = [*args, *kwargs.values()]
        first, kinds = values[0] if values else None, tuple(map(type, values))
        sorting = _sorting(kinds)
        if type(first) is not Tensor or sorting is None or not nobody_listens():
            return function(*args, **kwargs)
        backend = backend_for(first.device)
        if not hasattr(backend, "repeated"):
            return function(*args, **kwargs)
        tensors, others = sorting.tensors(values), sorting.others(values)
        for i in sorting.numbers:
            values[i] = number(values[i])
        pattern = (name, backend, torch.get_default_dtype(), torch.get_num_threads(), *kwargs, kinds, others)
        for known, serve in _recent.get(pattern, ()):
            if known(*tensors):
                return cast(R, serve(values))
        key = _key(pattern, tensors)
        repeated = None if key is None else backend.repeated(key)
        if repeated is not None:
            _remember(pattern, tensors, repeated)
            return cast(R, repeated(values))
        if key is None or key in _never or _comes_first(key):
            return function(*args, **kwargs)
        return noting(key, backend, values, *args, **kwargs)

    def noting(key: Key, backend: ModuleType, values: Sequence[Any], *args: P.args, **kwargs: P.kwargs) -> R:
        """The call, and a note of how it was served."""
        NOTES.calls = []
        try:
            result = function(*args, **kwargs)
            noted = NOTES.calls
        finally:
            NOTES.calls = None
        given: dict[str, Any] = dict(zip(order[: len(args)] + tuple(kwargs.keys()), values, strict=True))
        repeat = _repeat(given, defaults, noted, result, getattr(backend, "CHECKS_OFFSETS", False))
        if repeat is None or not backend.keep_repeat(key, repeat):
            if len(_never) >= _MOST_KEPT:
                _never.clear()
            _never.add(key)
        return result

    return repeating


class Sorting(NamedTuple):
    """Where among the values of a call its tensors are, the floats, which may be others each time, and what is the same in
    calls alike: options, and nothing."""

    tensors: Callable[[Sequence[Any]], tuple[Tensor, ...]]
    numbers: tuple[int, ...]
    others: Callable[[Sequence[Any]], tuple[Any, ...]]


@functools.lru_cache(_MOST_KEPT)
def _sorting(kinds: tuple[type, ...]) -> Sorting | None:
    """The sorting of values of these types; ``None`` if something is given that no kernel takes as it is."""
    if not {*kinds} <= {Tensor, float, int, bool, type(None)}:
        return None
    tensors = [i for i, x in enumerate(kinds) if x is Tensor]
    numbers = tuple(i for i, x in enumerate(kinds) if x is float)
    others = [i for i in range(len(kinds)) if i not in tensors and i not in numbers]
    return Sorting(_at(tensors), numbers, _at(others))


def _at(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """What picks the values at these places, as a tuple."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: tuple([values[i] for i in places])


def _key(pattern: Key, tensors: Sequence[Tensor]) -> Key | None:
    """What decides the way of a call; ``None`` if it may be another one each time."""
    key: list[Any] = [*pattern]
    recorded = torch.is_grad_enabled()
    for x in tensors:
        if x.is_neg() or (recorded and x.requires_grad):
            return None
        try:
            key += (x.shape, x.stride(), x.dtype, x.device)
        except RuntimeError:  # sparse: no strides, and nothing that a kernel could take
            return None
    return tuple(key)


def _comes_first(key: Key) -> bool:
    """Whether no call like this has been seen; the next one has."""
    if hash(key) in _once:
        return False
    if len(_once) >= _MOST_KEPT:
        _once.clear()
    _once.add(hash(key))
    return True


def _remember(pattern: Key, tensors: Sequence[Tensor], serve: Serve) -> None:
    """Let the next call with tensors like these be known at once."""
    # What knows tensors that want a gradient would know them in a call that records one, too. A tensor given twice is never
    # known again.
    if any(x.requires_grad for x in tensors) or len({*map(id, tensors)}) < len(tensors):
        return
    guard = guard_of(tensors)
    if guard is not None and guard(*tensors):
        if len(_recent) >= _MOST_KEPT:
            _recent.clear()
        _recent[pattern] = [(guard, serve), *_recent.get(pattern, ())][:_LAYOUTS_PER_PATTERN]


def _is_checked(x: Tensor) -> bool:
    """Whether the numbers in ``x`` are looked at in every call: offsets, where that costs no synchronisation."""
    return x.is_cpu and not x.is_floating_point() and x.dtype is not torch.bool


def _is_constant(x: Tensor, given: Any) -> bool:
    """Whether ``x`` stands for a number that is the same in all calls of one key: a default, or an integer."""
    return type(given) in (int, float) and x is number(float(given))


def _repeat(
    given: Mapping[str, Any],
    defaults: Mapping[str, float],
    noted: Sequence[Noted] | None,
    result: Any,
    checked_again: bool,
) -> Repeat | None:
    """How a call with these arguments was served; ``None`` if not by one call of the backend with the same ones.

    ``checked_again``: by the backend, which looks at offsets itself.
    """
    if noted is None or len(noted) != 1:
        return None
    (called,) = noted
    names, places, constants = list(given), list[int](), list[Any]()
    for name, x in zip(argument_names(called.op), called.args, strict=False):
        if not isinstance(x, Tensor):  # an option, or nothing: the same for the same layouts
            places.append(len(names) + len(constants))
            constants.append(x)
        elif _is_checked(x) and not checked_again:
            return None
        elif name in given and x is given[name]:
            places.append(names.index(name))
        elif _is_constant(x, given.get(name, defaults.get(name))):
            places.append(len(names) + len(constants))
            constants.append(x)
        else:  # made for this call
            return None
    returned = (result,) if isinstance(result, Tensor) else result
    if any(x is not y for x, y in zip(returned, called.results, strict=False)):
        return None
    return Repeat(called, tuple(places), tuple(constants), 0 if isinstance(result, Tensor) else len(returned))
