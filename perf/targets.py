"""What issue 3 asks for, as data: each target knows the cells that it speaks of and what it wants of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .cases import Case, M
from .records import TIMED, Record, Result, Spread

Lookup = Callable[[str, str], Result | None]
Figure = Callable[[Result, Lookup, str], float | None]


@dataclass(frozen=True)
class Target:
    """One sentence of the issue.

    ``speaks_of``: whether a case is one of its cells. ``figure``: the number of a cell (``None`` if it was not measured).
    ``limit``: what the figure may be at most, or at least when ``at_least``. ``unit``: for people (``x``, ``us``, ``%``).
    ``clock``: whose spread tells whether a cell can be judged.
    """

    text: str
    device: str
    speaks_of: Callable[[Case], bool]
    figure: Figure
    limit: float
    at_least: bool
    unit: str
    on: str = ""
    clock: str = "call"


class Cell(NamedTuple):
    """One case under one target. ``steady``: whether it can be judged, because every median behind the figure has its
    quartiles close to it, or because the figure is further from the limit than that spread explains."""

    case: Case
    figure: float
    met: bool
    steady: bool


def _plain(case: Case) -> bool:
    """GAE forward in fp32 with both flags, as a user calls it."""
    same = (case.op, case.dtype, case.direction, case.mode) == ("gae", "float32", "forward", "eager")
    return same and not case.variants and case.layout in ("NT", "TN")


_CPU_SHAPES = (
    *("8x128", "8x2048", "64x1024", "1024x128", "4096x128", "16384x32", "16384x128", "256x4096", "1x100000", "8x65536"),
)


def _cpu_shape(case: Case) -> bool:
    return _plain(case) and case.shape in _CPU_SHAPES


def _over(*names: str) -> Figure:
    """How many times the time of the fastest of these peers is ours."""

    def figure(ours: Result, lookup: Lookup, clock: str) -> float | None:
        theirs = [lookup(ours.case.id, name) for name in names]
        times = [r.clocks[clock].median for r in theirs if r is not None and clock in r.clocks]
        return min(times) / ours.clocks[clock].median if times and clock in ours.clocks else None

    return figure


def _microseconds(ours: Result, lookup: Lookup, clock: str) -> float | None:
    return 1e6 * ours.clocks[clock].median if clock in ours.clocks else None


def _of_clone(ours: Result, lookup: Lookup, clock: str) -> float | None:
    fraction = ours.of_clone(clock) if clock in ours.clocks else None
    return None if fraction is None else 100 * fraction


def _at(*shapes: str) -> Callable[[Case], bool]:
    return lambda case: _plain(case) and case.shape in shapes


def _two_flags_over_one(ours: Result, lookup: Lookup, clock: str) -> float | None:
    """The time with both flags over the time with one."""
    one = lookup(ours.case.id.replace("/forward/", "/one_flag/forward/"), "tritonrl")
    if one is None or clock not in one.clocks or clock not in ours.clocks:
        return None
    return ours.clocks[clock].median / one.clocks[clock].median


def _replay_minus_device(ours: Result, lookup: Lookup, clock: str) -> float | None:
    """Microseconds by which a replay takes longer than the kernel in it."""
    eager = lookup(ours.case.id.replace("/graph", "/eager"), "tritonrl")
    if eager is None or clock not in ours.clocks or "kernels" not in eager.clocks:
        return None
    return 1e6 * (ours.clocks[clock].median - eager.clocks["kernels"].median)


def _large(case: Case) -> bool:
    return _plain(case) and 22 * case.lanes * case.steps >= 128 * 10**6


_LONG = (f"1x{16 * M}", "64x131072")


def _h100(text: str, speaks_of: Callable[[Case], bool], clock: str, figure: Figure, limit: float, unit: str) -> Target:
    return Target(text, "cuda", speaks_of, figure, limit, unit == "%", unit, "H100", clock)


TARGETS: tuple[Target, ...] = (
    Target("10x faster than the faster of TorchRL's two functions", "cpu", _cpu_shape,
           _over("torchrl loop", "torchrl vectorised"), 10, True, "x"),
    Target("no slower than rlox from 8x2048 up", "cpu",
           lambda c: _cpu_shape(c) and c.layout == "NT" and c.lanes * c.steps >= 8 * 2048, _over("rlox"), 1, True, "x"),
    Target("2.5x faster than rlox from 4096x128 up", "cpu",
           lambda c: _cpu_shape(c) and c.layout == "NT" and c.lanes * c.steps >= 4096 * 128, _over("rlox"), 2.5, True, "x"),
    Target("a full call at 8x128", "cpu", _at("8x128"), _microseconds, 30, False, "us"),
    Target("within 2x of clone() from a million steps up", "cpu",
           lambda c: _cpu_shape(c) and c.lanes * c.steps >= 10**6, _of_clone, 50, True, "%"),
    _h100("of clone() at every shape of 128 MB and more",
          lambda c: _large(c) and c.shape not in _LONG, "cold", _of_clone, 90, "%"),
    _h100("of clone() with few lanes (1x16M, 64x131072)", _at(*_LONG), "cold", _of_clone, 70, "%"),
    _h100("device time at 32768x8", _at("32768x8"), "kernels", _microseconds, 4, "us"),
    _h100("device time at 32768x16", _at("32768x16"), "kernels", _microseconds, 6, "us"),
    _h100("device time at 4096x32", _at("4096x32"), "kernels", _microseconds, 2.5, "us"),
    # One more byte in 21 has to be read; the rest is what two runs of the same thing differ by.
    _h100("both flags over one flag", _plain, "cold", _two_flags_over_one, 22 / 21 * 1.03, "x"),
    _h100("an eager full call at 4096x32", _at("4096x32"), "call", _microseconds, 20, "us"),
    _h100("a graph replay over its device time", lambda c: c.mode == "graph", "replay", _replay_minus_device, 1, "us"),
    _h100("backward within 1.2x of clone() of its own bytes",
          lambda c: c.direction == "backward" and c.lanes * c.steps >= 2**24, "cold", _of_clone, 100 / 1.2, "%"),
)  # fmt: skip


def cells(target: Target, record: Record) -> list[Cell]:
    """The measured cells of a target, the one furthest from it first."""
    by_name = {(r.case.id, r.contender): r for r in record.results if r.status == TIMED}
    found = []
    for (_, contender), ours in by_name.items():
        if contender != "tritonrl" or not target.speaks_of(ours.case):
            continue
        used = [ours]

        def lookup(case: str, name: str, used: list[Result] = used) -> Result | None:
            result = by_name.get((case, name))
            used += [] if result is None else [result]
            return result

        figure = target.figure(ours, lookup, target.clock)
        if figure is not None:
            met = figure >= target.limit if target.at_least else figure <= target.limit
            spreads = list(_spreads(target, used))
            clear = max(figure, target.limit) > min(figure, target.limit) * (1 + 2 * sum(x.noise for x in spreads))
            found.append(Cell(ours.case, figure, met, clear or all(x.steady for x in spreads)))
    return sorted(found, key=lambda cell: cell.figure, reverse=not target.at_least)


def _spreads(target: Target, used: Sequence[Result]) -> Iterator[Spread]:
    """The spreads of all medians that the figure is made of."""
    for result in used:
        sources = (result.clocks, result.clone) if target.figure is _of_clone else (result.clocks,)
        yield from (source[target.clock] for source in sources if target.clock in source)


def for_record(record: Record) -> list[Target]:
    """The targets that speak of this machine."""
    return [t for t in TARGETS if t.device == record.device and t.on in str(record.machine["name"])]
