"""TD3 and DDPG: what is their own beside the loop that they share with DQN."""

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
SHORT = ["--total-steps", "240", "--num-envs", "3", "--steps-per-update", "5", "--gradient-steps", "3"]
SHORT += ["--warm-up", "60", "--batch-size", "16", "--hidden", "8"]


@pytest.fixture
def td3(script: Script) -> Any:
    return script("td3")


def make(module: Any, tmp_path: Path, *options: str) -> Any:
    """A learner with something to learn from."""
    parser = module.options()
    learner = module.make_learner(parser, parser.parse_args([*SHORT, *options, "--out", str(tmp_path)]))
    torch.manual_seed(0)
    learner.environments.reset(0)
    while learner.warming_up:
        learner.collect(0.0)
    return learner


@pytest.mark.parametrize(
    ("options", "critic"), [([], "loss_qvalue"), (["--ddpg", "--n-step", "3", "--priority-alpha", "0.3"], "loss_value")]
)
def test_a_short_training_writes_every_file(td3: Any, options: list[str], critic: str, tmp_path: Path) -> None:
    assert td3.main([*SHORT, *options, "--out", str(tmp_path)]) == 0
    rows = metrics(tmp_path)
    assert [int(row["step"]) for row in rows] == list(range(15, 241, 15))
    for row in rows[5:]:
        assert all(math.isfinite(float(row[name])) for name in ("loss_actor", critic))
    assert all((tmp_path / file).stat().st_size for file in ("config.json", "learning_curve.png", "checkpoint.pt"))


@pytest.mark.parametrize("options", [[], ["--ddpg"]])
def test_a_run_that_was_interrupted_and_resumed_equals_one_that_was_not(
    td3: Any, script: Script, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An odd number of gradient steps lies behind: whose turn it is has to be saved too."""
    td3.main([*SHORT, *options, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_after(script, patch, 8, partial(signal.raise_signal, signal.SIGINT))
        assert td3.main([*SHORT, *options, "--out", str(tmp_path / "parts")]) == 130
    state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=False)["learner"]
    assert state["gradient_steps"] % 2
    assert td3.main(["--resume", str(tmp_path / "parts")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_policy_and_targets_move_with_every_third_step_of_the_critics(td3: Any, tmp_path: Path) -> None:
    learner = make(td3, tmp_path, "--policy-delay", "3")
    moved = []
    for _ in range(7):
        before = {name: value.clone() for name, value in learner.loss.state_dict().items()}
        learner.learn()
        after = learner.loss.state_dict()
        changed = {name.split("_params")[0] for name in before if not before[name].equal(after[name])}
        moved.append(changed)
    critics = {"qvalue_network"}
    everything = critics | {"actor_network", "target_actor_network", "target_qvalue_network"}
    assert moved == [critics, critics, everything, critics, critics, everything, critics]


def test_ddpg_moves_everything_every_time(td3: Any, tmp_path: Path) -> None:
    learner = make(td3, tmp_path, "--ddpg")
    before = {name: value.clone() for name, value in learner.loss.state_dict().items()}
    learner.learn()
    after = learner.loss.state_dict()
    changed = {name.split("_params")[0] for name in before if not before[name].equal(after[name])}
    assert changed == {"actor_network", "value_network", "target_actor_network", "target_value_network"}


def test_exploration_is_as_wide_as_it_was_asked_to_be_and_stays_within_bounds(td3: Any, tmp_path: Path) -> None:
    learner = make(td3, tmp_path, "--noise", "0.25")
    observation = torch.randn(1, 3).expand(4000, 3)
    mean = learner.actor(TensorDict({"observation": observation}, [4000]))["action"].detach()
    with torch.no_grad():
        action = learner.act(observation, 0.5)
    assert action.shape == (4000, 1) and action.abs().max() <= 1
    assert mean.abs().max() < 0.4  # far from the bounds, at first
    assert abs((action - mean).std().item() - 0.25) < 0.02


@pytest.mark.parametrize("options", [[], ["--ddpg"]])
def test_the_best_action_is_soon_found(td3: Any, options: list[str], tmp_path: Path) -> None:
    """It is the upper bound, which for the policy is 1."""
    env = ["--env", "tritonrl/Pull-v0", "--gamma", "0.5", "--reward-scale", "1", "--hidden", "32"]
    learner = make(td3, tmp_path, *env, "--warm-up", "200", "--learning-rate", "3e-3", "--tau", "0.1", *options)
    for _ in range(25):
        learner.update(0.0)
    observation = torch.tensor([[0.0], [1.0], [2.0]])
    action = learner.actor(TensorDict({"observation": observation}, [3]))["action"]
    assert (action > 0.9).all()


def test_discrete_actions_are_refused_in_one_line(td3: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        td3.main([*SHORT, "--env", "CartPole-v1", "--out", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1
    assert "CartPole-v1 has actions Discrete(2), expected a Box of floats" in err
