"""Runs the cases of triton_cases.py in a process of their own: in Triton's interpreter, and on a CUDA device if there is one.

Whether Triton interprets is decided when a kernel is defined, so one process cannot do both; and test_ahead_of_time.py
compiles in this one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CASES = Path(__file__).with_name("triton_cases.py")
ROOT = Path(__file__).resolve().parents[2]


def run_cases(file: Path, at_least: int, **environment: str) -> None:
    """Run pytest on a file in a new process; fail with its output unless ``at_least`` cases ran and all passed."""
    chosen = {"TRITONRL_BACKEND", "TRITON_INTERPRET"}
    env = {name: value for name, value in os.environ.items() if name not in chosen} | environment
    # -P: the repository root must not come onto sys.path, where `kernels` would be a second copy of the package.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", str(file)]
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    passed = re.search(r"(\d+) passed", ran.stdout)
    odd = re.search(r"\d+ (failed|errors?|skipped|deselected|xfailed|xpassed)", ran.stdout)
    if ran.returncode != 0 or odd or passed is None or int(passed.group(1)) < at_least:
        pytest.fail(f"exit code {ran.returncode} of {' '.join(command)}\n{ran.stdout}\n{ran.stderr}", pytrace=False)


def test_every_kernel_computes_what_the_oracle_computes_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    run_cases(CASES, at_least=50, TRITON_INTERPRET="1", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_kernel_computes_what_the_oracle_computes_on_the_device() -> None:
    run_cases(CASES, at_least=50)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def helper(): pass\n", "no tests ran"),
        ("def test_it():\n    assert 1 + 1 == 3\n", "assert (1 + 1) == 3"),
        (
            "import pytest\n@pytest.mark.skip\ndef test_it(): pass\ndef test_1(): pass\ndef test_2(): pass\n",
            "1 skipped",
        ),
    ],
    ids=["no test", "a failure", "a skip"],
)
def test_a_child_that_does_not_run_its_cases_fails_its_parent(code: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "cases.py"
    file.write_text(code)
    with pytest.raises(pytest.fail.Exception) as caught:
        run_cases(file, at_least=2)
    assert said in str(caught.value)
