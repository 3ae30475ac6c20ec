"""Rollouts ``[T, N]``: time first, environments second.

So one environment step fills one contiguous row, and the estimator's kernels walk the memory as it lies.
"""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential

from .environments import Environments


class Collector:
    """Steps the environments and keeps the transitions in one tensordict ``[T, N]`` that is allocated once.

    ``data`` holds ``observation``, ``action``, ``action_log_prob`` and under ``"next"`` the ``observation`` (the true
    one, where an episode ended, not the first of the next episode), ``reward``, ``terminated`` (the task ended: there
    is no value after it) and ``done`` (terminated, or truncated by a time limit: the value goes on, the data do not).

    With a ``group``, a name for several agents, observations, actions and log-probabilities are entries of that group,
    with the agents' dimension after T and N; reward and flags are the team's.
    """

    def __init__(
        self, environments: Environments, steps: int, reward_scale: float, device: str, group: str | None = None
    ) -> None:
        self.environments, self.reward_scale = environments, reward_scale
        names = ("observation", "action", "action_log_prob")
        keys: list[NestedKey] = [(group, name) if group else name for name in names]
        self.observation, self.action, self.log_prob = keys
        self.data = self._allocate(steps).to(device)
        self.rows = self.data.unbind(0)  # T views: writing to a row writes to `data`

    def _allocate(self, steps: int) -> TensorDict:
        shape = (steps, len(self.environments))
        agents = self.environments.observation_shape[:-1]
        data = TensorDict(batch_size=shape)
        observation = torch.zeros(*shape, *self.environments.observation_shape)
        data[self.observation], data["next", self.observation] = observation, observation.clone()
        data[self.action] = self.environments.empty_actions(*shape)
        data[self.log_prob] = torch.zeros(*shape, *agents)
        data["next", "reward"] = torch.zeros(*shape, 1)
        data["next", "done"] = torch.zeros(*shape, 1, dtype=torch.bool)
        data["next", "terminated"] = torch.zeros(*shape, 1, dtype=torch.bool)
        return data

    @torch.no_grad()
    def collect(self, actor: ProbabilisticTensorDictSequential) -> TensorDict:
        """The next ``T`` steps of every environment, in the same memory each time."""
        for row in self.rows:
            row[self.observation].copy_(torch.as_tensor(self.environments.observation))
            policy = actor.get_dist(row)
            action = policy.sample()
            row[self.action].copy_(action)
            row[self.log_prob].copy_(policy.log_prob(action))
            after, reward, terminated, done = self.environments.step(action)
            row["next", self.observation].copy_(torch.as_tensor(after))
            row["next", "reward"].copy_(torch.as_tensor(reward * self.reward_scale).unsqueeze(-1))
            row["next", "done"].copy_(torch.as_tensor(done).unsqueeze(-1))
            row["next", "terminated"].copy_(torch.as_tensor(terminated).unsqueeze(-1))
        return self.data.copy()  # the same memory; what is added to it by name stays out of the collector's own
