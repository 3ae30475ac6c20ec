"""What a run leaves behind: one JSON file per machine."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .cases import Case
from .clocks import MAIN

SCHEMA = 1
STEADY = 0.25  # half the distance between the quartiles, relative to the median
QUIET = 0.3  # CPUs that others may keep busy
# Times the speed of clone(). That clone() writes half of its bytes and V-trace a quarter explains 2 if reading were free, and
# fresh pages perhaps as much again; beyond that clone() was held up.
IMPLAUSIBLE = 5.0
TIMED, WRONG, ABSENT, LEFT_OUT, FAILED = "timed", "wrong", "absent", "left out", "failed"


@dataclass(frozen=True)
class Spread:
    """Seconds per call: the median of ``samples`` samples, and the quartles around it."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Median and quartiles; of fewer than four samples the quartiles are the extremes."""
        if len(samples) < 4:
            return cls(statistics.median(samples), min(samples), max(samples), len(samples))
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(middle, low, high, len(samples))

    @property
    def steady(self) -> bool:
        """Whether the quartiles lie close enough together for the median to mean something."""
        return self.noise <= STEADY

    @property
    def noise(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        return (self.high - self.low) / (2 * self.median) if self.median else 0.0


@dataclass
class Result:
    """One contender on one case.

    ``status``: timed, wrong (the gate refused it), absent (not installed), left out (does not compute this case, or was not
    asked to), failed (it raised). ``bytes``: what its problem has to move at least. ``clone``: the clocks of ``clone()`` of
    as many bytes, taken in the same rounds.
    """

    case: Case
    contender: str
    status: str
    bytes: int = 0
    smaller: str = ""
    error: float | None = None
    reason: str = ""
    clocks: dict[str, Spread] = field(default_factory=dict)
    clone: dict[str, Spread] = field(default_factory=dict)

    def main(self, device: str) -> tuple[str, Spread] | None:
        """The clock that stands for the case, with its name."""
        for name in MAIN[device]:
            if name in self.clocks:
                return name, self.clocks[name]
        return None

    def bandwidth(self, clock: str) -> float:
        """Bytes per second by this clock."""
        return self.bytes / self.clocks[clock].median

    def of_clone(self, clock: str) -> float | None:
        """The fraction of ``clone()``'s speed that is reached: 1 is memory speed."""
        if clock not in self.clone:
            return None
        return self.clone[clock].median / self.clocks[clock].median


@dataclass
class Record:
    """All results of one machine."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    peers: dict[str, str]
    results: list[Result]

    @property
    def disturbed(self) -> str | None:
        """Why no figure of this record may be judged; ``None`` when nothing speaks against it."""
        if self.device != "cpu":
            return None
        busy = [self.machine.get(when) for when in ("busy_before", "busy_after")]
        loudest = max((x for x in busy if x is not None), default=0.0)
        if loudest > QUIET:
            return f"others kept {loudest:.1f} CPUs busy before or after the run"
        too_fast = [r for r in self.results if r.status == TIMED and (r.of_clone("call") or 0.0) > IMPLAUSIBLE]
        if too_fast:
            first = too_fast[0]
            return f"clone() was held up: {first.contender} seems {first.of_clone('call'):.0f} times as fast on {first.case.id}"
        return None

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return str(self.machine["device"])

    def save(self, path: Path) -> None:
        """Write; the file is replaced in one step, so that a run that is cut off leaves the last whole one."""
        results = [asdict(r) | {"case": r.case.as_dict(), "id": r.case.id} for r in self.results]
        body = {"schema": SCHEMA, "machine": self.machine, "settings": self.settings, "peers": self.peers}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(body | {"results": results}, indent=1) + "\n")
        partial.replace(path)


def load(path: Path) -> Record:
    """Read a record.

    Raises:
        ValueError: if the file is no record of this schema.
    """
    body = json.loads(path.read_text())
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a benchmark record of schema {SCHEMA}")
    results = [_result(given) for given in body["results"]]
    return Record(body["machine"], body["settings"], body["peers"], results)


def _result(given: dict[str, Any]) -> Result:
    clocks, clone = ({name: Spread(**x) for name, x in given[part].items()} for part in ("clocks", "clone"))
    plain = {name: x for name, x in given.items() if name not in ("id", "case", "clocks", "clone")}
    return Result(case=Case.from_dict(given["case"]), clocks=clocks, clone=clone, **plain)
