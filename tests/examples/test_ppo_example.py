"""The PPO example: it trains, writes what it says, resumes bit for bit, and refuses bad arguments in one line.

What is not PPO's own in this (the loop, the logs, the command line) is shared by all examples and tested here for all.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from .runs import EXAMPLES, SHORT, assert_same_run, metrics, stop_after


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_a_short_training_writes_every_file(ppo: Any, env: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert ppo.main([*SHORT, "--env", env, "--out", str(tmp_path), "--seed", "3"]) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["env"] == env and config["seed"] == 3 and config["versions"]["torch"] == torch.__version__
    rows = metrics(tmp_path)
    assert [int(row["step"]) for row in rows] == [96, 192, 288, 384, 480]
    for row in rows:
        assert all(math.isfinite(float(value)) for name, value in row.items() if name != "return")
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "checkpoint.pt").exists()
    assert not list(tmp_path.glob("*.tmp"))
    out = capsys.readouterr().out
    for words in (f"{env}, seed 3: finished after 480 steps", "mean return", "estimator: GAE", "the kernel alone"):
        assert words in out


def test_the_scalars_reach_tensorboard(ppo: Any, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    ppo.main([*SHORT, "--out", str(tmp_path)])
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = metrics(tmp_path)
    assert set(events.Tags()["scalars"]) == set(rows[0]) - {"step"} | {"seconds"}
    assert [event.step for event in events.Scalars("entropy")] == [int(row["step"]) for row in rows]
    assert [event.value for event in events.Scalars("entropy")] == pytest.approx([float(r["entropy"]) for r in rows])


def test_time_in_the_estimator_and_in_its_kernels_is_measured_apart(ppo: Any, tmp_path: Path) -> None:
    ppo.main([*SHORT, "--out", str(tmp_path)])
    seconds = torch.load(tmp_path / "checkpoint.pt", weights_only=False)["seconds"]
    assert 0 < seconds["kernels"] < seconds["kernels"] + seconds["first kernel call"] < seconds["estimator"]
    parts = ("environments and policy", "estimator", "learning")
    assert sum(seconds[part] for part in parts) <= seconds["total"]


def test_the_learning_rate_falls_linearly_and_gradients_are_clipped(
    ppo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []
    step = torch.optim.Adam.step

    def record(self: torch.optim.Adam, *args: Any, **kwargs: Any) -> Any:
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(grads).item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", record)
    ppo.main([*SHORT, "--out", str(tmp_path), "--learning-rate", "0.01", "--max-grad-norm", "0.125"])
    rates = [float(row["learning_rate"]) for row in metrics(tmp_path)]
    assert rates == pytest.approx([0.01, 0.008, 0.006, 0.004, 0.002])
    assert len(norms) == 5 * 2 * 3  # updates, epochs, minibatches of 40, 40 and 16 transitions
    assert max(norms) == pytest.approx(0.125, rel=1e-4)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(ppo: Any, tmp_path: Path) -> None:
    for folder, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        ppo.main([*SHORT, "--out", str(tmp_path / folder), "--seed", seed])
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert metrics(tmp_path / "a") != metrics(tmp_path / "c")


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_run_that_was_interrupted_and_resumed_equals_one_that_was_not(
    ppo: Any,
    script: Callable[[str], Any],
    env: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    short = [*SHORT, "--env", env]
    ppo.main([*short, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_after(script, patch, 2, partial(signal.raise_signal, signal.SIGINT))
        assert ppo.main([*short, "--out", str(tmp_path / "parts")]) == 130
    assert "--resume" in capsys.readouterr().out
    assert len(metrics(tmp_path / "parts")) == 2
    assert ppo.main(["--resume", str(tmp_path / "parts")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_rows_logged_after_the_last_checkpoint_of_a_crashed_run_are_not_logged_twice(
    ppo: Any, script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash() -> None:
        raise MemoryError

    ppo.main([*SHORT, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_after(script, patch, 3, crash)
        with pytest.raises(MemoryError):
            ppo.main([*SHORT, "--out", str(tmp_path / "parts"), "--save-every", "2"])
    assert len(metrics(tmp_path / "parts")) == 3
    ppo.main(["--resume", str(tmp_path / "parts" / "checkpoint.pt"), "--save-every", "20"])
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_second_interrupt_does_not_wait(
    ppo: Any,
    script: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    # Not what this process began with: what a shell starts in the background ignores the signal.
    at_start = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, at_start))
    before = signal.getsignal(signal.SIGINT)

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        while signal.getsignal(signal.SIGINT) is not before:  # Python handles a signal between two instructions
            time.sleep(0.001)  # and two that arrive before that are one.
        signal.raise_signal(signal.SIGINT)

    ppo.main([*SHORT, "--out", str(tmp_path)])
    assert (tmp_path / "checkpoint.pt").exists()
    stop_after(script, monkeypatch, 2, twice)
    assert ppo.main([*SHORT, "--out", str(tmp_path), "--overwrite", "--seed", "1"]) == 130
    assert not (tmp_path / "checkpoint.pt").exists()  # neither one of this run nor the overwritten run's
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_resumes_with_more_steps_or_not_at_all(
    ppo: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    ppo.main([*SHORT, "--out", str(tmp_path / "run")])
    before = metrics(tmp_path / "run")
    assert ppo.main(["--resume", str(tmp_path / "run"), "--out", str(tmp_path / "same")]) == 0
    assert metrics(tmp_path / "same") == before
    assert ppo.main(["--resume", str(tmp_path / "run"), "--total-steps", "576"]) == 0
    assert "after 576 steps" in capsys.readouterr().out
    assert metrics(tmp_path / "run")[:5] == before


def test_where_environments_cannot_be_saved_a_resumed_run_says_so_and_starts_new_episodes(
    ppo: Any,
    script: Callable[[str], Any],
    common: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    assert common.pickles_exactly("tritonrl/Corridor-v0")
    assert not common.pickles_exactly("tritonrl/Forgetful-v0")
    with monkeypatch.context() as patch:
        stop_after(script, patch, 2, partial(signal.raise_signal, signal.SIGINT))
        ppo.main([*SHORT, "--env", "tritonrl/Forgetful-v0", "--out", str(tmp_path)])
    assert "cannot be saved" in capsys.readouterr().err
    assert ppo.main(["--resume", str(tmp_path)]) == 0
    assert len(metrics(tmp_path)) == 5


def test_stop_at_ends_early_and_says_so(ppo: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--num-envs", "16", "--rollout-steps", "40", "--epochs", "1", "--stop-at", "5"]
    assert ppo.main([*options, "--out", str(tmp_path)]) == 0
    assert "stopped early at a return of 5" in capsys.readouterr().out
    rows = metrics(tmp_path)
    assert int(rows[-2]["episodes"]) < 100 <= int(rows[-1]["episodes"])


def test_ctrl_c_in_a_terminal_saves_and_leaves_with_130(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(EXAMPLES / "ppo.py"),
        *SHORT[2:],
        "--total-steps",
        "96000000",
        "--out",
        str(tmp_path),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        path = tmp_path / "metrics.csv"
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and path.read_text().count("\n") > 2:
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.05)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted after" in out and "--resume" in out
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    assert len(state["rows"]) == len(metrics(tmp_path))


def test_no_example_needs_torchrl() -> None:
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    code = f"import sys, {', '.join(names)}; sys.exit('torchrl' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, check=True, timeout=120)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--total-steps 0", "--total-steps: expected an integer >= 1, got '0'"),
        ("--total-steps many", "--total-steps: expected an integer >= 1, got 'many'"),
        ("--num-envs 2.5", "--num-envs: expected an integer >= 1, got '2.5'"),
        ("--learning-rate nan", "--learning-rate: expected a number > 0, got 'nan'"),
        ("--learning-rate 0", "--learning-rate: expected a number > 0, got '0'"),
        ("--reward-scale inf", "--reward-scale: expected a number > 0, got 'inf'"),
        ("--gamma 1.5", "--gamma: expected a number >= 0 and <= 1, got '1.5'"),
        ("--seed -1", "--seed: expected an integer >= 0"),
        ("--env NoSuchThing-v1", "--env: cannot make 'NoSuchThing-v1'"),
        ("--env no_such_module:Thing-v1", "--env: cannot make 'no_such_module:Thing-v1'"),
        ("--env Taxi-v3", "--env: cannot make 'Taxi-v3': Environment version v3 for `Taxi` is deprecated"),
        ("--env tritonrl/ManyButtons-v0", "--env: tritonrl/ManyButtons-v0 has actions MultiDiscrete([2 3])"),
        ("--device quantum", "--device: cannot use 'quantum'"),
        ("--device meta", "--device: cannot use 'meta'"),
        ("--resume /no/such/run", "--resume: no checkpoint at /no/such/run"),
        (f"--resume {__file__}", "is not a checkpoint of ppo.py"),
        ("--out /dev/null/run", "--out: cannot make the folder"),
        ("--speed 3", "unrecognized arguments: --speed 3"),
    ],
)
def test_a_bad_argument_gets_one_line_and_exit_code_2(
    ppo: Any, options: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        ppo.main(options.split())
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert err.startswith("ppo.py: error: ") and words in err
    assert err.count("\n") == 1 and out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that this machine would have")
def test_a_missing_gpu_gets_one_line(ppo: Any, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        ppo.main(["--device", "cuda"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "--device: cannot use 'cuda'" in err and err.count("\n") == 1


def test_neither_a_run_nor_its_make_up_is_overwritten_by_mistake(
    ppo: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = ["--out", str(tmp_path)]
    ppo.main([*SHORT, *out])
    first = metrics(tmp_path)
    ppo.main([*SHORT, "--out", str(tmp_path / "other"), "--seed", "7"])
    resume = ["--resume", str(tmp_path / "other")]
    for options in ([*SHORT, *out], [*resume, *out], [*resume, "--num-envs", "5"]):
        with pytest.raises(SystemExit) as stop:
            ppo.main(options)
        assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("holds a run already") == 2 and "the run to resume has 4, got 5" in err
    assert metrics(tmp_path) == first
    ppo.main([*SHORT, *out, "--overwrite", "--seed", "1"])
    assert metrics(tmp_path) != first and len(metrics(tmp_path)) == 5


def test_the_compiled_loss_trains_as_the_plain_one_does(
    ppo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full graph, through dynamo and autograd; the code that inductor would make of it is not this test's concern."""
    options = [*SHORT, "--total-steps", "96", "--minibatch-size", "48"]
    ppo.main([*options, "--out", str(tmp_path / "plain")])
    calls = []

    def compile_without_inductor(module: torch.nn.Module, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return torch._dynamo.optimize("aot_eager", nopython=kwargs["fullgraph"])(module)

    monkeypatch.setattr(torch, "compile", compile_without_inductor)
    assert ppo.main([*options, "--out", str(tmp_path / "compiled"), "--compile"]) == 0
    assert calls == [{"fullgraph": True}]
    [plain], [compiled] = metrics(tmp_path / "plain"), metrics(tmp_path / "compiled")
    for name in plain:
        assert float(compiled[name]) == pytest.approx(float(plain[name]), rel=1e-3, abs=1e-5, nan_ok=True), name
