"""CartPole for two: a cooperative task on Gymnasium's own ``CartPole-v1``.

Two agents push the same cart, each with half of the force, left or right; what moves the cart is the sum. Each sees half
of the state: the first agent the cart (position and velocity), the second the pole (angle and angular velocity). The
reward is the team's, 1 for every step with the pole up and the cart within bounds, and the limit is 500 steps. They need
each other: the second agent can hold the pole up but does not see the cart drift out of bounds, and the first can bring
the cart back but does not see what that does to the pole.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

ENV_ID = "tritonrl/SharedCartPole-v0"


class SharedCartPole(gym.Env):
    """Observations ``[agents, 6]``: which agent it is, one-hot, and its half of the state, zeros elsewhere.

    Actions are ``[agents]``: 0 pushes to the left and 1 to the right. Opposite pushes cancel.
    """

    AGENTS = 2
    SEEN = np.array(
        [[1, 1, 0, 0], [0, 0, 1, 1]], np.float32
    )  # by agent, of position, velocity, angle, angular velocity

    def __init__(self) -> None:
        self.env = gym.make("CartPole-v1", disable_env_checker=True)
        self.full_force = self.env.unwrapped.force_mag  # type: ignore[attr-defined]
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (self.AGENTS, self.AGENTS + 4), np.float32)
        self.action_space = gym.spaces.MultiDiscrete([2] * self.AGENTS)

    def _share(self, state: np.ndarray) -> np.ndarray:
        return np.concatenate([np.eye(self.AGENTS, dtype=np.float32), self.SEEN * state], 1)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a new episode."""
        super().reset(seed=seed)
        state, info = self.env.reset(seed=seed, options=options)
        return self._share(state), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Push with the mean of the agents' forces."""
        push = float(np.mean(2 * np.asarray(action) - 1))  # from -1, all to the left, to 1, all to the right
        self.env.unwrapped.force_mag = self.full_force * abs(push)  # type: ignore[attr-defined]
        state, reward, terminated, truncated, info = self.env.step(int(push > 0))
        return self._share(state), float(reward), terminated, truncated, info

    def close(self) -> None:
        """Close the environment below."""
        self.env.close()


gym.register(ENV_ID, f"{__name__}:SharedCartPole")
