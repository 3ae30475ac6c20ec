"""Actors and critics: small networks as tensordict modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal

from tritonrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, TanhNormal, ValueOperator

from .environments import Environments


class DiagonalNormal(Independent):
    """Independent normal distributions over the entries of an action vector."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(Normal(loc, scale, validate_args=False), 1, validate_args=False)


class LocScale(nn.Module):
    """Mean from a network, standard deviation a parameter of its own that does not depend on the state."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.log_scale = network, nn.Parameter(torch.zeros(size))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc = self.network(observation)
        return loc, self.log_scale.exp().expand_as(loc)


def mlp(inputs: int, hidden: int, outputs: int, gain: float) -> nn.Sequential:
    """Two tanh layers, orthogonal initial weights; a small ``gain`` makes the first policy close to uniform."""
    layers = [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)]
    for layer, scale in zip(layers, (math.sqrt(2), math.sqrt(2), gain), strict=True):
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def make_actor(environments: Environments, hidden: int) -> ProbabilisticTensorDictSequential:
    """The policy pi(a|s) with keys ``action`` and ``action_log_prob``."""
    [inputs], actions = environments.observation_shape, environments.action_space
    if isinstance(actions, gym.spaces.Discrete):
        body = TensorDictModule(mlp(inputs, hidden, int(actions.n), 0.01), ["observation"], ["logits"])
        family: dict[str, Any] = {"distribution_class": Categorical, "distribution_kwargs": {"validate_args": False}}
    else:
        size = gym.spaces.flatdim(actions)
        body = TensorDictModule(LocScale(mlp(inputs, hidden, size, 0.01), size), ["observation"], ["loc", "scale"])
        family = {"distribution_class": DiagonalNormal}
    head = ProbabilisticTensorDictModule(
        body.out_keys, ["action"], return_log_prob=True, log_prob_key="action_log_prob", **family
    )
    return ProbabilisticTensorDictSequential(body, head)


def make_critic(environments: Environments, hidden: int) -> TensorDictModule:
    """The value function V(s) with key ``state_value``."""
    [inputs] = environments.observation_shape
    return TensorDictModule(mlp(inputs, hidden, 1, 1.0), ["observation"], ["state_value"])


def relu_mlp(inputs: int, hidden: int, outputs: int | Sequence[int]) -> MLP:
    """Two layers of rectified units; several inputs are joined, and several ``outputs`` are the shape of the output."""
    return MLP(inputs, outputs, num_cells=[hidden] * 2, activation_class=nn.ReLU)


def make_squashed_actor(environments: Environments, hidden: int) -> ProbabilisticActor:
    """A policy whose ``action`` is a normal distribution's, squashed into [-1, 1] by tanh: for actions from a Box."""
    [inputs], size = environments.observation_shape, gym.spaces.flatdim(environments.action_space)
    network = nn.Sequential(relu_mlp(inputs, hidden, 2 * size), NormalParamExtractor())
    body = TensorDictModule(network, ["observation"], ["loc", "scale"])
    return ProbabilisticActor(body, ["loc", "scale"], distribution_class=TanhNormal, return_log_prob=True)


def make_action_value(environments: Environments, hidden: int, key: str = "state_action_value") -> ValueOperator:
    """The action value Q(s, a), written under ``key``: of the action given, or of all actions where they are Discrete."""
    [inputs], actions = environments.observation_shape, environments.action_space
    if isinstance(actions, gym.spaces.Discrete):
        return ValueOperator(relu_mlp(inputs, hidden, int(actions.n)), out_keys=[key])
    network = relu_mlp(inputs + gym.spaces.flatdim(actions), hidden, 1)
    return ValueOperator(network, in_keys=["observation", "action"], out_keys=[key])
