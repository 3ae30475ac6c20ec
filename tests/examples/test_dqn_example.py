"""The DQN example, and what all off-policy examples share: warm-up, what a checkpoint holds, what a resumed run keeps."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from .runs import assert_same_run, metrics, stop_after

Script = Callable[[str], Any]
SHORT = ["--total-steps", "480", "--num-envs", "4", "--steps-per-update", "6", "--gradient-steps", "2"]
SHORT += ["--warm-up", "100", "--batch-size", "16", "--hidden", "8"]
VARIANTS = {
    "plain": ["--n-step", "1"],
    "double": ["--double"],
    "distributional": ["--distributional", "--atoms", "11", "--support", "0", "50"],
    "prioritised": ["--n-step", "2", "--priority-alpha", "0.4", "--priority-beta", "0.7", "--max-grad-norm", "1"],
}


@pytest.fixture
def dqn(script: Script) -> Any:
    return script("dqn")


def make(module: Any, tmp_path: Path, *options: str) -> Any:
    """A learner that is ready to start."""
    parser = module.options()
    learner = module.make_learner(parser, parser.parse_args([*SHORT, *options, "--out", str(tmp_path)]))
    learner.environments.reset(0)
    return learner


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_short_training_writes_every_file(
    dqn: Any, variant: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert dqn.main([*SHORT, *VARIANTS[variant], "--out", str(tmp_path)]) == 0
    rows = metrics(tmp_path)
    assert [int(row["step"]) for row in rows] == list(range(24, 481, 24))
    # After 96 steps there are fewer than 100 transitions; 3-step ones come two steps of 4 environments later.
    assert all(math.isnan(float(row["loss"])) for row in rows[:4])
    assert all(math.isfinite(float(row["loss"])) for row in rows[5:])
    assert all((tmp_path / file).stat().st_size for file in ("config.json", "learning_curve.png", "checkpoint.pt"))
    out = capsys.readouterr().out
    assert "finished after 480 steps" in out and "replay: storing and sampling" in out


@pytest.mark.parametrize("variant", ["distributional", "prioritised"])
def test_a_run_that_was_interrupted_and_resumed_equals_one_that_was_not(
    dqn: Any, script: Script, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replay buffer and its priorities, open n-step transitions, targets, epsilon and all that PPO has."""
    options = [*SHORT, *VARIANTS[variant]]
    dqn.main([*options, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_after(script, patch, 9, partial(signal.raise_signal, signal.SIGINT))
        assert dqn.main([*options, "--out", str(tmp_path / "parts")]) == 130
    assert len(metrics(tmp_path / "parts")) == 9
    assert dqn.main(["--resume", str(tmp_path / "parts")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=False)["learner"]
    assert state["gradient_steps"] == 2 * sum(row["loss"] != "nan" for row in metrics(tmp_path / "whole"))
    assert 0 < state["explorer"]["eps"] < 1 and state["buffer"]["size"] > 400


def test_epsilon_falls_from_one_when_learning_begins(dqn: Any, tmp_path: Path) -> None:
    options = ["--exploration-steps", "200", "--epsilon", "0.1"]
    dqn.main([*SHORT, "--n-step", "1", *options, "--out", str(tmp_path)])
    epsilon = [float(row["epsilon"]) for row in metrics(tmp_path)]
    assert epsilon[:4] == [1.0] * 4
    # The fifth update takes a step, has its 100 transitions, and takes five steps more of 4 environments.
    assert epsilon[4] == pytest.approx(1 - 0.9 * 20 / 200, abs=1e-5)
    assert epsilon[5] == pytest.approx(1 - 0.9 * 44 / 200, abs=1e-5)
    assert epsilon[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("options", [[], ["--distributional", "--atoms", "21", "--support", "0", "3"]])
def test_the_action_that_ends_the_episode_is_soon_avoided(dqn: Any, options: list[str], tmp_path: Path) -> None:
    """Every step of the corridor pays 1, and action 0 ends it; otherwise the time limit does, after 3 steps."""
    env = [
        "--env",
        "tritonrl/Corridor-v0",
        "--learning-rate",
        "1e-2",
        "--tau",
        "0.1",
        "--hidden",
        "32",
        "--gamma",
        "0.9",
    ]
    learner = make(dqn, tmp_path, *env, "--gradient-steps", "10", *options)
    torch.manual_seed(0)
    for _ in range(20):
        learner.update(0.0)
    observation = torch.tensor([[0.0], [1.0], [2.0]])
    assert (learner.actor(TensorDict({"observation": observation}, [3]))["action"] != 0).all()


def test_the_first_steps_are_random_and_the_warm_up_ends_though_the_buffer_be_small(dqn: Any, tmp_path: Path) -> None:
    learner = make(dqn, tmp_path, "--capacity", "60", "--warm-up", "100", "--exploration-steps", "1", "--epsilon", "0")
    actions = torch.cat([learner.step(0.0)["action"] for _ in range(300)])
    assert set(actions.tolist()) == {0, 1} and abs(actions.float().mean() - 0.5) < 0.08
    assert learner.warming_up
    learner.collect(0.0), learner.collect(0.0), learner.collect(0.0)
    assert len(learner.buffer) == 60 and not learner.warming_up
    observation = torch.as_tensor(learner.environments.observation)
    expected = learner.actor(TensorDict({"observation": observation.clone()}, [4]))["action"]
    assert learner.step(0.0)["action"].equal(expected)


def test_a_stored_step_leads_to_the_true_final_observation(dqn: Any, tmp_path: Path) -> None:
    learner = make(dqn, tmp_path, "--env", "tritonrl/Corridor-v0", "--reward-scale", "0.5")
    learner.random_action = lambda: torch.ones(4, dtype=torch.int64)
    steps = torch.stack([learner.step(0.0) for _ in range(4)])
    assert steps["observation"][:, 2, 0].tolist() == [0, 1, 2, 0]
    assert steps["next", "observation"][:, 2, 0].tolist() == [1, 2, 3, 1]
    assert steps["next", "done"][:, 2, 0].tolist() == [False, False, True, False]
    assert not steps["next", "terminated"].any() and steps["next", "reward"].eq(0.5).all()


def test_priorities_are_what_the_loss_wrote(dqn: Any, tmp_path: Path) -> None:
    learner = make(dqn, tmp_path, "--n-step", "1", "--priority-alpha", "0.5", "--capacity", "1000")
    while learner.warming_up:
        learner.collect(0.0)
    before = learner.buffer.weights.clone()
    samples = []
    sample = learner.buffer.sample
    learner.buffer.sample = lambda size: samples.append(sample(size)) or samples[0]
    learner.learn()
    [drawn] = samples
    expected = (drawn["td_error"][:, 0].double() + learner.buffer.smallest_priority).sqrt()
    torch.testing.assert_close(learner.buffer.weights[drawn["index"]], expected)
    others = torch.ones(1000, dtype=torch.bool).index_fill(0, drawn["index"], False)
    assert learner.buffer.weights[others].equal(before[others])


def test_where_environments_start_anew_what_was_under_way_is_dropped(
    dqn: Any, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options = [*SHORT, "--env", "tritonrl/Forgetful-v0", "--n-step", "9"]
    with monkeypatch.context() as patch:
        stop_after(script, patch, 9, partial(signal.raise_signal, signal.SIGINT))
        assert dqn.main([*options, "--out", str(tmp_path)]) == 130
    assert "cannot be saved" in capsys.readouterr().err
    assert dqn.main(["--resume", str(tmp_path)]) == 0
    stored = torch.load(tmp_path / "checkpoint.pt", weights_only=False)["learner"]["buffer"]["storage"]
    steps = stored["next"]["observation"] - stored["observation"]  # the observation counts the steps of the episode
    assert steps.eq(stored["steps_to_next_obs"]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--env Pendulum-v1", "--env: Pendulum-v1 has actions Box"),
        ("--distributional --support 3 3", "--support: expected LOW < HIGH, got 3 3"),
        ("--distributional --atoms 1", "--atoms: expected an integer >= 2, got '1'"),
        ("--tau 0", "--tau: expected a number > 0 and <= 1, got '0'"),
        ("--n-step 0", "--n-step: expected an integer >= 1, got '0'"),
        ("--priority-alpha 2", "--priority-alpha: expected a number >= 0 and <= 1, got '2'"),
    ],
)
def test_a_bad_argument_gets_one_line_and_exit_code_2(
    dqn: Any, options: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        dqn.main([*options.split(), "--out", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and words in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_the_checkpoint_holds_cannot_change(dqn: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    dqn.main([*SHORT, "--total-steps", "120", "--out", str(tmp_path)])
    for option, words in (
        (["--n-step", "5"], "--n-step: the run to resume has 3, got 5"),
        (["--capacity", "100"], "--capacity: the run to resume has 50000, got 100"),
        (["--distributional"], "--distributional: the run to resume has False, got True"),
    ):
        with pytest.raises(SystemExit) as stop:
            dqn.main(["--resume", str(tmp_path), *option])
        assert stop.value.code == 2 and words in capsys.readouterr().err
