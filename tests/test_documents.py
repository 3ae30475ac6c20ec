"""What the documents say of the tests is true."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_test_that_the_list_of_differences_names_is_there() -> None:
    files = list((ROOT / "tests").rglob("test_*.py"))
    there = {file.name for file in files}
    for file in files:
        there.update(re.findall(r"^\s*def (test_\w+)", file.read_text(), flags=re.MULTILINE))
    named = re.findall(r"`(test_[\w.]+)`", (ROOT / "docs" / "differences.md").read_text())
    assert named
    assert sorted(set(named) - there) == []
