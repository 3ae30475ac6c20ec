"""Short runs of the examples: how to start and stop them, and when two of them are the same."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
ROLLOUTS = ["--total-steps", "480", "--num-envs", "4", "--rollout-steps", "24"]
SHORT = [*ROLLOUTS, "--epochs", "2", "--minibatch-size", "40"]


def metrics(folder: Path) -> list[dict[str, str]]:
    """What the run logged, less the seconds, which no run has twice."""
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
    envs = [pickle.loads(state["learner"]["environments"].pop("envs")) for state in states]
    for name in ("learner", "torch_rng"):
        assert_same(states[0][name], states[1][name])
    for one_env, other_env in zip(*envs, strict=True):  # the bytes may differ with the order of what pickle remembers
        one_env.action_space.seed(0)
        for _ in range(30):
            action = one_env.action_space.sample()
            results = [env.step(action) for env in (one_env, other_env)]
            assert_same(*results)
            if results[0][2] or results[0][3]:
                assert_same(*[env.reset() for env in (one_env, other_env)])


def stop_after(script: Callable[[str], Any], patch: pytest.MonkeyPatch, rows: int, stop: Callable[[], None]) -> None:
    """Call ``stop`` in the middle of an update: right after its row was logged."""
    training = script("common.training")

    class Log(training.RunLog):
        def add(self, row: dict[str, float]) -> None:
            super().add(row)
            if len(self.rows) == rows:
                stop()

    patch.setattr(training, "RunLog", Log)
