"""``python -m perf report``: the records of all machines become ``RESULTS.md`` and the plots beside it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import plans, plots
from .machine import slug
from .records import ABSENT, FAILED, LEFT_OUT, TIMED, WRONG, Record, Result, Spread, load
from .table import duration, markdown, ratio, size
from .targets import Cell, Target, cells, for_record

HERE = Path(__file__).parent

INTRO = """# Results

Made by `python -m perf report` from the records in `perf/results/`; do not edit.

Every figure stands beside `clone()` of as many bytes, measured in the same rounds: *of clone* is the fraction of its speed
that is reached, and 100 % means that each byte was moved once at the speed of this machine's memory. Bytes are the least
that has to move: each input read once, each output written once. `clone()` writes half of its bytes and GAE 8 of 22, so where
writing costs more than reading more than 100 % can be reached. On a CPU freed memory stays with the process, as it does in one
that has run for a while (`perf.machine.settle_allocator`), for all contenders and `clone()` alike. Times are medians; ± is
half the distance between the quartiles. *speed-up* is the time of a peer over ours, so **below 1 we are slower**. Nothing is
timed before it has agreed with an fp64 oracle. Shapes are lanes x steps; layouts `NT` (time contiguous), `TN` (lanes
contiguous), `NTF` (features contiguous, one flag for all of them).
"""


def _ours(record: Record) -> list[Result]:
    return [r for r in record.results if r.contender == "tritonrl"]


def _others(record: Record) -> list[str]:
    """The contenders that were timed at least once, ours first."""
    timed = dict.fromkeys(r.contender for r in record.results if r.status == TIMED)
    return [name for name in timed if name != "tritonrl"]


def _machine(record: Record) -> Iterator[str]:
    about = record.machine
    yield f"## {about['name']}, {about['threads']} threads" if record.device == "cpu" else f"## {about['name']}"
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    backends = "; ".join(f"{device} on {backend}" for device, backend in about["backends"].items())
    yield f"{about['date']}, commit `{about['commit']}`, {about['system']}. {versions}. Backends: {backends}."
    if record.settings.get("quick"):
        yield "**A quick run: short samples, few cases.**"
    if record.disturbed:
        yield f"**The machine was not quiet ({record.disturbed}): none of these figures is a result, and no target is judged.**"
    if "event_floor" in about:
        floor = duration(about["event_floor"])
        yield f"Two events with nothing between them are {floor} apart: `cold` and `warm` contain that."
    yield ""


def _figure(value: float, target: Target) -> str:
    return f"{value:.3g} {target.unit}"


def _verdict(found: Sequence[Cell]) -> str:
    """Met, or missed in how many cells; a cell that was not steady counts for neither."""
    steady = [cell for cell in found if cell.steady]
    missed = sum(not cell.met for cell in steady)
    unsteady = f", {len(found) - len(steady)} too unsteady to judge" if len(steady) < len(found) else ""
    if not steady:
        return "too unsteady to judge"
    return (f"**missed in {missed} of {len(steady)}**" if missed else "met") + unsteady


def _targets(record: Record) -> Iterator[str]:
    rows = []
    for target in for_record(record):
        found = cells(target, record)
        wanted = ("at least " if target.at_least else "at most ") + _figure(target.limit, target)
        if not found:
            rows.append((target.text, wanted, "not measured", ""))
            continue
        verdict = "not judged" if record.disturbed else _verdict(found)
        worst = found[0]
        rows.append(
            (target.text, wanted, verdict, f"{_figure(worst.figure, target)} at {worst.case.shape} {worst.case.layout}")
        )
    if rows:
        yield "### Targets"
        yield ""
        yield from markdown(("target", "wanted", "", "worst cell"), rows)


def _speedup(ours: Result, theirs: Result | None, clock: str) -> float | None:
    if theirs is None or clock not in theirs.clocks:
        return None
    return theirs.clocks[clock].median / ours.clocks[clock].median


def _losses(record: Record, by_name: dict[tuple[str, str], Result]) -> Iterator[str]:
    """Every cell where somebody else is faster."""
    rows = []
    for ours in _ours(record):
        for clock in ours.clocks:
            for name in _others(record):
                theirs = by_name.get((ours.case.id, name))
                faster = _speedup(ours, theirs, clock)
                if theirs is not None and faster is not None and faster < 1 and not name.startswith("tritonrl"):
                    shown = name + (f" ({theirs.smaller})" if theirs.smaller else "")
                    rows.append((ours.case.id, clock, shown, duration(ours.clocks[clock].median), ratio(faster)))
    yield "### Where we are slower"
    yield ""
    if rows:
        yield from markdown(("case", "clock", "faster", "ours", "speed-up"), rows)
        return
    compared = any(not name.startswith("tritonrl") for name in _others(record))
    yield "No peer was faster on any case by any clock." if compared else "Not known: no peer was timed."
    yield ""


def _timed(spread: Spread) -> str:
    return f"{duration(spread.median)} ± {100 * spread.noise:.0f} %" + ("" if spread.steady else " (unsteady)")


def _everything(record: Record, by_name: dict[tuple[str, str], Result]) -> Iterator[str]:
    """One line for every case and clock of ours, with the speed-up over each other contender."""
    others = _others(record)
    smaller = {name: next((r.smaller for r in record.results if r.contender == name), "") for name in others}
    rows = []
    for ours in _ours(record):
        if ours.status != TIMED:
            rows.append((ours.case.id, f"**{ours.status}**: {ours.reason}", *[""] * (4 + len(others))))
            continue
        for clock, spread in ours.clocks.items():
            fraction = ours.of_clone(clock)
            speedups = [_speedup(ours, by_name.get((ours.case.id, name)), clock) for name in others]
            rows.append(
                (
                    *(ours.case.id, clock, _timed(spread), size(ours.bytes)),
                    *(f"{ours.bandwidth(clock) / 1e9:.3g}", "-" if fraction is None else f"{100 * fraction:.0f} %"),
                    *(f"**{ratio(x)}**" if x is not None and x < 1 else ratio(x) for x in speedups),
                )
            )
    header = ("case", "clock", "ours", "bytes", "GB/s", "of clone")
    yield "### Every case"
    yield ""
    yield from markdown((*header, *(name + (" *" if smaller[name] else "") for name in others)), rows)
    for name in others:
        if smaller[name]:
            yield f"\\* {name} solves a smaller problem: {smaller[name]}."
            yield ""


def _not_timed(record: Record) -> Iterator[str]:
    """Who is missing, and who was wrong."""
    for name, why in record.peers.items():
        yield f"- {name} is absent: {why}"
    for result in record.results:
        if result.status in (WRONG, FAILED) or (result.contender == "tritonrl" and result.status in (LEFT_OUT, ABSENT)):
            yield f"- {result.contender} is {result.status} on {result.case.id}: {result.reason}"
    yield ""


def report_of(record: Record, pictures: Sequence[str]) -> Iterator[str]:
    """The section of one machine, line by line."""
    by_name = {(r.case.id, r.contender): r for r in record.results}
    yield from _machine(record)
    for picture in pictures:
        yield f"![{Path(picture).stem}]({picture})"
        yield ""
    yield from _targets(record)
    yield from _losses(record, by_name)
    yield from _everything(record, by_name)
    yield from _not_timed(record)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``report``."""
    parser.add_argument("records", nargs="*", type=Path, help="default: every record in perf/results/")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder for RESULTS.md and plots/; default: perf/")
    parser.set_defaults(handler=make_report)


def make_report(arguments: argparse.Namespace) -> int:
    """Write the report. Returns 2 when there is no record to report on."""
    paths = arguments.records or sorted((HERE / "results").glob("*.json"))
    if not paths:
        print(f"no records in {HERE / 'results'}: run `python -m perf --json` first", file=sys.stderr)
        return 2
    try:
        records = [load(path) for path in paths]
    except (OSError, ValueError, KeyError) as error:
        print(error, file=sys.stderr)
        return 2
    lines = [INTRO]
    for record in sorted(records, key=lambda r: (r.device != "cuda", r.machine["name"])):
        drawn = plots.draw(record, arguments.out / "plots", slug(record.machine))
        lines += report_of(record, [f"plots/{path.name}" for path in drawn])
    if not arguments.records:
        for tuned in plans.records():
            lines += plans.section(tuned)
    target = arguments.out / "RESULTS.md"
    target.write_text("\n".join(lines).rstrip() + "\n")
    print(target)
    return 0
