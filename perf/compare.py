"""``python -m perf compare A.json B.json``: is B slower than A, beyond the noise of both?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from .records import TIMED, Record, Result, load
from .table import duration


class Change(NamedTuple):
    """One contender on one case by one clock. ``ratio``: time of B over time of A. ``band``: how far from 1 is noise."""

    case: str
    contender: str
    clock: str
    before: float
    after: float
    ratio: float
    band: float

    @property
    def slower(self) -> bool:
        """B is slower than A, and it is not noise."""
        return self.ratio > 1 + self.band

    @property
    def faster(self) -> bool:
        """B is faster than A, and it is not noise."""
        return self.ratio < 1 / (1 + self.band)


def _by_key(record: Record, contenders: Sequence[str]) -> dict[tuple[str, str], Result]:
    return {(r.case.id, r.contender): r for r in record.results if r.contender in contenders}


def changes(a: Record, b: Record, contenders: Sequence[str], tolerance: float, against_clone: bool) -> list[Change]:
    """Every figure that both records have. With ``against_clone`` each time is taken relative to the clone beside it.

    The band is ``tolerance`` plus the spread of both figures: half their quartile distances.
    """
    before, after = _by_key(a, contenders), _by_key(b, contenders)
    found = []
    for key in before.keys() & after.keys():
        for clock in before[key].clocks.keys() & after[key].clocks.keys():
            figures = []
            noise = 0.0
            for result in (before[key], after[key]):
                spread, beside = result.clocks[clock], result.clone.get(clock)
                noise += spread.noise
                relative = against_clone and beside is not None
                noise += beside.noise if relative and beside is not None else 0.0
                figures.append(spread.median / beside.median if relative and beside is not None else spread.median)
            ratio = figures[1] / figures[0]
            medians = (before[key].clocks[clock].median, after[key].clocks[clock].median)
            found.append(Change(key[0], key[1], clock, *medians, ratio, tolerance + noise))
    return sorted(found, key=lambda change: change.ratio, reverse=True)


def gone(a: Record, b: Record, contenders: Sequence[str]) -> list[Result]:
    """What was timed in A and is in B, but is not timed there: wrong, or failed."""
    before, after = _by_key(a, contenders), _by_key(b, contenders)
    return [
        after[key]
        for key, result in before.items()
        if result.status == TIMED and key in after and after[key].status != TIMED
    ]


def as_table(found: Sequence[Change]) -> Table:
    """Slowest change first."""
    table = Table(title="time of B / time of A", title_justify="left")
    for name in ("case", "contender", "clock", "A", "B", "ratio", "noise band"):
        table.add_column(name, justify="left" if name in ("case", "contender", "clock") else "right")
    for x in found:
        colour = "red" if x.slower else "green" if x.faster else "dim"
        figures = (duration(x.before), duration(x.after), f"{x.ratio:.2f}", f"±{100 * x.band:.0f} %")
        table.add_row(x.case, x.contender, x.clock, *figures, style=colour)
    return table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``compare``."""
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--contender", action="append", metavar="NAME", help="default: tritonrl; repeatable")
    parser.add_argument("--tolerance", type=float, default=0.1, help="added to the measured spread; default 0.1")
    parser.add_argument(
        "--against-clone", action="store_true", help="compare times relative to clone(): for other machines"
    )
    parser.set_defaults(handler=compare_records)


def compare_records(arguments: argparse.Namespace) -> int:
    """Print the ratios. Returns 1 when something is slower or no longer right, 2 when there is nothing to compare."""
    try:
        a, b = load(arguments.a), load(arguments.b)
    except (OSError, ValueError, KeyError) as error:
        print(error, file=sys.stderr)
        return 2
    contenders = arguments.contender or ["tritonrl"]
    found = changes(a, b, contenders, arguments.tolerance, arguments.against_clone)
    lost = gone(a, b, contenders)
    console = Console(width=None if Console().is_terminal else 170)
    if a.machine["name"] != b.machine["name"] and not arguments.against_clone:
        console.print("[yellow]two machines: consider --against-clone[/yellow]")
    for path, record in ((arguments.a, a), (arguments.b, b)):
        if record.disturbed:
            console.print(f"[yellow]{path} is no result: {record.disturbed}[/yellow]")
    console.print(as_table(found))
    for result in lost:
        console.print(f"[red]{result.case.id}: {result.contender} is {result.status}: {result.reason}[/red]")
    slower = sum(change.slower for change in found)
    faster = sum(change.faster for change in found)
    console.print(f"{len(found)} figures: {slower} slower, {faster} faster, {len(lost)} no longer right")
    if not found and not lost:
        return 2
    return 1 if slower or lost else 0
