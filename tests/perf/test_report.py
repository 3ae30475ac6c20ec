"""Records survive a file, the report shows losses as plainly as wins, and compare knows noise from news."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from perf.__main__ import main
from perf.cases import Case
from perf.compare import changes, gone
from perf.machine import busy_elsewhere
from perf.records import WRONG, Record, Result, Spread, load
from perf.report import _verdict
from perf.targets import TARGETS, cells, for_record

from .made import CASE, record, spread, timed

BOTH_LAYOUTS = [CASE, dataclasses.replace(CASE, layout="TN"), dataclasses.replace(CASE, lanes=8, layout="TN")]


def _example() -> Record:
    results: list[Result] = []
    for case in BOTH_LAYOUTS:
        results += [timed(case, "tritonrl", 5e-4), timed(case, "torchrl loop", 1e-2), timed(case, "python loop", 2e-4)]
    results.append(timed(CASE, "rlox", 1.85e-3, smaller="one flag"))
    results.append(Result(CASE, "torchrl vectorised", WRONG, reason="advantage is off"))
    return record(*results)


def test_a_record_survives_a_file(tmp_path: Path) -> None:
    example = _example()
    example.save(tmp_path / "deep" / "a.json")
    assert load(tmp_path / "deep" / "a.json") == example


def test_a_file_that_is_no_record_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="not a benchmark record"):
        load(path)
    assert main(["report", str(path), "--out", str(tmp_path)]) == 2
    assert main(["compare", str(path), str(path)]) == 2
    assert "not a benchmark record" in capsys.readouterr().err


def test_the_report_names_machine_wins_losses_wrong_and_absent_peers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    _example().save(path)
    assert main(["report", str(path), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "RESULTS.md").read_text()
    for words in (
        "Test CPU, 2 threads",
        "commit `0123456789ab`",
        "jax lax.scan is absent: jax is not installed",
        "torchrl vectorised is wrong on " + CASE.id,
        "rlox solves a smaller problem: one flag",
        f"| {CASE.id} | call | python loop | 500 us | 0.40x |",
        "**0.40x**",
        "| 20x |",
    ):
        assert words in text, words
    for picture in ("roofline", "speedup", "overhead"):
        name = f"plots/test-cpu-2-threads-{picture}.png"
        assert f"({name})" in text and (tmp_path / name).stat().st_size > 5000


def test_a_record_without_results_makes_a_report_without_plots(tmp_path: Path) -> None:
    record().save(tmp_path / "a.json")
    assert main(["report", str(tmp_path / "a.json"), "--out", str(tmp_path)]) == 0
    assert "Not known: no peer was timed." in (tmp_path / "RESULTS.md").read_text()


def test_targets_are_met_and_missed_cell_by_cell() -> None:
    example = _example()
    of_rlox = next(t for t in TARGETS if t.text.startswith("2.5x faster than rlox"))
    (cell,) = cells(of_rlox, example)
    assert cell.met and cell.figure == pytest.approx(3.7)
    torchrl = next(t for t in TARGETS if t.text.startswith("10x faster"))
    assert [round(c.figure) for c in cells(torchrl, example)] == [20, 20, 20]
    assert cells(next(t for t in TARGETS if t.text.startswith("a full call")), example)[0].met is False


def test_a_record_of_a_busy_machine_judges_no_target_and_says_so_everywhere(tmp_path: Path) -> None:
    example = _example()
    assert example.disturbed is None
    example.machine["busy_before"] = 1.7
    example.save(tmp_path / "a.json")
    assert main(["report", str(tmp_path / "a.json"), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "RESULTS.md").read_text()
    assert "The machine was not quiet (others kept 1.7 CPUs busy" in text
    targets = text.split("### Targets")[1].split("###")[0]
    assert "not judged" in targets and "| met |" not in targets and "missed" not in targets


def test_to_be_much_faster_than_clone_disturbs_a_record_instead_of_adorning_it() -> None:
    too_good = record(timed(CASE, "tritonrl", 1e-4, clone=1.6e-2))
    assert too_good.disturbed is not None and "clone() was held up" in too_good.disturbed
    assert record(timed(CASE, "tritonrl", 1e-4, clone=1.3e-4)).disturbed is None


@pytest.mark.parametrize("unsteady", ["tritonrl", "rlox"])
def test_a_cell_with_wide_quartiles_is_not_judged(unsteady: str) -> None:
    noise = {"tritonrl": 0.01, "rlox": 0.01} | {unsteady: 0.4}
    ours = timed(CASE, "tritonrl", 5e-4, noise=noise["tritonrl"])
    made = record(ours, timed(CASE, "rlox", 4e-4, noise=noise["rlox"]))
    target = next(t for t in TARGETS if t.text.startswith("no slower than rlox"))
    (cell,) = cells(target, made)
    assert not cell.met and not cell.steady
    assert _verdict([cell]) == "too unsteady to judge"
    assert _verdict([cell, cell._replace(steady=True)]) == "**missed in 1 of 1**, 1 too unsteady to judge"
    assert _verdict([cell._replace(steady=True, met=True)]) == "met"


def test_targets_of_a_gpu_are_judged_by_their_own_clock() -> None:
    case = Case("gae", "simulators", 32768, 8)
    ours = timed(case, "tritonrl", 9e-6)
    ours.clocks = {"kernels": spread(3.5e-6), "cold": spread(9e-6, noise=0.5)}
    made = record(ours, device="cuda", name="NVIDIA H100 80GB HBM3")
    judged = {t.text: cells(t, made) for t in for_record(made)}
    (cell,) = judged["device time at 32768x8"]
    assert cell.met and cell.steady and cell.figure == pytest.approx(3.5)
    assert judged["device time at 32768x16"] == judged["both flags over one flag"] == []


def test_what_others_do_with_the_machine_is_seen() -> None:
    busy = busy_elsewhere(0.2)
    assert busy is None or 0 <= busy <= (os.cpu_count() or 1) * 1.5


_FAULTS = """
import resource, statistics, torch
from perf.machine import settle_allocator

settle_allocator()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(2**19) for _ in range(2)]
    del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(int(statistics.median(faults() for _ in range(20))))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other habits")
def test_a_settled_allocator_keeps_the_pages_of_what_is_freed() -> None:
    """In a process of its own: what was ever allocated in this one, by whatever test, decides what is given back."""
    code = [sys.executable, "-c", _FAULTS]
    found = subprocess.run(code, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout
    assert int(found) < 16  # each time the pair is made; 1024 pages, were they given back


def test_targets_speak_of_their_machine_only() -> None:
    assert {t.device for t in for_record(record())} == {"cpu"}
    assert {t.device for t in for_record(record(device="cuda", name="NVIDIA H100 80GB HBM3"))} == {"cuda"}
    assert for_record(record(device="cuda", name="NVIDIA A10G")) == []


def _pair(before: float, after: float, noise: float = 0.01) -> tuple[Record, Record]:
    return record(timed(CASE, "tritonrl", before, noise=noise)), record(timed(CASE, "tritonrl", after, noise=noise))


@pytest.mark.parametrize(
    ("after", "noise", "slower", "faster"),
    [
        (1.05e-3, 0.01, False, False),
        (1.3e-3, 0.01, True, False),
        (0.7e-3, 0.01, False, True),
        (1.3e-3, 0.15, False, False),
    ],
)
def test_a_change_counts_when_it_is_beyond_tolerance_and_spread(
    after: float, noise: float, slower: bool, faster: bool
) -> None:
    (change,) = changes(*_pair(1e-3, after, noise), ["tritonrl"], 0.1, False)
    assert (change.slower, change.faster) == (slower, faster)


def test_against_clone_a_machine_twice_as_slow_is_no_news() -> None:
    a, b = record(timed(CASE, "tritonrl", 1e-3, clone=1e-4)), record(timed(CASE, "tritonrl", 2e-3, clone=2e-4))
    assert changes(a, b, ["tritonrl"], 0.1, False)[0].slower
    assert changes(a, b, ["tritonrl"], 0.1, True)[0].ratio == pytest.approx(1.0)


def test_a_case_that_became_wrong_is_worse_than_slow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = record(timed(CASE, "tritonrl", 1e-3)), record(Result(CASE, "tritonrl", WRONG, reason="advantage is off"))
    assert [r.reason for r in gone(a, b, ["tritonrl"])] == ["advantage is off"]
    a.save(tmp_path / "a.json"), b.save(tmp_path / "b.json")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    assert "advantage is off" in capsys.readouterr().out


def test_compare_exits_by_what_it_found(tmp_path: Path) -> None:
    for name, made in zip(("a", "b"), _pair(1e-3, 2e-3), strict=True):
        made.save(tmp_path / f"{name}.json")
    a, b = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    record().save(tmp_path / "none.json")
    assert main(["compare", a, b]) == 1
    assert main(["compare", b, a]) == 0
    assert main(["compare", a, b, "--tolerance", "1.5"]) == 0
    assert main(["compare", a, str(tmp_path / "none.json")]) == 2


def test_quartiles_of_few_samples_are_the_extremes() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0, 5)


def test_a_short_run_from_the_command_line_writes_a_record_that_can_be_reported(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    arguments = [
        "--quick",
        "--device",
        "cpu",
        "--only",
        "gae/classic/8x128",
        "--peers",
        "python loop",
        "--seconds",
        "0.001",
    ]
    assert main([*arguments, "--json", str(path)]) == 0
    made = load(path)
    assert {(r.case.layout, r.contender) for r in made.results} == {
        (layout, name) for layout in ("NT", "TN") for name in ("tritonrl", "python loop")
    }
    assert main(["report", str(path), "--out", str(tmp_path)]) == 0


def test_a_peer_or_case_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--peers", "nobody"]) == 2
    assert "no peer nobody" in capsys.readouterr().err
    assert main(["--device", "cpu", "--only", "nothing like this"]) == 2


def test_a_deadline_leaves_the_rest_undone_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--device", "cpu", "--peers", "none", "--deadline", "-1", "--only", "8x128"]) == 0
    assert "were not run" in capsys.readouterr().out


def test_list_prints_ids(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--list", "--only", "8x128"]) == 0
    assert Case("gae", "classic", 8, 128).id in capsys.readouterr().out.splitlines()
