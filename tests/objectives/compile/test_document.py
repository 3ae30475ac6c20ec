"""``docs/compile.md`` is the rendering of a committed record, and says what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf.__main__ import main
from perf.losses import command
from perf.losses.counting import Counts
from perf.losses.document import DOCUMENT, render
from perf.losses.record import Line, LossRecord, load
from perf.losses.rows import registry
from perf.losses.timing import Comparison, Times
from perf.records import Spread

MACHINE = {
    "device": "cpu",
    "name": "Test CPU",
    "threads": 2,
    "versions": {"python": "3.11.0", "torch": "2.13.0", "torchrl": "0.14.1"},
    "commit": "0123456789ab",
    "date": "2026-11-22",
}


def spread(median: float) -> Spread:
    return Spread(median, median * 0.9, median * 1.1, 9)


def example(**machine: object) -> LossRecord:
    whole = Counts(1, 0, 0, 0, 0, None, 1, 0)
    broken = Counts(9, 8, 0, 2, 0, None, "fails", "fails", "TorchRuntimeError: too dynamic")
    times = Comparison(0.0, "", Times(spread(1e-2), spread(5e-3), 12.0), Times(spread(2e-2), spread(4e-3), 30.0))
    alone = Comparison(
        2.0, "other numbers", Times(spread(1e-3), spread(1e-3), 1.0), Times(None, None, None, "Oops: no")
    )
    lines = [Line("GAE", (128, 10), whole, broken, times), Line("VTrace", (128, 10), whole, broken, alone)]
    return LossRecord(MACHINE | machine, {"seconds": 0.5}, lines)


def test_the_document_is_the_rendering_of_the_newest_record() -> None:
    path = command.newest_record()
    assert path is not None, "no record is committed: run `python -m perf losses --json` and `--write-docs`"
    assert DOCUMENT.read_text() == render(load(path))
    assert {line.id for line in load(path).lines} == {row.id for row in registry()}


def test_a_record_survives_a_file(tmp_path: Path) -> None:
    example().save(tmp_path / "deep" / "a.json")
    assert load(tmp_path / "deep" / "a.json") == example()


def test_a_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="not a record of the losses"):
        load(tmp_path / "a.json")


def test_the_table_shows_wins_losses_breaks_failures_and_reasons() -> None:
    text = render(example())
    for words in (
        "| GAE | 1 / 9 | 0 / 8 | 0 / 0 | 0 / 2 | 0 / 0 | - | 1 / fails | 0 / fails |",
        "| GAE | 128x10 | 10 ms ±10 % | 20 ms ±10 % | 2.00x | 5 ms ±10 % | 4 ms ±10 % | 0.80x | 12 s | 30 s |",
        "| VTrace | 128x10 | 1 ms ±10 % | - | - | 1 ms ±10 % | - | - | 1 s | - |",
        "- VTrace: other numbers",
        "- VTrace: Oops: no",
        "- GAE: TorchRuntimeError: too dynamic",
        "Test CPU, 2 threads, 2026-11-22, commit `0123456789ab`",
    ):
        assert words in text, words
    assert "no result" not in text


def test_times_of_a_busy_machine_are_called_no_result() -> None:
    assert "these times are no result" in render(example(busy_after=1.4))


def test_the_command_measures_a_row_and_writes_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from perf.losses import counting, timing

    whole = Counts(1, 0, 0, 0, None, None, 1, 0)
    monkeypatch.setattr(counting, "count", lambda row, library, scale: whole)
    monkeypatch.setattr(timing, "_compiled", lambda subject, library, times: subject.call(subject.module))
    monkeypatch.setattr(command, "DOCUMENT", tmp_path / "compile.md")
    path = tmp_path / "record.json"
    assert main(["losses", "--only", "TD0Estimator", "--seconds", "0.01", "--json", str(path)]) == 0
    (line,) = load(path).lines
    assert line.ours == whole
    assert line.times.agrees and line.times.ours.eager is not None and line.times.theirs.compiled is not None
    assert "TD0Estimator 128x10" in capsys.readouterr().out
    assert main(["losses", "--only", "TD0Estimator", "--seconds", "0.01", "--json", str(path), "--resume"]) == 0
    assert load(path).lines == [line]
    assert main(["losses", "--write-docs", str(path)]) == 0
    assert (tmp_path / "compile.md").read_text() == render(load(path))


def test_nothing_to_measure_and_no_record_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["losses", "--only", "no such row"]) == 2
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    assert main(["losses", "--write-docs"]) == 2
