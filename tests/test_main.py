"""``python -m tritonrl`` tells what runs where, and exits non-zero with the operator's name when one is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import tritonrl
from tritonrl import doctor, kernels
from tritonrl.__main__ import main


class Status(NamedTuple):
    device: str
    backend: str
    detail: str


class Result(NamedTuple):
    op: str
    backend: str
    ok: bool
    max_error: float
    detail: str


GOOD = Result("gae", "numba", True, 1e-7, "")
BAD = Result("vtrace", "numba", False, 0.25, "at step 3")


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Result]]:
    """Put prepared results in place of the real self-check, by device; what a test adds is what the check returns."""
    results: dict[str, list[Result]] = {}
    monkeypatch.setattr(
        kernels, "backends", lambda: (Status("cpu", "numba", "numba 0.68.1, 2 threads"),), raising=False
    )
    monkeypatch.setattr(kernels, "self_check", lambda device="cpu": results[device], raising=False)
    return results


def test_the_report_names_versions_devices_and_the_reason_for_each_backend(
    checked: dict[str, list[Result]], capsys: pytest.CaptureFixture[str]
) -> None:
    checked["cpu"] = [GOOD]
    assert main(["--device", "cpu"]) == 0
    text = capsys.readouterr().out
    for word in (tritonrl.__version__, torch.__version__, "triton", "numba 0.68.1, 2 threads", "gae"):
        assert word in text
    assert "FAILED" not in text


def test_a_disagreeing_operator_is_named_and_the_exit_code_is_one(
    checked: dict[str, list[Result]], capsys: pytest.CaptureFixture[str]
) -> None:
    checked["cpu"] = [GOOD, BAD]
    assert main(["--device", "cpu"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "FAILED: vtrace (numba, cpu)"


def test_a_check_that_looked_at_no_operator_fails(checked: dict[str, list[Result]]) -> None:
    checked["cpu"] = []
    assert main(["--device", "cpu"]) == 1


def test_a_check_that_raises_fails_with_its_message_and_the_other_devices_are_still_checked(
    checked: dict[str, list[Result]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def self_check(device: str) -> list[Result]:
        if device == "cpu":
            raise RuntimeError("the compiler is gone")
        return [BAD]

    monkeypatch.setattr(doctor, "devices", lambda: [("cpu", "2 threads"), ("cuda:0", "a GPU")])
    monkeypatch.setattr(kernels, "self_check", self_check)
    assert main([]) == 1
    text = capsys.readouterr().out
    assert "RuntimeError: the compiler is gone" in text
    assert text.splitlines()[-1] == "FAILED: self_check on cpu, vtrace (numba, cuda:0)"


def test_every_device_is_checked_unless_told_otherwise(
    checked: dict[str, list[Result]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "devices", lambda: [("cpu", "2 threads"), ("cuda:0", "a GPU")])
    checked.update({"cpu": [GOOD], "cuda:0": [GOOD._replace(backend="triton")]})
    assert main([]) == 0
    assert "self-check on cuda:0" in capsys.readouterr().out
    assert main(["--device", "cpu"]) == 0
    assert "self-check on cuda:0" not in capsys.readouterr().out


def test_a_backend_that_cannot_serve_its_device_is_shown_with_the_reason(
    checked: dict[str, list[Result]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "backends", lambda: (Status("cpu", "none", "triton kernels need a CUDA device"),))
    assert doctor.backends() == [("cpu", "none: triton kernels need a CUDA device")]


def test_a_misspelt_backend_in_the_environment_gets_one_clear_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tritonrl"]
    environment = os.environ | {"TRITONRL_BACKEND": "abacus"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "'abacus'" in done.stdout.splitlines()[-1]
    assert done.stderr == ""


def test_an_unknown_device_gets_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--device", "abacus"])
    assert stop.value.code == 2
    assert "there is no 'abacus' here, only cpu" in capsys.readouterr().err


def test_the_reason_for_no_cuda_is_given_exactly_when_there_is_none() -> None:
    assert bool(doctor.why_no_cuda()) == (not torch.cuda.is_available())


def test_the_real_self_check_passes_for_every_operator_on_every_device(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "tritonrl"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for operator in ("gae", "td_lambda_return", "reward_to_go", "vtrace", "linear_recurrence"):
        assert operator in done.stdout
    for device, _ in doctor.devices():
        assert f"self-check on {device}" in done.stdout


def test_the_real_self_check_names_an_operator_that_was_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serving = kernels.backend.backend_for(torch.device("cpu"))
    right = serving.vtrace

    def wrong(*inputs: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        advantage, target = right(*inputs, **options)
        return advantage, target + 1e-2

    monkeypatch.setattr(serving, "vtrace", wrong)
    assert main(["--device", "cpu"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert "vtrace" in last
    assert "gae" not in last
