"""Small records made by hand."""

from __future__ import annotations

from perf.cases import Case
from perf.records import TIMED, Record, Result, Spread

MACHINE = {
    "device": "cpu",
    "name": "Test CPU",
    "threads": 2,
    "system": "Linux x86_64",
    "versions": {"python": "3.11.0", "torch": "2.13.0"},
    "backends": {"cpu": "numba: numba 0.68.1, 2 threads"},
    "commit": "0123456789ab",
    "date": "2026-11-22",
}
CASE = Case("gae", "simulators", 4096, 128)


def spread(median: float, noise: float = 0.01) -> Spread:
    """A median with quartiles ``noise`` on either side of it."""
    return Spread(median, median * (1 - noise), median * (1 + noise), 50)


def timed(
    case: Case, contender: str, seconds: float, clone: float = 1e-4, noise: float = 0.01, smaller: str = ""
) -> Result:
    """A contender that was timed by one clock, beside a clone."""
    clocks, beside = {"call": spread(seconds, noise)}, {"call": spread(clone)}
    return Result(case, contender, TIMED, 22 * case.lanes * case.steps, smaller, 1e-7, "", clocks, beside)


def record(*results: Result, **machine: object) -> Record:
    """A record of these results."""
    return Record(
        MACHINE | machine, {"quick": False, "seconds": 0.3}, {"jax lax.scan": "jax is not installed"}, list(results)
    )
