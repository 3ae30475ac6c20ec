"""``perf host``: the host's share of a Triton call, measured where there is no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc")) is None, reason="the driver that does nothing is built here"
)
def test_every_call_is_one_launch_moments_or_not() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "perf", "host", "--calls", "20", "--only", "reward_to_go", "--only", "moments"]
    env = {name: x for name, x in os.environ.items() if name not in ("TRITON_INTERPRET", "TRITONRL_BACKEND")}
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    rows = [re.findall(r"[^│┃]+", line) for line in ran.stdout.splitlines() if "forward" in line]
    found = {cells[0].strip(): [float(x) for x in cells[1:6]] for cells in rows}
    assert found.keys() == {"gae 4096x128 NT moments forward", "reward_to_go 4096x128 NT forward"}
    for name, (call, ours, outputs, launch, launches) in found.items():
        assert launches == 1, name
        assert min(outputs, launch) > 0
        assert call == pytest.approx(ours + outputs + launch, abs=0.2)
