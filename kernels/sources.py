"""Which arguments of an op its kernel takes, and where: worked out once for a layout, by asking the family with stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import families
from .families import Recurrence

Make = Callable[[Sequence[Any]], Any]


class Sources(NamedTuple):
    """Arguments of the call by position: those whose address is passed, and those that are passed as ``numbers``.

    ``filled`` are numbers on the host that have to stand in the device's memory. The values of all three, one after the other
    and ``None`` behind them, are what ``inputs`` makes the inputs of the kernel from, and ``beside`` what else is there.
    """

    pointers: tuple[int, ...]
    filled: tuple[int, ...]
    numbers: tuple[int, ...]
    inputs: Make
    beside: dict[str, Make | None]


def sources(
    op: str,
    args: Sequence[Any],
    by_value: Sequence[bool],
    device: torch.device,
    beside: Callable[[Recurrence], dict[str, Any]],
) -> Sources | None:
    """Where the kernel's arguments come from; ``None`` if a tensor among them is no argument of ``op`` but computed.

    Args:
        op: its name.
        args: its arguments.
        by_value: which inputs of the kernel are passed as numbers.
        device: where the kernel runs.
        beside: what the kernel takes of a recurrence besides its inputs, by name: tensors, tuples of tensors, constants.
    """
    # Stand-ins have no memory, and each is one of its own, because a tensor may have been given twice.
    given = [_stand_in(x) if isinstance(x, Tensor) else x for x in args]
    argument = {_storage(x): i for i, x in enumerate(given) if isinstance(x, Tensor)}
    recurrence: Recurrence = getattr(families, op)(*given)
    inputs, others = [x for x, _ in recurrence.inputs], beside(recurrence)
    wanted = [(x, number) for x, number in zip(inputs, by_value, strict=True) if x is not None]
    wanted += [(x, False) for x in _tensors(others.values())]
    if any(_storage(x) not in argument for x, _ in wanted):
        return None
    passed = dict.fromkeys((argument[_storage(x)], number) for x, number in wanted)
    numbers = [i for i, number in passed if number]
    filled = [i for i, number in passed if not number and args[i].device != device]
    pointers = [i for i, number in passed if not number and args[i].device == device]
    ordered = [(i, False) for i in pointers + filled] + [(i, True) for i in numbers]
    place = {key: n for n, key in enumerate(ordered)}

    def made(x: Any) -> Make:
        if isinstance(x, Tensor):
            return itemgetter(place[argument[_storage(x)], False])
        if isinstance(x, tuple):
            parts = [made(part) for part in x]
            return lambda values: tuple([part(values) for part in parts])
        return lambda values: x

    taken = [
        -1 if x is None else place[argument[_storage(x)], number] for x, number in zip(inputs, by_value, strict=True)
    ]
    makers = {name: None if x is None else made(x) for name, x in others.items()}
    return Sources(tuple(pointers), tuple(filled), tuple(numbers), itemgetter(*taken), makers)


def _stand_in(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _storage(x: Tensor) -> int:
    """The same for a tensor and its views."""
    return x.untyped_storage()._cdata


def _tensors(nested: Iterable[Any]) -> Iterator[Tensor]:
    for x in nested:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, tuple):
            yield from _tensors(x)


def filled(x: Tensor, device: torch.device) -> Tensor:
    """A number of the host in the device's memory: not a copy, which would wait and break graph capture, but a fill."""
    return torch.full((), x.item(), dtype=x.dtype, device=device)
