"""Environments that the tests of the examples step by hand."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle


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
    """Actions of a kind that only teams have."""

    action_space = gym.spaces.MultiDiscrete([2, 3])  # type: ignore[assignment]


class Pull(Corridor):
    """Every step pays its action, from -2 to 2: the best policy pulls as hard as it may."""

    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)  # type: ignore[assignment]

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation, _, _, truncated, info = super().step(action)
        return observation, float(action[0]), False, truncated, info


ALL = {f"tritonrl/{cls.__name__}-v0": cls for cls in (Corridor, Forgetful, Unbounded, ManyButtons, Pull)}
