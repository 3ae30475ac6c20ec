"""Tuning: the committed figures are those of the plans that are chosen, and what times them adds up the right kernels."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from perf import plans, tune
from perf.report import HERE
from tritonrl.kernels.tables import DEFAULT, MEASURED

RECORDS = plans.records()
RESULTS = [(record["machine"], result) for record in RECORDS for result in record["cases"]]
TABLES = {table.device: table for table in MEASURED}


def test_every_measured_table_has_a_record_and_names_it() -> None:
    assert {record["machine"]["name"] for record in RECORDS} == set(TABLES)
    for table in MEASURED:
        path = HERE.parent / table.measured.split(": ")[-1]
        assert json.loads(path.read_text())["machine"]["name"] == table.device


# The plan was measured on another case only, which has the same tile and as few lanes.
ELSEWHERE = {
    "gae/tokens/64x131072/TN/float32/done=0.01/forward/eager": "gae/tokens/512x16384/TN/float32/done=0.01/forward/eager"
}


@pytest.mark.parametrize(("machine", "result"), RESULTS, ids=lambda x: x.get("case", x.get("name")))
def test_the_plan_of_a_table_was_measured_and_is_about_the_fastest(
    machine: dict[str, Any], result: dict[str, Any]
) -> None:
    (case,) = [case for case in tune.CASES if case.id == result["case"]]
    plan = tune.chosen(case, TABLES[machine["name"]], machine["multiprocessors"])
    if case.id in ELSEWHERE:
        assert tune.figure_of(plan, result) is None
        (result,) = [other for _, other in RESULTS if other["case"] == ELSEWHERE[case.id]]
    figure = tune.figure_of(plan, result)
    assert figure is not None, plan
    assert not any(each["wrong"] for each in result["plans"])
    assert figure["seconds"] < 1.06 * min(each["seconds"] for each in result["plans"])


def test_the_committed_results_show_the_record() -> None:
    text = (HERE / "RESULTS.md").read_text()
    for record in RECORDS:
        assert "\n".join(plans.section(record)).strip() in text


def test_a_plan_that_was_not_measured_has_no_figure() -> None:
    _, result = RESULTS[0]
    (case,) = [case for case in tune.CASES if case.id == result["case"]]
    plan = tune.chosen(case)
    assert tune.figure_of(plan, result) is not None
    assert tune.figure_of(plan._replace(warps=plan.warps * 2), result) is None
    assert tune.figure_of(plan._replace(limit=90), result) is None


def test_variations_are_of_fields_that_a_table_has_and_change_plans() -> None:
    for variation in tune.VARIATIONS:
        fields = {name: value for name, value in variation.items() if name != "maxnreg"}
        table = DEFAULT._replace(**fields)
        assert not fields or any(tune.chosen(case, table) != tune.chosen(case) for case in tune.CASES), variation


def test_a_record_survives_a_file(tmp_path: Path) -> None:
    tune.save(RECORDS[0], tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == RECORDS[0]


class Profiler:
    """Looks like PyTorch's, and has seen what it is told, later events first."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def events(self) -> list[Any]:
        def event(place: int, name: str) -> Any:
            time = SimpleNamespace(start=place, elapsed_us=lambda: 10.0**place)
            return SimpleNamespace(device_type=SimpleNamespace(name="CUDA"), name=name, time_range=time)

        host = SimpleNamespace(device_type=SimpleNamespace(name="CPU"), name="aten::add", time_range=None)
        return [host, *reversed([event(place, name) for place, name in enumerate(self.names)])]


def timed(monkeypatch: pytest.MonkeyPatch, *names: str, calls: int) -> list[list[float]]:
    evict = SimpleNamespace(NAME="perf_evict_l2", evict_l2=lambda: None)
    monkeypatch.setitem(__import__("sys").modules, "perf.evict", evict)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: Profiler(*names))
    return tune.device_times([lambda: None] * calls, 2)


def test_the_kernels_and_memsets_between_two_evictions_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    e = "perf_evict_l2"
    found = timed(monkeypatch, "of before", e, "memset", "split", e, "rows", e, "split", e, "rows", calls=2)
    assert found == [pytest.approx([1100e-6, 10.0]), pytest.approx([0.1, 1000.0])]


def test_events_that_are_missing_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="saw 3 calls, and there were 4"):
        timed(monkeypatch, "perf_evict_l2", "a", "perf_evict_l2", "b", "perf_evict_l2", "a", calls=2)


def test_results_that_differ_by_more_than_rounding_do_not_agree() -> None:
    x = torch.randn(100)
    assert tune._agree([x], [x + 1e-5])
    assert not tune._agree([x], [x + 1e-2])
    assert not tune._agree([x, x.masked_fill(x > 0, float("nan"))], [x, x])
