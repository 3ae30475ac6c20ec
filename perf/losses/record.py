"""What a run of the losses leaves behind: one JSON file per machine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..records import QUIET, Spread
from .counting import Counts
from .rows import registry
from .timing import Comparison, Times

SCHEMA = "losses 1"


@dataclass
class Line:
    """All that is known of one row."""

    id: str
    shape: tuple[int, ...]
    ours: Counts
    theirs: Counts
    times: Comparison


@dataclass
class LossRecord:
    """The rows on one machine."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    lines: list[Line]

    @property
    def disturbed(self) -> str | None:
        """Why no time of this record may be published; None when nothing speaks against it."""
        busy = [self.machine.get(when) for when in ("busy_before", "busy_after")]
        loudest = max((x for x in busy if x is not None), default=0.0)
        return f"others kept {loudest:.1f} CPUs busy before or after the run" if loudest > QUIET else None

    def line(self, id: str) -> Line | None:
        """The line of a row."""
        return next((line for line in self.lines if line.id == id), None)

    def sort(self) -> None:
        """Bring the lines into the order of the registry, those of rows that are no more to the end."""
        order = {row.id: index for index, row in enumerate(registry())}
        self.lines.sort(key=lambda line: order.get(line.id, len(order)))

    def save(self, path: Path) -> None:
        """Write; the file is replaced in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n")
        partial.replace(path)


def load(path: Path) -> LossRecord:
    """Read a record.

    Raises:
        ValueError: if the file is no record of this schema.
    """
    body = json.loads(path.read_text())
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a record of the losses ({SCHEMA!r})")
    return LossRecord(body["machine"], body["settings"], [_line(given) for given in body["lines"]])


def _line(given: dict[str, Any]) -> Line:
    times = given["times"]
    comparison = Comparison(times["difference"], times["meant"], _times(times["ours"]), _times(times["theirs"]))
    return Line(given["id"], tuple(given["shape"]), Counts(**given["ours"]), Counts(**given["theirs"]), comparison)


def _times(given: dict[str, Any]) -> Times:
    spreads = {mode: None if given[mode] is None else Spread(**given[mode]) for mode in ("eager", "compiled")}
    return Times(**{**given, **spreads})
