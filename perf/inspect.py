"""``python -m perf inspect``: what the compiler made of every kernel, read from its own output; no GPU is needed.

A *finding* (and a non-zero exit) is a spill, a stack frame, a global access that is narrower than the layout allows, or a
stream of data that is read or written more often than once. What a layout allows is decided by rule: as many neighbours along
the contiguous dimension as make 16 bytes and divide its extent, so that every line begins aligned.

How bytes are counted: each load and store of the PTX is traced to the tensor it reaches. Its width times the threads of a
program, over the steps of a tile, is bytes per step; where a stream is accessed in a loop only the loop counts, because what
lies before it is the same data for the first round. *Taps*, reads of the neighbouring step that V-trace and the gradients of
the discounts need, touch lines which the same or the neighbouring thread reads anyway: they cost instructions and cache
bandwidth but no memory traffic, cannot be aligned when time is contiguous, and are listed apart. So are flags that stand for
several lanes, and the workspace of the split strategy (a few words for each tile).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

import tritonrl.kernels

from .launches import CAPABILITIES, Launch, launches
from .streams import Inspected, Stream, inspect_launch

HERE = Path(__file__).parent
# In a folder of its own: what lies in results/ are benchmark records.
RESULT = HERE / "results" / "inspect" / "kernels.json"
WRITE_EVERY = 20  # results: a run that is interrupted has not compiled for nothing


def _cache_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tritonrl" / "perf-inspect.json"


# What a compiled kernel depends on: below tritonrl/kernels/, and here. (Not on who calls it: the ops, other backends, the API.)
_COMPILED_FROM = (
    *("device", "tables", "plan", "preparation", "launch", "families", "geometry", "workspace"),
    *("elementwise", "specs", "dtypes", "ahead_of_time"),
)
_READ_BY = ("streams", "launches", "ptx", "occupancy", "data")


def _fingerprint() -> str:
    """Changes with the kernels, with the code that reads them, and with the compiler."""
    import triton

    digest = hashlib.sha256(triton.__version__.encode())
    kernels = Path(str(tritonrl.kernels.__file__)).parent
    sources = [
        path for path in kernels.rglob("*.py") if path.relative_to(kernels).parts[0].split(".")[0] in _COMPILED_FROM
    ]
    for path in sorted(sources) + [HERE / f"{name}.py" for name in _READ_BY]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _from_cache(given: dict[str, Any]) -> Inspected:
    streams = {
        part: tuple(Stream(**(s | {"widths": tuple(s["widths"])})) for s in given[part]) for part in ("loads", "stores")
    }
    return Inspected(**(given | streams))


@dataclass
class Cache:
    """Results kept between runs, dropped when anything that they depend on changes."""

    path: Path = field(default_factory=_cache_file)
    fingerprint: str = field(default_factory=_fingerprint)
    known: dict[str, Inspected] = field(default_factory=dict)

    def read(self) -> Cache:
        """Take over what an earlier run left."""
        try:
            body = json.loads(self.path.read_text())
            if body["fingerprint"] == self.fingerprint:
                self.known = {name: _from_cache(x) for name, x in body["known"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            self.known = {}
        return self

    def write(self) -> None:
        """Leave results for the next run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        body = {"fingerprint": self.fingerprint, "known": {name: asdict(x) for name, x in self.known.items()}}
        self.path.write_text(json.dumps(body))


def inspect_all(wanted: Sequence[Launch], jobs: int = 1, cache: Cache | None = None) -> list[Inspected]:
    """Inspect every launch, in ``jobs`` processes, with a progress bar."""
    known = {} if cache is None else cache.known
    fresh = [launch for launch in wanted if launch.id not in known]
    made: Iterable[Inspected] = map(inspect_launch, fresh)
    pool = ProcessPoolExecutor(jobs) if jobs > 1 and len(fresh) > 1 else None
    if pool is not None:
        made = pool.map(inspect_launch, fresh, chunksize=len(CAPABILITIES))  # one kernel, compiled for each
    results: dict[str, Inspected] = {}
    for x in track(made, "compiling", total=len(fresh), transient=True, disable=not fresh):
        results[x.id] = x
        if cache is not None:
            cache.known[x.id] = x
            if len(results) % WRITE_EVERY == 0:
                cache.write()
    if pool is not None:
        pool.shutdown()
    if cache is not None and results:
        cache.write()
    return [results.get(launch.id) or known[launch.id] for launch in wanted]


def _widths(streams: Sequence[Stream], role: str) -> str:
    counted = Counter(width for s in streams if s.role == role for width in s.widths)
    return " ".join(f"{n}x{width}" for width, n in sorted(counted.items(), reverse=True))


def as_table(results: Sequence[Inspected]) -> Table:
    """One line a kernel. Widths are bytes a thread: ``3x16 2x4`` is three loads of 16 bytes and two of 4."""
    table = Table(title="what the compiler made of every kernel", title_justify="left")
    for name in (
        "kernel",
        "plan",
        "regs",
        "spill",
        "stack",
        "shared",
        "occup.",
        "loads",
        "stores",
        "taps",
        "B/step",
        "least",
    ):
        table.add_column(name, justify="left" if name in ("kernel", "plan", "loads", "stores", "taps") else "right")
    for x in results:
        moved, least = (sum(getattr(s, key) for s in x.data) for key in ("bytes_per_step", "least"))
        numbers = [str(n) for n in (x.registers, x.spilled_bytes, x.stack_bytes, x.shared_bytes)]
        loads = " + ".join(filter(None, (_widths(x.loads, "data"), _widths(x.loads, "repeated"))))
        style = "red" if x.findings() else ""
        table.add_row(
            *(x.id, x.plan, *numbers, f"{100 * x.occupancy:.0f} %", loads, _widths(x.stores, "data")),
            *(_widths(x.loads, "tap"), f"{moved:g}", f"{least:g}"),
            style=style,
        )
    return table


def summary(results: Sequence[Inspected]) -> dict[str, Any]:
    """What a report needs to know: how many kernels, what is wrong with which, and one line for each.

    ``narrowest``: how many elements the narrowest access to a stream of data takes.
    """
    import triton

    lines = {
        x.id: {
            "plan": x.plan,
            "registers": x.registers,
            "shared_bytes": x.shared_bytes,
            "occupancy": x.occupancy,
            "narrowest": min((min(s.widths) // max(1, int(s.least)) for s in x.data), default=0),
            "bytes_per_step": sum(s.bytes_per_step for s in x.data),
            "least": sum(s.least for s in x.data),
        }
        for x in results
    }
    return {
        "triton": triton.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "kernels": len(results),
        "findings": {x.id: found for x in results if (found := x.findings())},
        "most_registers": max((x.registers for x in results), default=0),
        "by_id": lines,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``inspect``."""
    parser.add_argument("--quick", action="store_true", help="a few kernels for sm_90")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="e.g. 'gae/*/float32'; repeatable"
    )
    parser.add_argument(
        "--capability", action="append", type=int, choices=CAPABILITIES, help="repeatable; default: all"
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="",
        metavar="PATH",
        help=f"write what was found; by default {RESULT.relative_to(HERE.parent)}",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile")
    parser.add_argument("--no-cache", action="store_true", help="compile even what has not changed since the last run")
    parser.set_defaults(handler=inspect_kernels)


def inspect_kernels(arguments: argparse.Namespace) -> int:
    """Print the table and the findings. Returns 1 when there are any, 2 when there is nothing to inspect."""
    wanted = launches(arguments.only, arguments.capability or CAPABILITIES, arguments.quick)
    if not wanted:
        print("no kernel matches")
        return 2
    cache = None if arguments.no_cache else Cache().read()
    results = inspect_all(wanted, arguments.jobs, cache)
    console = Console(width=None if Console().is_terminal else 200)
    console.print(as_table(results))
    bad = {x.id: found for x in results if (found := x.findings())}
    for name, found in bad.items():
        console.print(f"[red]{name}[/red]: {'; '.join(found)}", highlight=False)
    console.print(f"{len(results)} kernels, {len(bad)} with findings")
    if arguments.json is not None:
        path = Path(arguments.json) if arguments.json else RESULT
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(summary(results), indent=1) + "\n")
        console.print(f"record: {path}")
    return 1 if bad else 0
