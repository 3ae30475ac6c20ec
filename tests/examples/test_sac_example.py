"""The SAC example and its relatives, REDQ and discrete SAC."""

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
SHORT = ["--total-steps", "240", "--num-envs", "4", "--steps-per-update", "6", "--gradient-steps", "2"]
SHORT += ["--warm-up", "60", "--batch-size", "16", "--hidden", "8"]
VARIANTS = {
    "plain": ["--n-step", "2", "--priority-alpha", "0.4"],
    "redq": ["--redq", "--critics", "3"],
    "discrete": ["--discrete", "--entropy-share", "0.5"],
}


@pytest.fixture
def sac(script: Script) -> Any:
    return script("sac")


def make(module: Any, tmp_path: Path, *options: str) -> Any:
    """A learner that is ready to start."""
    parser = module.options()
    learner = module.make_learner(parser, parser.parse_args([*SHORT, *options, "--out", str(tmp_path)]))
    learner.environments.reset(0)
    return learner


def refused(main: Callable[[list[str]], int], argv: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line with which the program ends."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1
    return err


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_short_training_writes_every_file(sac: Any, variant: str, tmp_path: Path) -> None:
    assert sac.main([*SHORT, *VARIANTS[variant], "--out", str(tmp_path)]) == 0
    rows = metrics(tmp_path)
    assert [int(row["step"]) for row in rows] == list(range(24, 241, 24))
    for row in rows[3:]:
        values = [float(row[name]) for name in ("loss_actor", "loss_qvalue", "loss_alpha", "alpha", "entropy")]
        assert all(math.isfinite(value) for value in values)
    assert all((tmp_path / file).stat().st_size for file in ("config.json", "learning_curve.png", "checkpoint.pt"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_was_interrupted_and_resumed_equals_one_that_was_not(
    sac: Any, script: Script, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alpha, the ensemble and its targets too; the run itself knows which relative it was."""
    options = [*SHORT, *VARIANTS[variant]]
    sac.main([*options, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_after(script, patch, 5, partial(signal.raise_signal, signal.SIGINT))
        assert sac.main([*options, "--out", str(tmp_path / "parts")]) == 130
    assert len(metrics(tmp_path / "parts")) == 5
    assert sac.main(["--resume", str(tmp_path / "parts")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_relative_has_its_own_defaults_which_an_option_overrides(
    sac: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(sac, "run", lambda parser, make, argv: seen.append(parser.parse_args(argv)) or 0)
    for argv in ([], ["--redq"], ["--discrete"], ["--gamma", "0.5", "--discrete", "--env", "Acrobot-v1"]):
        sac.main(argv)
    assert [args.env for args in seen] == ["Pendulum-v1", "Pendulum-v1", "CartPole-v1", "Acrobot-v1"]
    assert seen[1].total_steps < seen[0].total_steps and seen[3].gamma == 0.5


def test_settings_that_do_not_go_together_are_refused_in_one_line(
    sac: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = ["--out", str(tmp_path)]
    assert "not allowed with" in refused(sac.main, ["--redq", "--discrete", *out], capsys)
    assert "expected a Box" in refused(sac.main, ["--env", "CartPole-v1", *out], capsys)
    assert "expected Discrete" in refused(sac.main, ["--discrete", "--env", "Pendulum-v1", *out], capsys)
    assert not list(tmp_path.iterdir())
    sac.main([*SHORT, *out])
    assert "the run to resume has False, got True" in refused(sac.main, ["--resume", str(tmp_path), "--redq"], capsys)


def test_redq_has_as_many_critics_as_asked_for(sac: Any, tmp_path: Path) -> None:
    loss = make(sac, tmp_path, "--redq", "--critics", "3").loss
    assert {len(parameter) for parameter in loss.qvalue_network_params.parameters()} == {3}


def test_actions_are_drawn_and_lie_within_the_bounds(sac: Any, tmp_path: Path) -> None:
    learner = make(sac, tmp_path)
    observation = torch.randn(500, 3)
    actions = [learner.act(observation, 0.0) for _ in range(2)]
    assert actions[0].shape == (500, 1) and (actions[0] != actions[1]).all() and (actions[0].abs() < 1).all()


@pytest.mark.parametrize("relative", [[], ["--redq", "--critics", "3"]])
def test_the_policy_finds_the_action_that_pays_most(sac: Any, relative: list[str], tmp_path: Path) -> None:
    """Episodes of one step that pays ``-3 * (a - 0.5) ** 2``, so that 0.5 is best wherever one is."""
    options = ["--batch-size", "64", "--hidden", "32", "--learning-rate", "1e-2", "--alpha", "0.1", *relative]
    learner = make(sac, tmp_path, *options)
    torch.manual_seed(0)
    action, ends = torch.empty(500, 1).uniform_(-1, 1), torch.ones(500, 1, dtype=torch.bool)
    following = {"observation": torch.randn(500, 3), "terminated": ends, "done": ends}
    following["reward"] = -3 * (action - 0.5).square()
    learner.buffer.add(
        TensorDict({"observation": torch.randn(500, 3), "action": action, "next": TensorDict(following, [500])}, [500])
    )
    for _ in range(170):
        learner.learn()
    found = torch.tanh(learner.actor.get_dist(TensorDict({"observation": torch.randn(200, 3)}, [200])).base_dist.mean)
    assert (found - 0.5).abs().mean() < 0.25  # 0.5 at first, and where tanh saturates


def test_discrete_sac_soon_avoids_the_action_that_ends_the_episode(sac: Any, tmp_path: Path) -> None:
    """Every step of the corridor pays 1, and action 0 ends it; otherwise the time limit does, after 3 steps."""
    options = ["--learning-rate", "1e-2", "--tau", "0.1", "--hidden", "32", "--gamma", "0.9", "--gradient-steps", "10"]
    learner = make(sac, tmp_path, "--discrete", "--env", "tritonrl/Corridor-v0", *options)
    torch.manual_seed(0)
    for _ in range(15):
        learner.update(0.0)
    observation = torch.tensor([[0.0], [1.0], [2.0]])
    policy = learner.actor.get_dist(TensorDict({"observation": observation}, [3]))
    assert (policy.probs[:, 0] < 0.2).all()
