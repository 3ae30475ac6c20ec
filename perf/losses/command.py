"""``python -m perf losses``: the rows one after the other, kept in a record; or the document made from one."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from .. import machine
from ..runner import Settings
from ..table import duration
from .document import DOCUMENT, render
from .record import Line, LossRecord, load
from .rows import Row

RESULTS = Path(__file__).parents[1] / "results" / "losses"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of ``losses``."""
    command.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="rows whose id matches; repeatable"
    )
    command.add_argument("--list", action="store_true", help="print the ids of the rows and stop")
    command.add_argument("--threads", type=int, help="torch threads")
    command.add_argument("--seconds", type=float, default=0.7, help="how long to sample each contender")
    command.add_argument("--deadline", type=float, metavar="SECONDS", help="start no further row after so long")
    command.add_argument(
        "--json", nargs="?", const="", metavar="PATH", help="write the record; by default under perf/results/losses/"
    )
    command.add_argument("--resume", action="store_true", help="keep the rows that the record has already")
    command.add_argument(
        "--write-docs",
        nargs="?",
        const="",
        metavar="RECORD",
        help="write docs/compile.md from a record, by default the newest, and measure nothing",
    )
    command.add_argument(
        "--merge",
        nargs="+",
        type=Path,
        metavar="RECORD",
        help="make one record of those of several processes that ran side by side, and measure nothing",
    )
    command.set_defaults(handler=run)


def newest_record() -> Path | None:
    """The record measured last, as far as dates tell."""
    return max(RESULTS.glob("*.json"), key=lambda path: (load(path).machine["date"], path.name), default=None)


def run(arguments: argparse.Namespace) -> int:
    """Measure the chosen rows. Returns 1 if ours is not whole or the libraries differ, 2 if there is nothing to do."""
    if arguments.write_docs is not None:
        return write_document(Path(arguments.write_docs) if arguments.write_docs else newest_record())
    if arguments.merge:
        return merge(arguments.merge)
    os.environ["RL_WARNINGS"] = "False"
    from .rows import select

    rows = select(arguments.only)
    if arguments.list or not rows:
        print("\n".join(row.id for row in rows) or "no row matches")
        return 0 if rows else 2
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = Settings(seconds=arguments.seconds)
    about = machine.describe("cpu") | {"busy_before": machine.busy_elsewhere()}
    record = LossRecord(about, asdict(settings) | {"only": arguments.only}, [])
    path = None
    if arguments.json is not None:
        path = Path(arguments.json) if arguments.json else RESULTS / f"{machine.slug(about)}.json"
    if arguments.resume and path is not None and path.exists():
        record.lines = load(path).lines
    late = _run_all(_missing(rows, record), record, settings, path, arguments.deadline)
    record.sort()
    record.machine["busy_after"] = machine.busy_elsewhere()
    if path is not None:
        record.save(path)
        print(f"record: {path}")
    return _conclude(record, late)


def _missing(rows: Sequence[Row], record: LossRecord) -> list[Row]:
    return [row for row in rows if record.line(row.id) is None]


def write_document(path: Path | None) -> int:
    """Render a record. Returns 2 if there is none."""
    if path is None:
        print(f"no record in {RESULTS}: run `python -m perf losses --json` first", file=sys.stderr)
        return 2
    DOCUMENT.write_text(render(load(path)))
    print(DOCUMENT)
    return 0


def merge(paths: Sequence[Path]) -> int:
    """One record of several, which says that they were measured side by side."""
    first, *others = [load(path) for path in paths]
    for other in others:
        first.lines += [line for line in other.lines if first.line(line.id) is None]
    first.machine["how"] = (
        f"{len(paths)} processes side by side, each pinned to a core of its own, so caches and memory were shared with "
        "other work; both libraries were timed in turns by the same process"
    )
    first.settings["only"] = []
    first.sort()
    path = RESULTS / f"{machine.slug(first.machine)}.json"
    first.save(path)
    print(f"record: {path}")
    return _conclude(first, [])


def measure(row: Row, settings: Settings) -> Line:
    """Count and time one row."""
    from .counting import count
    from .networks import SMALL
    from .rows import OURS, THEIRS
    from .timing import compare

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = (count(row, library, SMALL) for library in (OURS, THEIRS))
        return Line(row.id, row.shape, ours, theirs, compare(row, settings))


def _run_all(
    rows: Sequence[Row], record: LossRecord, settings: Settings, path: Path | None, deadline: float | None
) -> list[Row]:
    """Measure, show and save row by row. Returns the rows that the deadline left out."""
    started = time.perf_counter()
    for index, row in enumerate(rows):
        if deadline is not None and time.perf_counter() - started > deadline:
            return list(rows[index:])
        before = time.perf_counter()
        line = measure(row, settings)
        record.lines.append(line)
        _show(line, time.perf_counter() - before)
        if path is not None:
            record.save(path)
    return []


def _show(line: Line, took: float) -> None:
    print(f"{line.id} {'x'.join(map(str, line.shape))}  (measured in {took:.0f} s)")
    for name, counts, times in (("ours", line.ours, line.times.ours), ("torchrl", line.theirs, line.times.theirs)):
        spreads = (times.eager, times.compiled)
        eager, compiled = ("-" if spread is None else duration(spread.median) for spread in spreads)
        shown = {key: value for key, value in asdict(counts).items() if value not in (None, "")}
        print(f"  {name:8} eager {eager:>8}  compiled {compiled:>8}  {shown}", flush=True)


def _conclude(record: LossRecord, late: Sequence[Row]) -> int:
    if late:
        print(f"{len(late)} rows were not measured, because the deadline had passed; the first: {late[0].id}")
    if record.disturbed:
        print(f"Not to be published: {record.disturbed}.")
    bad = [line for line in record.lines if not line.ours.whole or not line.times.agrees]
    for line in bad:
        what = "is not one graph" if not line.ours.whole else f"differs from TorchRL by {line.times.difference:.2g}"
        print(f"{line.id} {what}")
    return 1 if bad else 0
