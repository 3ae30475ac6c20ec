"""What a run shows on the terminal, and how figures are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .records import ABSENT, LEFT_OUT, TIMED, WRONG, Result


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def size(count: int) -> str:
    """Bytes, to three digits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"


def ratio(of: float | None) -> str:
    """A ratio to two or three digits, or a dash."""
    if of is None:
        return "-"
    return f"{of:.2f}x" if of < 10 else f"{of:.0f}x"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table for a document, line by line."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * len(header)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def _rows(result: Result, ours: Result | None) -> Iterable[tuple[str, ...]]:
    name = escape(result.contender) + (" *" if result.smaller else "")
    if result.status != TIMED:
        colour = "red" if result.status == WRONG or result.contender == "tritonrl" else "dim"
        yield (name, f"[{colour}]{result.status}: {escape(result.reason)}[/{colour}]", "", "", "", "", "")
        return
    for clock, spread in result.clocks.items():
        against = ours.clocks.get(clock) if ours is not None and ours is not result else None
        slower = spread.median / against.median if against is not None else None
        fraction = result.of_clone(clock)
        yield (
            name,
            clock,
            duration(spread.median),
            f"±{100 * spread.noise:.0f} %",
            f"{result.bandwidth(clock) / 1e9:.3g} GB/s",
            "-" if fraction is None else f"{100 * fraction:.0f} %",
            "" if slower is None else ratio(slower) if slower >= 1 else f"[red]{ratio(slower)}[/red]",
        )
        name = ""


def case_table(results: Sequence[Result]) -> Table:
    """The contenders of one case."""
    first = results[0]
    title = f"{first.case.id}  ({size(first.bytes)})"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("contender", "clock", "median", "spread", "bandwidth", "of clone", "time / ours"):
        table.add_column(column, justify="left" if column in ("contender", "clock") else "right")
    ours = first if first.status == TIMED else None
    shown = [r for r in results if r is first or r.status not in (LEFT_OUT, ABSENT)]
    for result in shown:
        for row in _rows(result, ours):
            table.add_row(*row)
    for clock, spread in first.clone.items():
        bandwidth = f"{first.bytes / spread.median / 1e9:.3g} GB/s"
        table.add_row("clone()", clock, duration(spread.median), f"±{100 * spread.noise:.0f} %", bandwidth, style="dim")
    notes = [f"* {r.contender}: a smaller problem ({r.smaller})" for r in shown if r.smaller]
    table.caption, table.caption_justify = "\n".join(notes) or None, "left"
    return table


def summary_table(results: Sequence[Result], device: str) -> Table:
    """Ours on every case, with the fastest contender that is not ours."""
    table = Table(title="tritonrl, one line a case", title_justify="left", title_style="bold")
    for column in ("case", "bytes", "clock", "median", "of clone", "fastest other", "its time / ours"):
        table.add_column(column, justify="left" if column in ("case", "clock", "fastest other") else "right")
    for ours in (r for r in results if r.contender == "tritonrl"):
        main = ours.main(device)
        if ours.status != TIMED or main is None:
            table.add_row(ours.case.id, size(ours.bytes), f"[red]{ours.status}: {escape(ours.reason)}[/red]")
            continue
        clock, spread = main
        others = [
            r for r in results if r.case == ours.case and not r.contender.startswith("tritonrl") and clock in r.clocks
        ]
        best = min(others, key=lambda r: r.clocks[clock].median, default=None)
        slower = None if best is None else best.clocks[clock].median / spread.median
        fraction = ours.of_clone(clock)
        table.add_row(
            ours.case.id,
            size(ours.bytes),
            clock,
            duration(spread.median),
            "-" if fraction is None else f"{100 * fraction:.0f} %",
            "-" if best is None else escape(best.contender) + (" (smaller problem)" if best.smaller else ""),
            f"[red]{ratio(slower)}[/red]" if slower is not None and slower < 1 else ratio(slower),
        )
    return table


def print_peers(console: Console, missing: dict[str, str]) -> None:
    """Name the peers that are absent."""
    for name, why in missing.items():
        console.print(f"[dim]absent: {escape(name)} ({escape(why)})[/dim]")
