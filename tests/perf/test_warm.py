"""Compiling before a run: in processes of their own, and not for longer than there is time."""

from __future__ import annotations

import math
import time

import pytest

from perf import warm
from perf.cases import Case


def test_tasks_are_done_in_other_processes_or_given_up_when_time_is_over() -> None:
    assert warm.in_processes(math.sqrt, [1.0, 4.0], workers=1, seconds=60) == [1.0, 2.0]
    started = time.perf_counter()
    assert warm.in_processes(time.sleep, [60.0], workers=1, seconds=0.5) is None
    assert time.perf_counter() - started < 30


def test_a_case_that_fails_is_named_and_keeps_no_other_from_being_compiled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not warm._warmed(Case("gae", "simulators", 2, 3, layout="no such layout"))
    assert "gae/simulators/2x3/no such layout" in capsys.readouterr().out
