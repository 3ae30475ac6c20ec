"""The PPO example: it trains, writes what it says, resumes bit for bit, and refuses bad arguments in one line."""

from __future__ import annotations

import csv
import importlib
import json
import math
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils import EzPickle
from tensordict.nn import TensorDictModule

from tritonrl.objectives.value import GAE

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = ["--total-steps", "480", "--num-envs", "4", "--rollout-steps", "24", "--epochs", "2", "--minibatch-size", "40"]


class Corridor(gym.Env):
    """The observation counts the steps of the episode; every step pays 1. Action -1 (of -1, 0, 1) terminates."""

    observation_space = gym.spaces.Box(0, np.inf, (1,), np.float32)
    action_space = gym.spaces.Discrete(3, start=-1)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.position = 0
        return np.array([0.0], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.position += 1
        return np.array([self.position], np.float32), 1.0, bool(np.all(action == -1)), False, {}


class Forgetful(Corridor, EzPickle):
    """Like MuJoCo's environments: pickling keeps the constructor's arguments and nothing else."""

    position = 0


class Unbounded(Corridor):
    """Two actions without bounds, and one that has them."""

    action_space = gym.spaces.Box(
        np.array([-np.inf, 0, 10], np.float32), np.array([np.inf, np.inf, 20], np.float32), dtype=np.float32
    )


class ManyButtons(Corridor):
    """Actions of a kind that the examples don't support."""

    action_space = gym.spaces.MultiDiscrete([2, 3])  # type: ignore[assignment]


@pytest.fixture(scope="module", autouse=True)
def environments() -> Iterator[None]:
    for cls in (Corridor, Forgetful, Unbounded, ManyButtons):
        gym.register(f"tritonrl/{cls.__name__}-v0", cls, max_episode_steps=3)
    yield
    for cls in (Corridor, Forgetful, Unbounded, ManyButtons):
        del gym.registry[f"tritonrl/{cls.__name__}-v0"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The example sets the number of torch's threads for its process, which here is everyone's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ppo() -> Iterator[Any]:
    """The example as a module, imported as its own folder sees it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("ppo")
        for name in ("ppo", "common"):
            patch.delitem(sys.modules, name)


@pytest.fixture(scope="module")
def common(ppo: Any) -> Any:
    return sys.modules["common"]


def metrics(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same(one: Any, other: Any) -> None:
    """Equal to the last bit, through dicts, lists, tensors and arrays."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor | np.ndarray):
        assert one.dtype == other.dtype
        assert np.array_equal(np.asarray(one), np.asarray(other))
    else:
        assert one == other or (one != one and other != other)


def assert_same_run(one: Path, other: Path) -> None:
    """Same metrics, parameters, optimizer state, random numbers to come and episodes under way."""
    assert metrics(one) == metrics(other)
    states = [torch.load(folder / "checkpoint.pt", weights_only=False) for folder in (one, other)]
    envs = [pickle.loads(state["collector"].pop("envs")) for state in states]
    for name in ("agent", "collector", "torch_rng"):
        assert_same(states[0][name], states[1][name])
    for one_env, other_env in zip(*envs, strict=True):  # the bytes may differ with the order of what pickle remembers
        one_env.action_space.seed(0)
        for _ in range(30):
            action = one_env.action_space.sample()
            results = [env.step(action) for env in (one_env, other_env)]
            assert_same(*results)
            if results[0][2] or results[0][3]:
                assert_same(*[env.reset() for env in (one_env, other_env)])


def stop_after(ppo: Any, patch: pytest.MonkeyPatch, rows: int, stop: Callable[[], None]) -> None:
    """Call ``stop`` in the middle of an iteration: right after its row was logged."""

    class Log(ppo.RunLog):
        def add(self, row: dict[str, float]) -> None:
            super().add(row)
            if len(self.rows) == rows:
                stop()

    patch.setattr(ppo, "RunLog", Log)


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
    ppo: Any, env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    short = [*SHORT, "--env", env]
    ppo.main([*short, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_after(ppo, patch, 2, partial(signal.raise_signal, signal.SIGINT))
        assert ppo.main([*short, "--out", str(tmp_path / "parts")]) == 130
    assert "--resume" in capsys.readouterr().out
    assert len(metrics(tmp_path / "parts")) == 2
    assert ppo.main(["--resume", str(tmp_path / "parts")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_rows_logged_after_the_last_checkpoint_of_a_crashed_run_are_not_logged_twice(
    ppo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash() -> None:
        raise MemoryError

    ppo.main([*SHORT, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_after(ppo, patch, 3, crash)
        with pytest.raises(MemoryError):
            ppo.main([*SHORT, "--out", str(tmp_path / "parts"), "--save-every", "2"])
    assert len(metrics(tmp_path / "parts")) == 3
    ppo.main(["--resume", str(tmp_path / "parts" / "checkpoint.pt"), "--save-every", "20"])
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_second_interrupt_does_not_wait(ppo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    ppo.main([*SHORT, "--out", str(tmp_path)])
    assert (tmp_path / "checkpoint.pt").exists()
    before = signal.getsignal(signal.SIGINT)
    stop_after(ppo, monkeypatch, 2, twice)
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
    ppo: Any, common: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert common.pickles_exactly("tritonrl/Corridor-v0")
    assert not common.pickles_exactly("tritonrl/Forgetful-v0")
    with monkeypatch.context() as patch:
        stop_after(ppo, patch, 2, partial(signal.raise_signal, signal.SIGINT))
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


def test_the_example_needs_no_torchrl() -> None:
    code = "import sys, ppo; sys.exit('torchrl' in sys.modules)"
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


class Policy:
    """A stand-in for the actor that takes the given action of each step in every environment."""

    def __init__(self, actions: list[int], num_envs: int) -> None:
        self.actions, self.num_envs = iter(actions), num_envs

    def get_dist(self, row: Any) -> Policy:
        return self

    def sample(self) -> torch.Tensor:
        return torch.full((self.num_envs,), next(self.actions))

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        return torch.full((self.num_envs,), -0.5)


def corridor(ppo: Any, common: Any, actions: list[int], num_envs: int) -> Any:
    envs = common.make_envs(ppo.options(), "tritonrl/Corridor-v0", num_envs)
    collector = common.Collector(envs, "tritonrl/Corridor-v0", len(actions), 1.0, "cpu")
    collector.reset(0)
    collector.collect(Policy(actions, num_envs))
    return collector


def test_a_truncated_step_leads_to_the_true_final_observation(ppo: Any, common: Any) -> None:
    """Time limit 3. Action 0 of the policy is action -1 of the environment, which terminates."""
    collector = corridor(ppo, common, [1, 2, 1, 1, 0, 2, 1], 2)
    data = collector.data
    for n in range(2):
        assert data["observation"][:, n, 0].tolist() == [0, 1, 2, 0, 1, 0, 1]
        assert data["next", "observation"][:, n, 0].tolist() == [1, 2, 3, 1, 2, 1, 2]
        assert data["next", "done"][:, n, 0].tolist() == [False, False, True, False, True, False, False]
        assert data["next", "terminated"][:, n, 0].tolist() == [False, False, False, False, True, False, False]
    assert list(collector.finished) == [3, 3, 2, 2] and collector.episodes == 4
    assert collector.returns.tolist() == [2, 2]


def test_a_truncated_step_bootstraps_from_the_true_final_observation(ppo: Any, common: Any) -> None:
    data = corridor(ppo, common, [1, 2, 1, 1, 0, 2, 1], 3).data
    value = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(value.weight, 10.0)  # V(s) = 10 * steps + 1
    torch.nn.init.ones_(value.bias)
    critic = TensorDictModule(value, ["observation"], ["state_value"])
    GAE(gamma=0.5, lmbda=0.0, value_network=critic, time_dim=0)(data)
    # r + gamma V(s') - V(s), worked out by hand; step 2 is truncated at V = 31, step 4 terminated.
    expected = [1 + 5.5 - 1, 1 + 10.5 - 11, 1 + 15.5 - 21, 1 + 5.5 - 1, 1 - 11, 1 + 5.5 - 1, 1 + 10.5 - 11]
    torch.testing.assert_close(data["advantage"], torch.tensor(expected).view(7, 1, 1).expand(7, 3, 1))


def test_a_rollout_is_time_first_contiguous_and_stays_in_one_place(ppo: Any, common: Any) -> None:
    envs = common.make_envs(ppo.options(), "CartPole-v1", 5)
    actor, critic = common.make_networks(envs, 8)
    collector = common.Collector(envs, "CartPole-v1", 7, 0.5, "cpu")
    collector.reset(0)
    first = collector.collect(actor)
    keys = ["observation", "action", "action_log_prob"]
    keys += [("next", name) for name in ("observation", "reward", "done", "terminated")]
    places = [first[key].data_ptr() for key in keys]
    assert all(first[key].is_contiguous() and first[key].shape[:2] == (7, 5) for key in keys)
    assert len(set(places)) == len(places)
    critic(first)
    second = collector.collect(actor)
    assert [second[key].data_ptr() for key in keys] == places
    assert "state_value" in first and "state_value" not in second
    assert second["next", "reward"].eq(0.5).all()
    # A step goes on where the one before it ended, unless it ended an episode.
    goes_on = ~second["next", "done"][:-1, :, 0]
    assert second["observation"][1:][goes_on].equal(second["next", "observation"][:-1][goes_on])


def test_stored_log_probabilities_are_those_of_the_stored_actions(ppo: Any, common: Any) -> None:
    for env_id, shape in (("CartPole-v1", (6, 3)), ("Pendulum-v1", (6, 3, 1)), ("tritonrl/Unbounded-v0", (6, 3, 3))):
        envs = common.make_envs(ppo.options(), env_id, 3)
        actor, _ = common.make_networks(envs, 8)
        collector = common.Collector(envs, env_id, 6, 1.0, "cpu")
        collector.reset(0)
        data = collector.collect(actor)
        assert data["action"].shape == shape
        expected = actor.get_dist(data.clone()).log_prob(data["action"])
        torch.testing.assert_close(data["action_log_prob"], expected)


def test_box_actions_span_a_bounded_range_and_are_clipped_to_it(ppo: Any, common: Any) -> None:
    envs = common.make_envs(ppo.options(), "Pendulum-v1", 5)
    collector = common.Collector(envs, "Pendulum-v1", 1, 1.0, "cpu")
    sent = collector.to_env(torch.tensor([[-3.0], [-1.0], [0.25], [1.0], [7.0]]))
    assert sent.dtype == np.float32 and sent[:, 0].tolist() == [-2, -2, 0.5, 2, 2]
    envs = common.make_envs(ppo.options(), "tritonrl/Unbounded-v0", 2)
    collector = common.Collector(envs, "tritonrl/Unbounded-v0", 1, 1.0, "cpu")
    sent = collector.to_env(torch.tensor([[-30.0, -3.0, -1.0], [50.0, 5.0, 0.0]]))
    assert sent.tolist() == [[-30, 0, 10], [50, 5, 15]]


def test_discrete_actions_start_where_the_space_starts(ppo: Any, common: Any) -> None:
    envs = common.make_envs(ppo.options(), "tritonrl/Corridor-v0", 3)
    collector = common.Collector(envs, "tritonrl/Corridor-v0", 1, 1.0, "cpu")
    assert collector.to_env(torch.tensor([0, 1, 2])).tolist() == [-1, 0, 1]


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
