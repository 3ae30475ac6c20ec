"""Gymnasium environments: making them, stepping N of them side by side, and saving them in mid-episode."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from .options import Parser

Maker = Callable[[str], gym.Env]
KINDS = {gym.spaces.Discrete: "Discrete", gym.spaces.Box: "a Box of floats", gym.spaces.MultiDiscrete: "MultiDiscrete"}


class Flat(gym.ObservationWrapper):
    """Observations as vectors (one-hot where they are Discrete). Gymnasium's own wrapper cannot be pickled."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.flatten_space(env.observation_space)

    def observation(self, observation: Any) -> Any:
        return gym.spaces.flatten(self.env.observation_space, observation)


class ActionRepeat(gym.Wrapper):
    """Takes each action for a number of steps, or until the episode ends; the rewards are summed."""

    def __init__(self, env: gym.Env, times: int) -> None:
        super().__init__(env)
        self.times = times

    @classmethod
    def make(cls, env_id: str, times: int) -> ActionRepeat:
        """``make_env``, and this around it: with ``partial``, a maker for ``make_envs``."""
        return cls(make_env(env_id), times)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.times):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def make_env(env_id: str) -> gym.Env:
    """One environment whose observations are vectors."""
    env = gym.make(env_id, disable_env_checker=True)
    space = env.observation_space
    return env if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 else Flat(env)


def make_envs(
    parser: Parser,
    env_id: str,
    num_envs: int,
    maker: Maker = make_env,
    kinds: tuple[type[gym.Space], ...] = (gym.spaces.Discrete, gym.spaces.Box),
) -> SyncVectorEnv:
    """``num_envs`` environments that start a new episode within the step that ends the old one.

    ``SAME_STEP`` matters: the step that ends an episode then returns the first observation of the next episode *and*
    the true last one, as ``infos["final_obs"]``. Its value is what a truncated step bootstraps from. In Gymnasium's
    default mode one step in every episode would be a reset that must not be learnt from.

    ``kinds`` are the action spaces that the example can learn in. What cannot be made ends the program in one line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what is too old to run is an error, and one line
            makers = [partial(maker, env_id)] * num_envs
            envs = SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    except Exception as error:  # unknown id, missing package, unflattenable observations, ...
        parser.error(f"argument --env: cannot make {env_id!r}: {str(error).strip().splitlines()[0]}")
    space, observations = envs.single_action_space, envs.single_observation_space
    if not isinstance(space, kinds) or (
        isinstance(space, gym.spaces.Box) and not np.issubdtype(space.dtype, np.floating)
    ):
        expected = " or ".join(KINDS[kind] for kind in kinds)
        parser.error(f"argument --env: {env_id} has actions {space}, expected {expected}")
    if not isinstance(observations, gym.spaces.Box):
        parser.error(f"argument --env: {env_id} has observations {observations} that do not flatten to a vector")
    return envs


def pickles_exactly(env_id: str, maker: Maker = make_env, steps: int = 10) -> bool:
    """Try out whether a pickled environment goes on as the original does.

    ``EzPickle`` (MuJoCo and Box2D environments) pickles without an error but keeps the constructor's arguments only.
    """
    with maker(env_id) as env:
        env.action_space.seed(0)
        env.reset(seed=0)
        for _ in range(steps):  # at every step, because a lost state can look like a kept one right after a reset
            action = env.action_space.sample()
            try:
                twin = pickle.loads(pickle.dumps(env))
                observation, *rest = step_or_reset(twin, action)
            except Exception:
                return False
            expected, *expected_rest = step_or_reset(env, action)
            if not np.array_equal(observation, expected) or rest != expected_rest:
                return False
    return True


def step_or_reset(env: gym.Env, action: Any) -> tuple[Any, float, bool, bool]:
    """One step; where it ended an episode, the first observation of the next one stands for its last."""
    observation, reward, terminated, truncated, _ = env.step(action)
    return env.reset()[0] if terminated or truncated else observation, float(reward), terminated, truncated


class Transition(NamedTuple):
    """What one step of N environments led to; arrays ``[N, ...]``."""

    observation: np.ndarray
    """The true next observation: the last of its episode where one ended, not the first of the next episode."""
    reward: np.ndarray
    terminated: np.ndarray
    """The task ended: there is no value after it."""
    done: np.ndarray
    """Terminated, or truncated by a time limit: the value goes on, the data do not."""


class Environments:
    """N environments side by side, and the returns of their episodes, of which the last ``window`` are remembered.

    ``observation`` ``[N, ...]`` is what the next action is chosen from. It is overwritten by the next step.
    """

    def __init__(self, envs: SyncVectorEnv, *, exact: bool, window: int = 100) -> None:
        self.envs, self.exact = envs, exact
        self.observation = np.zeros(0)
        self.returns = np.zeros(envs.num_envs)
        self.finished: deque[float] = deque(maxlen=window)
        self.episodes = 0

    def __len__(self) -> int:
        return self.envs.num_envs

    @property
    def action_space(self) -> gym.Space:
        """The actions of one environment."""
        return self.envs.single_action_space

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """The shape of the observation of one environment."""
        shape = self.envs.single_observation_space.shape
        assert shape is not None  # `make_envs` lets only boxes in
        return shape

    def empty_actions(self, *shape: int) -> Tensor:
        """Zeros in the shape and dtype of the policy's actions: ``[*shape]`` integers, ``[*shape, A]`` otherwise."""
        space = self.action_space
        if isinstance(space, gym.spaces.Box):
            return torch.zeros(*shape, gym.spaces.flatdim(space))
        assert space.shape is not None
        return torch.zeros(*shape, *space.shape, dtype=torch.int64)

    def reset(self, seed: int) -> None:
        """Start new episodes everywhere."""
        self.observation, _ = self.envs.reset(seed=seed)
        self.returns[:] = 0

    def step(self, action: Tensor) -> Transition:
        """Take the policy's ``action``; where an episode ends, start the next."""
        self.observation, reward, terminated, truncated, infos = self.envs.step(self.to_env(action))
        done = terminated | truncated
        self._count(reward, done)
        return Transition(self._true_next(done, infos), reward, terminated, done)

    def to_env(self, action: Tensor) -> np.ndarray:
        """The policy's actions as the environments want them; real ones are clipped to the bounds here."""
        space, array = self.action_space, action.cpu().numpy()
        if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
            return array + space.start
        assert isinstance(space, gym.spaces.Box)
        bounded = np.isfinite(space.high) & np.isfinite(space.low)  # [-1, 1] spans the range of a bounded entry
        low, high = np.where(bounded, space.low, -1), np.where(bounded, space.high, 1)
        array = (low + high) / 2 + (high - low) / 2 * array.reshape(-1, *space.low.shape)
        return array.clip(space.low, space.high).astype(space.dtype)

    def _true_next(self, done: np.ndarray, infos: dict[str, Any]) -> np.ndarray:
        if not done.any():
            return self.observation
        observation = self.observation.copy()
        for i in np.flatnonzero(done):
            observation[i] = infos["final_obs"][i]
        return observation

    def _count(self, reward: np.ndarray, done: np.ndarray) -> None:
        self.returns += reward
        self.finished.extend(self.returns[done].tolist())
        self.episodes += int(done.sum())
        self.returns[done] = 0

    @property
    def window(self) -> int:
        """How many returns are remembered."""
        return self.finished.maxlen or 0

    @property
    def mean_return(self) -> float:
        """Mean return of the last finished episodes that are remembered (fewer at first, NaN before the first)."""
        return sum(self.finished) / len(self.finished) if self.finished else math.nan

    @property
    def statistics(self) -> dict[str, float]:
        """What to log about the episodes."""
        return {"episodes": self.episodes, "return": self.mean_return}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on. ``envs`` is None where environments cannot be saved."""
        envs = pickle.dumps(self.envs.envs) if self.exact else None
        names = ("observation", "returns", "finished", "episodes")
        return {"envs": envs} | {name: copy.copy(getattr(self, name)) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; with new episodes where environments cannot be saved."""
        for name in state.keys() - {"envs"}:
            setattr(self, name, state[name])
        if state["envs"] is None:
            self.reset(int(torch.randint(2**31, ())))
        else:
            self.envs.envs = pickle.loads(state["envs"])
