"""The IQL example: the data set, learning from it alone, and the policies that collect it."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from .runs import assert_same, assert_same_run, metrics, stop_after

Script = Callable[[str], Any]
SHORT = ["--total-steps", "20", "--num-envs", "4", "--gradient-steps", "4", "--evaluation-steps", "3"]
SHORT += ["--data-steps", "90", "--batch-size", "16", "--hidden", "8"]
ENVS = ["Pendulum-v1", "CartPole-v1"]


@pytest.fixture
def iql(script: Script) -> Any:
    return script("iql")


def make(module: Any, tmp_path: Path, *options: str) -> Any:
    """A learner with its data set."""
    parser = module.options()
    return module.IQL(parser, parser.parse_args([*SHORT, *options, "--out", str(tmp_path)]))


def refused(main: Callable[[list[str]], int], argv: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line with which the program ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(argv)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1
    return err


@pytest.mark.parametrize("env", ENVS)
def test_a_run_collects_its_data_saves_them_and_learns(
    iql: Any, env: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert iql.main([*SHORT, "--env", env, "--out", str(tmp_path)]) == 0
    rows = metrics(tmp_path)
    assert [int(row["step"]) for row in rows] == [4, 8, 12, 16, 20]
    for row in rows:
        assert all(math.isfinite(float(row[name])) for name in iql.IQL.logged)
    assert all((tmp_path / file).stat().st_size for file in ("config.json", "learning_curve.png", "checkpoint.pt"))
    name = {"Pendulum-v1": "swing", "CartPole-v1": "lean"}[env]
    assert f"data.pt: 92 steps by '{name}' (50% random), mean return" in capsys.readouterr().out


@pytest.mark.parametrize("env", ENVS)
def test_the_file_alone_gives_the_same_run(iql: Any, env: str, tmp_path: Path) -> None:
    options = [*SHORT, "--env", env]
    iql.main([*options, "--out", str(tmp_path / "one")])
    shutil.move(tmp_path / "one" / "data.pt", tmp_path / "moved.pt")
    iql.main([*options, "--data", str(tmp_path / "moved.pt"), "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other" / "data.pt").exists()
    assert_same_run(tmp_path / "one", tmp_path / "other")


def test_a_run_that_was_interrupted_and_resumed_equals_one_that_was_not(
    iql: Any, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iql.main([*SHORT, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_after(script, patch, 2, partial(signal.raise_signal, signal.SIGINT))
        assert iql.main([*SHORT, "--out", str(tmp_path / "parts")]) == 130
    assert len(metrics(tmp_path / "parts")) == 2
    shutil.move(tmp_path / "parts", tmp_path / "elsewhere")
    goes_on = ["--resume", str(tmp_path / "elsewhere")]
    assert iql.main([*goes_on, "--out", str(tmp_path / "other")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "other")
    settings = torch.load(tmp_path / "other" / "checkpoint.pt", weights_only=False)["settings"]
    assert settings["data"] == str(tmp_path / "elsewhere" / "data.pt")
    assert iql.main(goes_on) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "elsewhere")


def test_what_happens_in_the_evaluation_is_not_learnt_from(iql: Any, tmp_path: Path) -> None:
    learner = make(iql, tmp_path, "--reward-scale", "0.5")
    learner.environments.reset(0)
    stored = torch.load(tmp_path / "data.pt", weights_only=True)
    assert stored["size"] == len(learner.buffer) == 92
    stored["transitions"]["next"]["reward"] *= 0.5
    for _ in range(2):
        assert_same(learner.buffer.state_dict()["storage"], stored["transitions"])
        learner.update(0.0)


def test_the_evaluation_takes_the_likeliest_action(iql: Any, tmp_path: Path) -> None:
    learner = make(iql, tmp_path, "--env", "CartPole-v1", "--evaluation-steps", "1")
    learner.environments.reset(0)
    observation, taken = torch.as_tensor(learner.environments.observation).clone(), []
    step = learner.environments.step
    learner.environments.step = lambda action: taken.append(action) or step(action)
    learner.evaluate()
    assert taken[0].equal(learner.actor.get_dist(TensorDict({"observation": observation}, [4])).probs.argmax(-1))


def test_a_file_that_does_not_fit_is_refused_in_one_line(
    iql: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    iql.main([*SHORT, "--out", str(tmp_path / "run")])
    data, out = tmp_path / "run" / "data.pt", ["--out", str(tmp_path / "other")]
    words = f"{data} has observation [92, 3], CartPole-v1 needs [92, 4]"
    assert words in refused(iql.main, [*SHORT, "--env", "CartPole-v1", "--data", str(data), *out], capsys)
    (tmp_path / "noise.pt").write_text("no data set")
    for name in ("noise.pt", "missing.pt"):
        assert "cannot read a data set" in refused(iql.main, [*SHORT, "--data", str(tmp_path / name), *out], capsys)
    data.unlink()
    assert "cannot read a data set" in refused(iql.main, ["--resume", str(tmp_path / "run")], capsys)
    assert not (tmp_path / "other").exists()


def test_a_behaviour_for_another_environment_is_refused(
    iql: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    err = refused(iql.main, [*SHORT, "--behaviour", "lean", "--out", str(tmp_path / "run")], capsys)
    assert "lean is for CartPole-v1, not for Pendulum-v1" in err and not (tmp_path / "run").exists()


def test_randomness_is_the_share_of_actions_that_are_random(iql: Any, script: Script, tmp_path: Path) -> None:
    lean = script("behaviours").lean
    followed = {}
    for share in ("0", "0.5", "1"):
        options = ["--env", "CartPole-v1", "--randomness", share, "--data-steps", "1000"]
        data = make(iql, tmp_path / share, *options).buffer.storage
        followed[share] = (data["action"] == lean(data["observation"])).float().mean().item()
    assert followed["0"] == 1.0
    assert followed["0.5"] == pytest.approx(0.75, abs=0.06) and followed["1"] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(("env", "name"), [("CartPole-v1", "lean"), ("Pendulum-v1", "swing")])
def test_a_behaviour_does_better_than_chance(
    iql: Any, env: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    returns = []
    for behaviour in ("random", name):
        options = ["--num-envs", "8", "--data-steps", "1600", "--randomness", "0"]
        make(iql, tmp_path / behaviour, "--env", env, "--behaviour", behaviour, *options)
        returns.append(float(capsys.readouterr().out.split("mean return ")[1].split()[0]))
    assert returns[1] > (1.5 * returns[0] if env == "CartPole-v1" else returns[0] + 100)


@pytest.mark.parametrize(("temperature", "expected"), [("0", 0.0), ("10", 0.5)])
def test_the_policy_imitates_the_better_actions_the_more_the_higher_the_temperature(
    iql: Any, temperature: str, expected: float, tmp_path: Path
) -> None:
    """Episodes of one step that pays ``-(a - 0.5) ** 2`` for actions that are even over [-1, 1]."""
    options = ["--batch-size", "64", "--hidden", "32", "--learning-rate", "1e-2", "--tau", "0.1"]
    learner = make(iql, tmp_path, *options, "--temperature", temperature)
    torch.manual_seed(0)
    action, ends = torch.empty(500, 1).uniform_(-1, 1), torch.ones(500, 1, dtype=torch.bool)
    following = {"observation": torch.randn(500, 3), "terminated": ends, "done": ends}
    following["reward"] = -10 * (action - 0.5).square()
    learner.buffer = type(learner.buffer)(500)
    learner.buffer.add(
        TensorDict({"observation": torch.randn(500, 3), "action": action, "next": TensorDict(following, [500])}, [500])
    )
    for _ in range(150):
        learner.learn()
    found = learner.actor.get_dist(TensorDict({"observation": torch.randn(200, 3)}, [200])).mean
    assert found.mean().item() == pytest.approx(expected, abs=0.2)
