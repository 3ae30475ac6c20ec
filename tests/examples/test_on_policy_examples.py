"""A2C, REINFORCE and multi-agent PPO: what is their own beside the loop that they share with PPO."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from .runs import ROLLOUTS, SHORT, assert_same_run, metrics, stop_after

RUNS = {"a2c": ROLLOUTS, "reinforce": ROLLOUTS, "ppo_multiagent": SHORT}
Script = Callable[[str], Any]


@pytest.mark.parametrize("name", RUNS)
def test_a_short_training_writes_every_file(
    script: Script, name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert script(name).main([*RUNS[name], "--out", str(tmp_path)]) == 0
    rows = metrics(tmp_path)
    assert [int(row["step"]) for row in rows] == [96, 192, 288, 384, 480]
    for row in rows:
        assert all(math.isfinite(float(value)) for name, value in row.items() if name != "return")
    assert all((tmp_path / file).stat().st_size for file in ("config.json", "learning_curve.png", "checkpoint.pt"))
    estimator = {"a2c": "GAE", "reinforce": "TD1Estimator", "ppo_multiagent": "MultiAgentGAE"}[name]
    assert f"estimator: {estimator}, its calls" in capsys.readouterr().out


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_interrupted_and_resumed_equals_one_that_was_not(
    script: Script, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    main = script(name).main
    main([*RUNS[name], "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_after(script, patch, 2, partial(signal.raise_signal, signal.SIGINT))
        assert main([*RUNS[name], "--out", str(tmp_path / "parts")]) == 130
    assert f"continue with: python examples/{name}.py --resume" in capsys.readouterr().out
    assert len(metrics(tmp_path / "parts")) == 2
    assert main(["--resume", str(tmp_path / "parts")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("name", ["a2c", "reinforce"])
def test_actions_from_a_box_are_learnt_too(script: Script, name: str, tmp_path: Path) -> None:
    assert script(name).main([*RUNS[name], "--env", "Pendulum-v1", "--out", str(tmp_path)]) == 0
    assert len(metrics(tmp_path)) == 5


def test_each_example_resumes_its_own_runs_only(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    script("a2c").main([*ROLLOUTS, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        script("reinforce").main(["--resume", str(tmp_path)])
    assert stop.value.code == 2
    assert "was written by a2c.py, not by reinforce.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a2c", ["--total-steps", "12000", "--num-envs", "16", "--learning-rate", "1e-2"]),
        (
            "reinforce",
            ["--total-steps", "16000", "--num-envs", "16", "--rollout-steps", "64", "--learning-rate", "2e-2"],
        ),
    ],
)
def test_the_return_on_cartpole_doubles_in_a_few_seconds(
    script: Script, name: str, options: list[str], tmp_path: Path
) -> None:
    """A policy that has learnt nothing keeps the pole up for about 22 steps."""
    script(name).main([*options, "--out", str(tmp_path)])
    assert float(metrics(tmp_path)[-1]["return"]) > 44


def test_a2c_without_an_entropy_bonus_neither_computes_nor_logs_it(script: Script, tmp_path: Path) -> None:
    for folder, coefficient in (("without", "0"), ("with", "0.01")):
        script("a2c").main([*ROLLOUTS, "--entropy-coeff", coefficient, "--out", str(tmp_path / folder)])
    without, with_bonus = metrics(tmp_path / "without")[0], metrics(tmp_path / "with")[0]
    assert with_bonus.keys() - without.keys() == {"entropy", "loss_entropy"}
    assert float(with_bonus["loss_entropy"]) == pytest.approx(-0.01 * float(with_bonus["entropy"]))


def test_reinforce_learns_from_the_returns_of_whole_episodes(script: Script, common: Any, tmp_path: Path) -> None:
    module = script("reinforce")
    options = ["--gamma", "0.5", "--num-envs", "2", "--rollout-steps", "60", "--reward-scale", "1"]
    parser = module.options()
    learner = module.Reinforce(parser, parser.parse_args([*options, "--out", str(tmp_path)]))
    learner.environments.reset(5)
    data = learner.collector.collect(learner.actor)
    learner.estimator(data)
    terminated = data["next", "terminated"][..., 0]
    assert terminated.any(0).all()
    for lane in range(2):
        last = int(terminated[:, lane].nonzero()[-1])  # the steps behind it are of an episode that the rollout cuts
        expected = 0.0
        for t in range(last, -1, -1):
            expected = 1.0 if terminated[t, lane] else 1.0 + 0.5 * expected
            assert data["value_target"][t, lane].item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(data["advantage"], data["value_target"] - data["state_value"])


@pytest.fixture
def team(script: Script, tmp_path: Path) -> Any:
    """A multi-agent learner in its first episodes: 3 environments, 50 steps."""
    module = script("ppo_multiagent")
    parser = module.options()
    options = ["--num-envs", "3", "--rollout-steps", "50", "--gamma", "0.9", "--out", str(tmp_path)]
    learner = module.MultiAgentPPO(parser, parser.parse_args(options))
    learner.environments.reset(0)
    return learner


def test_the_team_has_one_reward_and_each_agent_an_advantage(team: Any) -> None:
    """GAE worked out step by step for each agent: its own values, the team's rewards and ends of episodes."""
    data = team.collector.collect(team.actor)
    team.estimator(data)
    assert data["next", "reward"].shape == (50, 3, 1) and data["agents", "advantage"].shape == (50, 3, 2, 1)
    assert data["next", "terminated"].any()
    value, after = data["agents", "state_value"].double(), data["next", "agents", "state_value"].double()
    gamma, lmbda = team.args.gamma, team.args.gae_lambda
    for lane in range(3):
        for agent in range(2):
            advantage = 0.0
            for t in range(49, -1, -1):
                ends = bool(data["next", "done"][t, lane])
                goes_on = not data["next", "terminated"][t, lane]
                error = 1 + gamma * goes_on * after[t, lane, agent].item() - value[t, lane, agent].item()
                advantage = error + gamma * lmbda * (not ends) * advantage
                assert data["agents", "advantage"][t, lane, agent].item() == pytest.approx(advantage, abs=1e-4)


def test_an_agent_acts_on_what_it_sees_itself_and_the_critic_sees_all(team: Any) -> None:
    data = team.collector.collect(team.actor).clone()
    changed = data.clone()
    changed["agents", "observation"][..., 1, 2:] += 1  # what the second agent sees
    logits = [team.actor.get_dist(x).logits for x in (data, changed)]
    assert logits[0][..., 0, :].equal(logits[1][..., 0, :]) and not logits[0][..., 1, :].equal(logits[1][..., 1, :])
    values = [team.critic(x)["agents", "state_value"] for x in (data, changed)]
    assert (values[0] != values[1]).all()


def test_each_agents_advantage_has_statistics_of_its_own(team: Any) -> None:
    """So it makes no difference to the policy's loss when the advantages of one agent are ten times as large."""
    data = team.collector.collect(team.actor)
    team.estimator(data)
    batch = data.select("agents").reshape(-1)
    scaled = batch.clone()
    scaled["agents", "advantage"] *= torch.tensor([1.0, 10.0]).view(2, 1)
    losses = [team.loss(x)["loss_objective"] for x in (batch, scaled)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_an_environment_without_agents_is_refused_in_one_line(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for env_id, words in (
        ("CartPole-v1", "CartPole-v1 has actions Discrete(2), expected MultiDiscrete"),
        ("tritonrl/ManyButtons-v0", "expected observations [agents, features]"),
    ):
        with pytest.raises(SystemExit) as stop:
            script("ppo_multiagent").main([*SHORT, "--env", env_id, "--out", str(tmp_path / "run")])
        err = capsys.readouterr().err
        assert stop.value.code == 2 and words in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
