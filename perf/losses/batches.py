"""Batches with the entries and the sizes of TorchRL's benchmark of its losses."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from .networks import ACTION, OBSERVATION

Shape = tuple[int, ...]


def transitions(shape: Shape, seed: int = 0) -> TensorDict:
    """Observations, continuous actions, rewards and ends of steps; ``shape`` is ``[B]`` or ``[B, T]``."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*features: int) -> torch.Tensor:
        return torch.randn(*shape, *features, generator=generator)

    done = torch.rand(*shape, 1, generator=generator) < 0.1
    step = {"obs": normal(OBSERVATION), "reward": normal(1), "done": done, "terminated": done.clone()}
    names = [None, "time"] if len(shape) == 2 else None
    return TensorDict(
        {"obs": normal(OBSERVATION), "action": normal(ACTION).tanh() * 0.95, "next": step}, shape, names=names
    )


def discrete(shape: Shape, seed: int = 0) -> TensorDict:
    """The same with one-hot actions."""
    data = transitions(shape, seed)
    chosen = data["action"].argmax(-1)
    return data.set("action", torch.nn.functional.one_hot(chosen, ACTION))


def rollout(shape: Shape, seed: int = 0) -> TensorDict:
    """Steps of a policy, with what it knew of its actions; the advantage is to be computed."""
    data = transitions(shape, seed)
    data["action_log_prob"] = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1))
    data["loc"], data["scale"] = data["action"] * 0.5, torch.full((*shape, ACTION), 0.7)
    return data


def prepared_rollout(shape: Shape, seed: int = 0) -> TensorDict:
    """The same with advantage and value target in the data."""
    data = rollout(shape, seed)
    generator = torch.Generator().manual_seed(seed + 2)
    for key in ("advantage", "value_target", "state_value"):
        data[key] = torch.randn(*shape, 1, generator=generator)
    return data


def team_rollout(shape: Shape, seed: int = 0, agents: int = 3) -> TensorDict:
    """Steps of a team: observations of each agent, one reward and one end for all."""
    data = rollout(shape, seed)
    for part in (data, data["next"]):
        part["obs"] = part["obs"].unsqueeze(-2).expand(*shape, agents, OBSERVATION).contiguous()
    return data
