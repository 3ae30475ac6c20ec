"""One step of N environments as transitions ``[N]`` for a replay buffer."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from .environments import Environments


def present_observation(environments: Environments) -> Tensor:
    """What the next actions are chosen from, ``[N, features]``; a copy, which the next step leaves alone."""
    return torch.as_tensor(environments.observation, dtype=torch.float32).clone()


def take_step(environments: Environments, action: Tensor, reward_scale: float) -> TensorDict:
    """Take ``action``; returns what was seen before and after, with the rewards scaled."""
    observation = present_observation(environments)
    after, reward, terminated, done = environments.step(action)
    following = {
        "observation": torch.as_tensor(after, dtype=torch.float32).clone(),
        "reward": torch.as_tensor(reward * reward_scale, dtype=torch.float32).unsqueeze(-1),
        "terminated": torch.as_tensor(terminated).clone().unsqueeze(-1),
        "done": torch.as_tensor(done).clone().unsqueeze(-1),
    }
    size = [len(environments)]
    return TensorDict({"observation": observation, "action": action, "next": TensorDict(following, size)}, size)


def random_action(environments: Environments) -> Tensor:
    """Actions ``[N, ...]`` that know nothing: even over a Discrete space, or over [-1, 1]."""
    empty = environments.empty_actions(len(environments))
    if empty.is_floating_point():
        return empty.uniform_(-1, 1)
    return torch.randint(int(environments.action_space.n), empty.shape)  # type: ignore[attr-defined]
