"""``python -m perf run``: the cases one after the other, shown as they come, kept in a record."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import machine
from .cases import Case, registry, select
from .clocks import event_floor
from .peers import PEERS, Peer
from .records import FAILED, WRONG, Record, Result
from .runner import Settings, missing_peers, run_case
from .table import case_table, print_peers, summary_table

RESULTS = Path(__file__).parent / "results"


def add_arguments(run: argparse.ArgumentParser) -> None:
    """The options of ``run``."""
    run.add_argument("--quick", action="store_true", help="few cases, short samples: does everything work?")
    run.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    run.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="cases whose id matches; repeatable"
    )
    run.add_argument("--peers", action="append", metavar="NAME", help="these peers; 'none' for ours alone; repeatable")
    run.add_argument("--threads", type=int, help="torch threads (CPU)")
    run.add_argument("--seconds", type=float, help="how long to sample each contender and clock")
    run.add_argument("--deadline", type=float, metavar="SECONDS", help="start no further case after so long")
    run.add_argument("--list", action="store_true", help="print the ids of the cases and stop")
    run.add_argument(
        "--json", nargs="?", const="", metavar="PATH", help="write the record; by default perf/results/<machine>.json"
    )
    run.set_defaults(handler=run_cases)


def chosen_peers(names: Sequence[str] | None) -> list[Peer]:
    """The peers of ``--peers``; all of them when it is not given.

    Raises:
        ValueError: if there is no peer of that name.
    """
    if names is None:
        return list(PEERS)
    known = {peer.name: peer for peer in PEERS}
    unknown = [name for name in names if name not in known and name != "none"]
    if unknown:
        raise ValueError(f"no peer {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names if name in known]


def run_cases(arguments: argparse.Namespace) -> int:
    """Run the chosen cases. Returns 1 when ours is wrong or failed on any of them, 2 when there is nothing to run."""
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = select(registry(device, arguments.quick), arguments.only)
    if arguments.list or not chosen:
        print("\n".join(case.id for case in chosen) or "no case matches")
        return 0 if chosen else 2
    try:
        peers = chosen_peers(arguments.peers)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    machine.settle_allocator()
    # A GPU has five clocks where a CPU has one, and is lent for minutes.
    settings = Settings(seconds=0.05 if device == "cuda" else 0.3)
    if arguments.quick:
        settings = Settings(seconds=0.05, least=3)
    if arguments.seconds:
        settings = replace(settings, seconds=arguments.seconds)
    about = (
        machine.describe(device)
        | {"busy_before": machine.busy_elsewhere()}
        | ({"event_floor": event_floor()} if device == "cuda" else {})
    )
    stated = asdict(settings) | {"quick": arguments.quick, "only": arguments.only}
    record = Record(about, stated, missing_peers(), [])
    path = None
    if arguments.json is not None:
        path = Path(arguments.json) if arguments.json else RESULTS / f"{machine.slug(about)}.json"
    console = Console(width=None if sys.stdout.isatty() else 170)
    if record.disturbed:
        console.print(f"[bold yellow]This machine is busy: {record.disturbed}. No figure will mean much.[/bold yellow]")
    late = _run_all(chosen, record, peers, settings, console, path, arguments.deadline)
    record.machine["busy_after"] = machine.busy_elsewhere()
    if path is not None:
        record.save(path)
    return _conclude(record, console, path, late)


def _run_all(
    chosen: Sequence[Case],
    record: Record,
    peers: Sequence[Peer],
    settings: Settings,
    console: Console,
    path: Path | None,
    deadline: float | None,
) -> list[Case]:
    """Run, show and save case by case. Returns the cases that the deadline left out."""
    started = time.perf_counter()
    late: list[Case] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("", total=len(chosen))
        for case in chosen:
            if deadline is not None and time.perf_counter() - started > deadline:
                late.append(case)
                continue
            progress.update(task, description=case.id)
            results = run_case(case, record.device, peers, settings)
            record.results += results
            console.print(case_table(results))
            progress.advance(task)
            if path is not None:
                record.save(path)
    return late


def _conclude(record: Record, console: Console, path: Path | None, late: Sequence[Case]) -> int:
    console.print(summary_table(record.results, record.device))
    print_peers(console, record.peers)
    if late:
        console.print(
            f"[red]{len(late)} cases were not run, because the deadline had passed; the first: {late[0].id}[/red]"
        )
    if record.disturbed:
        console.print(f"[bold yellow]Not to be published: {record.disturbed}.[/bold yellow]")
    if path is not None:
        console.print(f"record: {path}")
    bad: list[Result] = [r for r in record.results if r.contender == "tritonrl" and r.status in (WRONG, FAILED)]
    for result in bad:
        console.print(f"[red]{result.status}: {result.case.id}: {result.reason}[/red]")
    return 1 if bad else 0
