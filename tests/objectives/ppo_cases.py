"""Networks and data for the tests of the PPO family: small, odd-sized, seeded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn
from torch.distributions import Categorical, Distribution, Independent, Normal

BATCH = (5, 7)
ActorMaker = Callable[[int], ProbabilisticTensorDictSequential]


def diagonal_normal(loc: torch.Tensor, scale: torch.Tensor) -> Independent:
    return Independent(Normal(loc, scale), 1)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))


def normal_actor(seed: int = 0, distribution: Callable[..., Distribution] = diagonal_normal) -> Any:
    torch.manual_seed(seed)
    network = nn.Sequential(mlp(4, 6), NormalParamExtractor())
    params = TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"])
    draw = ProbabilisticTensorDictModule(
        ["loc", "scale"], ["action"], distribution_class=distribution, return_log_prob=True
    )
    return ProbabilisticTensorDictSequential(params, draw)


def categorical_actor(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    params = TensorDictModule(mlp(4, 3), in_keys=["observation"], out_keys=["logits"])
    draw = ProbabilisticTensorDictModule(["logits"], ["action"], distribution_class=Categorical, return_log_prob=True)
    return ProbabilisticTensorDictSequential(params, draw)


class SplitHeads(nn.Module):
    """One vector into the parameters of a normal of two features and a categorical of three."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x[..., :2], x[..., 2:4].exp(), x[..., 4:]


def composite_actor(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    raw = TensorDictModule(mlp(4, 7), in_keys=["observation"], out_keys=["raw"])
    heads = [("params", "move", "loc"), ("params", "move", "scale"), ("params", "gear", "logits")]
    draw = ProbabilisticTensorDictModule(
        ["params"],
        [("agent", "move"), ("agent", "gear")],
        distribution_class=CompositeDistribution,
        distribution_kwargs={
            "distribution_map": {"move": Normal, "gear": Categorical},
            "name_map": {"move": ("agent", "move"), "gear": ("agent", "gear")},
        },
        return_log_prob=True,
    )
    return ProbabilisticTensorDictSequential(raw, TensorDictModule(SplitHeads(), ["raw"], heads), draw)


def make_critic(seed: int = 1) -> TensorDictModule:
    torch.manual_seed(seed)
    return TensorDictModule(mlp(4, 1), in_keys=["observation"], out_keys=["state_value"])


def shared_trunk(seed: int = 0) -> tuple[TensorDictModule, Any, TensorDictSequential]:
    """A trunk, and an actor and a critic that both begin with it."""
    torch.manual_seed(seed)
    trunk = TensorDictModule(nn.Sequential(nn.Linear(4, 16), nn.Tanh()), ["observation"], ["hidden"])
    head = TensorDictModule(nn.Sequential(nn.Linear(16, 6), NormalParamExtractor()), ["hidden"], ["loc", "scale"])
    draw = ProbabilisticTensorDictModule(
        ["loc", "scale"], ["action"], distribution_class=diagonal_normal, return_log_prob=True
    )
    value = TensorDictModule(nn.Linear(16, 1), ["hidden"], ["state_value"])
    return trunk, ProbabilisticTensorDictSequential(trunk, head, draw), TensorDictSequential(trunk, value)


def rollout(
    make_actor: ActorMaker = normal_actor, batch: tuple[int, ...] = BATCH, seed: int = 3, advantage: bool = True
) -> TensorDict:
    """Data collected by another policy than the one that is trained; with the advantage in it, or to be computed."""
    torch.manual_seed(seed)
    behaviour = make_actor(42)
    done = torch.rand(*batch, 1) < 0.2
    step = {
        "observation": torch.randn(*batch, 4),
        "reward": torch.randn(*batch, 1),
        "done": done,
        "terminated": done & (torch.rand(*batch, 1) < 0.5),
    }
    data = TensorDict({"observation": torch.randn(*batch, 4), "next": TensorDict(step, batch)}, batch)
    with torch.no_grad():
        behaviour(data)
    if advantage:
        for key in ("advantage", "value_target", "state_value"):
            data[key] = torch.randn(*batch, 1)
    return data


def team_networks() -> tuple[Any, TensorDictModule]:
    """An actor and a critic of each agent of a team."""
    torch.manual_seed(2)
    params = TensorDictModule(
        nn.Sequential(mlp(4, 6), NormalParamExtractor()),
        [("agents", "observation")],
        [("agents", "loc"), ("agents", "scale")],
    )
    draw = ProbabilisticTensorDictModule(
        {"loc": ("agents", "loc"), "scale": ("agents", "scale")},
        [("agents", "action")],
        distribution_class=diagonal_normal,
        return_log_prob=True,
        log_prob_key=("agents", "log_prob"),
    )
    critic = TensorDictModule(mlp(4, 1), [("agents", "observation")], [("agents", "state_value")])
    return ProbabilisticTensorDictSequential(params, draw), critic


def team_rollout(actor: Any, seed: int = 3) -> TensorDict:
    """Data of three agents with one reward and one end for all of them, collected by nearly this actor."""
    torch.manual_seed(seed)
    done = torch.rand(5, 7, 1) < 0.2
    step = {"reward": torch.randn(5, 7, 1), "done": done, "terminated": done & (torch.rand(5, 7, 1) < 0.5)}
    agents = {"observation": torch.randn(5, 7, 3, 4)}
    data = TensorDict({"agents": agents, "next": {"agents": {"observation": torch.randn(5, 7, 3, 4)}, **step}}, [5, 7])
    with torch.no_grad():
        actor(data)
        data["agents", "log_prob"] = data["agents", "log_prob"] - 0.1
    return data


def gradients(*modules: nn.Module) -> list[torch.Tensor | None]:
    return [parameter.grad for module in modules for parameter in module.parameters()]
