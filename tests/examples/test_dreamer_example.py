"""Dreamer: what is its own, from the memory of the policy to the clock on the returns."""

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

from .runs import assert_same, assert_same_run, metrics, stop_after

Script = Callable[[str], Any]
TINY = ["--hidden", "16", "--state-size", "3", "--batch-size", "5", "--sequence-length", "6", "--horizon", "4"]
SMALL = [*TINY, "--steps-per-update", "10", "--action-repeat", "2"]
SHORT = [*SMALL, "--total-steps", "240", "--num-envs", "2", "--warm-up", "60", "--gradient-steps", "2"]


def make_learner(script: Script, tmp_path: Path, *options: str) -> Any:
    module = script("dreamer")
    parser = module.options()
    torch.manual_seed(0)
    learner = module.Dreamer(parser, parser.parse_args([*SMALL, "--out", str(tmp_path), *options]))
    learner.environments.reset(0)
    return learner


@pytest.fixture
def learner(script: Script, tmp_path: Path) -> Any:
    """A Dreamer that has seen 2 x 30 actions."""
    learner = make_learner(script, tmp_path, "--num-envs", "2", "--warm-up", "40")
    for _ in range(30):
        learner.buffer.add(learner.step())
    return learner


# -- a run --------------------------------------------------------------------------------------------------------------


def test_a_short_training_writes_every_file(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert script("dreamer").main([*SHORT, "--out", str(tmp_path)]) == 0
    rows = metrics(tmp_path)
    assert [int(row["step"]) for row in rows] == [40, 80, 120, 160, 200, 240]
    logged = script("dreamer").Dreamer.logged
    assert all(math.isnan(float(rows[0][name])) for name in logged)  # random actions, nothing learnt
    assert all(math.isfinite(float(row[name])) for row in rows[1:] for name in logged)
    for row in rows[1:]:
        parts = [float(row[f"loss_model_{part}"]) for part in ("kl", "reco", "reward")]
        assert float(row["loss_model"]) == pytest.approx(sum(parts), rel=1e-5)
    assert all((tmp_path / file).stat().st_size for file in ("config.json", "learning_curve.png", "checkpoint.pt"))
    out = capsys.readouterr().out
    assert "TD(lambda) returns, forward" in out and "TD(lambda) returns, backward" in out


def test_the_plot_shows_the_return_and_the_loss_of_the_world_model(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_log, figures = script("common.run_log"), []

    class Figure(run_log.Figure):
        def savefig(self, *args: Any, **kwargs: Any) -> None:
            figures.append(self)

    monkeypatch.setattr(run_log, "Figure", Figure)
    script("dreamer").main([*SHORT, "--total-steps", "120", "--out", str(tmp_path)])
    [figure], rows = figures, metrics(tmp_path)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "mean return of the last 10 episodes",
        "loss of the world model",
    ]
    for axes, name in zip(figure.axes, ("return", "loss_model"), strict=True):
        [line] = axes.lines
        assert line.get_xdata().tolist() == [40, 80, 120]
        assert line.get_ydata().tolist() == pytest.approx([float(row[name]) for row in rows], nan_ok=True)


def test_stop_at_counts_the_episodes_that_dreamer_remembers(script: Script, tmp_path: Path) -> None:
    """Two environments, whose episodes are two actions long, each of which pays 1 for a step: ten after five rounds."""
    options = ["--env", "tritonrl/Unbounded-v0", "--num-envs", "2", "--steps-per-update", "2", "--stop-at", "3"]
    script("dreamer").main([*SHORT, *options, "--warm-up", "1000", "--out", str(tmp_path)])
    assert [int(row["episodes"]) for row in metrics(tmp_path)] == [2, 4, 6, 8, 10]


def test_a_run_that_was_interrupted_and_resumed_equals_one_that_was_not(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    main = script("dreamer").main
    main([*SHORT, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_after(script, patch, 3, partial(signal.raise_signal, signal.SIGINT))
        assert main([*SHORT, "--out", str(tmp_path / "parts")]) == 130
    assert "continue with: python examples/dreamer.py --resume" in capsys.readouterr().out
    assert len(metrics(tmp_path / "parts")) == 3
    assert main(["--resume", str(tmp_path / "parts")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_loss_of_the_world_model_halves_in_a_few_seconds(learner: Any) -> None:
    first, *rest = [learner.learn()["loss_model"].item() for _ in range(80)]
    assert sum(rest[-10:]) / 10 < first / 2


def test_discrete_actions_are_refused_in_one_line(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        script("dreamer").main([*SHORT, "--env", "CartPole-v1", "--out", str(tmp_path)])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "expected a Box of floats" in err and err.count("\n") == 1


@pytest.mark.parametrize("setting", ["state-size", "action-repeat", "capacity"])
def test_what_the_checkpoint_fixes_cannot_be_changed_on_resume(
    script: Script, tmp_path: Path, setting: str, capsys: pytest.CaptureFixture
) -> None:
    script("dreamer").main([*SHORT, "--total-steps", "40", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        script("dreamer").main(["--resume", str(tmp_path), f"--{setting}", "77"])
    assert stop.value.code == 2 and f"argument --{setting}: the run to resume has" in capsys.readouterr().err


# -- steps and memory ---------------------------------------------------------------------------------------------------


def test_an_action_is_repeated_until_its_time_or_the_episode_is_over(common: Any) -> None:
    """An episode is 3 steps, each pays 1, and the observation counts them."""
    env = common.ActionRepeat.make("tritonrl/Corridor-v0", times=2)
    env.reset()
    first, second = env.step(0), env.step(0)
    assert (first[0].item(), *first[1:4]) == (2, 2.0, False, False)
    assert (second[0].item(), *second[1:4]) == (3, 1.0, False, True)


def test_what_is_stored_says_where_episodes_begin_and_keeps_their_last_observations(
    script: Script, tmp_path: Path
) -> None:
    options = ["--env", "tritonrl/Unbounded-v0", "--num-envs", "2", "--reward-scale", "10"]
    learner = make_learner(script, tmp_path, *options)
    rows = torch.cat([learner.step() for _ in range(4)])  # two episodes of two actions, of 2 steps and 1
    for lane in range(2):
        lane_rows = rows.apply(lambda entry, lane=lane: entry[:, lane, 0])
        assert lane_rows["observation"].tolist() == [0, 2, 0, 2]
        assert lane_rows["next", "observation"].tolist() == [2, 3, 2, 3]
        assert lane_rows["next", "reward"].tolist() == [20, 10, 20, 10]
        assert lane_rows["is_init"].tolist() == [True, False, True, False]


def test_the_policy_remembers_what_the_world_model_infers_from_what_is_stored(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the end of an episode too. States are compared without their noise, or rather with noise of zero."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    learner = make_learner(script, tmp_path, "--env", "tritonrl/Unbounded-v0", "--num-envs", "3")
    stored, remembered = [], []
    for _ in range(7):
        stored.append(learner.step())
        remembered.append(learner.memory.select("state", "belief"))
        learner.memory = learner.memory.clone()
    sequences = torch.cat(stored).apply(lambda entry: entry.transpose(0, 1), batch_size=[3, 7])
    with torch.no_grad():
        inferred = learner.networks.world_model(sequences)
    expected = torch.stack(remembered, 1)
    assert expected["belief"].abs().amax((0, 2)).gt(0).tolist() == [False, True, False, True, False, True, False]
    for name in ("state", "belief"):
        torch.testing.assert_close(inferred[name], expected[name])


def test_a_new_episode_does_not_depend_on_the_one_before(learner: Any) -> None:
    networks, observation = learner.networks, torch.randn(2, 3)
    memories = [networks.nothing(2), networks.nothing(2)]
    for name in ("state", "belief", "action"):
        memories[1][name] = torch.randn_like(memories[1][name])
    memories[1]["state"][0] = math.nan  # even so
    for memory in memories:
        torch.manual_seed(3)
        networks.observe(memory, observation)
    for name in ("state", "belief"):
        assert memories[0][name].equal(memories[1][name])


def test_warming_up_is_counted_in_environment_steps(script: Script, tmp_path: Path) -> None:
    learner = make_learner(script, tmp_path, "--num-envs", "3", "--warm-up", "60", "--action-repeat", "4")
    before = []
    for _ in range(8):
        before.append(learner.warming_up)
        learner.buffer.add(learner.step())
    assert before == [True] * 6 + [False] * 2  # 5 x 3 x 4 = 60, but a piece is 6 actions long
    learner = make_learner(script, tmp_path, "--num-envs", "2", "--warm-up", "44", "--action-repeat", "2")
    for _ in range(11):
        assert learner.warming_up
        learner.buffer.add(learner.step())
    assert not learner.warming_up


# -- learning -----------------------------------------------------------------------------------------------------------


def test_each_loss_moves_its_own_networks_and_no_others(learner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = learner.networks
    parts = {"model": networks.world_model, "actor": networks.actor, "value": networks.value}
    names = {id(p): part for part, network in parts.items() for p in network.parameters()}
    assert names.keys() == {id(p) for p in networks.parameters()}  # they share none, and there are no others
    moved: list[set[str]] = []

    def descend(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        before = {id(p): p.detach().clone() for p in networks.parameters()}
        type(learner).descend(learner, loss, optimizer)
        changed = [p for p in networks.parameters() if not p.equal(before[id(p)])]
        moved.append({names[id(p)] for p in changed})
        assert len(changed) > 0.8 * sum(part in moved[-1] for part in names.values())

    monkeypatch.setattr(learner, "descend", descend)
    learner.learn()
    assert moved == [{"model"}, {"actor"}, {"value"}]


def test_the_clock_on_the_returns_does_not_change_the_loss_or_its_gradient(learner: Any) -> None:
    start = TensorDict({"state": torch.randn(7, 3), "belief": torch.randn(7, 16)}, [7])
    results = []
    for clock in (learner.clock, None):
        learner.actor_loss.timed_by(clock)
        learner.actor_optimizer.zero_grad()
        torch.manual_seed(5)
        losses, imagined = learner.actor_loss(start)
        losses["loss_actor"].backward()
        gradients = [p.grad for p in learner.networks.actor.parameters()]
        results.append([losses["loss_actor"].detach(), imagined["lambda_target"], gradients])
    assert_same(*results)
    assert results[0][2][0].abs().sum() > 0


def test_the_returns_and_their_gradient_are_timed_within_the_policys_share(learner: Any) -> None:
    learner.learn()
    seconds = learner.clock.seconds
    assert 0 < seconds["returns backward"] < seconds["actor"]
    assert 0 < seconds["first kernel call"] < seconds["returns"] < seconds["actor"]
    learner.learn()
    assert 0 < seconds["kernels"] < seconds["returns"] - seconds["first kernel call"]


def test_the_returns_are_those_of_the_rewards_that_the_world_model_imagines(learner: Any) -> None:
    """TD(lambda) worked out backwards in double precision, with the discounts of the options."""
    start = TensorDict({"state": torch.randn(7, 3), "belief": torch.randn(7, 16)}, [7])
    _, imagined = learner.actor_loss(start)
    with torch.no_grad():
        value = learner.networks.value(imagined["next"].select("state", "belief"))["state_value"].double()
    reward, target = imagined["next", "reward"].double(), value[:, -1]
    gamma, lmbda = learner.args.gamma, learner.args.td_lambda
    assert imagined.shape == (7, 4) and imagined["lambda_target"].shape == (7, 4, 1)
    for t in reversed(range(4)):
        target = reward[:, t] + gamma * ((1 - lmbda) * value[:, t] + lmbda * target)
        torch.testing.assert_close(imagined["lambda_target"][:, t].double(), target, rtol=1e-5, atol=1e-5)


def test_in_a_compiled_loss_there_is_no_clock_and_the_report_does_not_tell_of_one(
    script: Script, tmp_path: Path
) -> None:
    for options, timed in (([], True), (["--compile"], False)):
        learner = make_learner(script, tmp_path, *options)
        assert (learner.actor_loss.clock is learner.clock) == timed and (learner.actor_loss.clock is None) != timed
        assert ("returns" in learner.phases) == ("returns backward" in learner.phases) == timed
