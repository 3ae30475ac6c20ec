"""The records of ``python -m perf tune`` in words: for every case the plan that is chosen today, and how fast it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonrl.kernels.explain import in_words
from tritonrl.kernels.tables import table_for

from .table import duration, markdown, size
from .tune import CASES, chosen, figure_of

FOLDER = Path(__file__).parent / "results" / "tune"


def records() -> list[dict[str, Any]]:
    """Those that are committed."""
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]


def section(record: dict[str, Any]) -> Iterator[str]:
    """Of the report, line by line."""
    about = record["machine"]
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("python", "torch", "triton"))
    measured = sum(len(result["plans"]) for result in record["cases"])
    yield f"## {about['name']}: plans"
    yield ""
    yield (
        f"`python -m perf tune`, {about['date']}, commit `{about['commit']}`, {versions}: {measured} plans for "
        f"{len(record['cases'])} cases, all of which gave the results of the first. Times are the kernels' own durations as "
        "the driver's profiler reports them, added up (split has a memset of its flags), with L2 evicted before each call; "
        "medians, all plans of a case and `clone()` in turns. Launches and Python are not in them. *table* is the plan that "
        "this package chooses today, *fastest* the fastest of all (some of which spill registers, and are not chosen for that)."
    )
    yield ""
    rows = []
    table = table_for(about["name"])
    by_id = {case.id: case for case in CASES}
    for result in record["cases"]:
        case = by_id.get(result["case"])
        plan = None if case is None else chosen(case, table, about["multiprocessors"])
        own = None if plan is None else figure_of(plan, result)
        fastest = max(each["of_clone"] for each in result["plans"])
        rows.append(
            (
                *(result["case"], size(result["bytes"]), duration(result["clone"])),
                "not measured" if own is None else duration(own["seconds"]),
                "-" if own is None else f"{100 * own['of_clone']:.1f} %",
                f"{100 * fastest:.1f} %",
                "" if plan is None else in_words(plan),
            )
        )
    yield from markdown(
        ("case", "bytes", "clone()", "table", "of clone", "fastest, of clone", "plan of the table"), rows
    )
