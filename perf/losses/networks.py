"""The networks of TorchRL's benchmark of its losses, made of TorchRL's modules so that only the objective differs.

A trunk that actor and critics share reads ``obs`` and writes ``hidden``; every head reads that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn
from torchrl.data import Bounded, OneHot
from torchrl.modules import (
    MLP,
    DistributionalQValueActor,
    OneHotCategorical,
    QValueActor,
    TanhNormal,
)

import tritonrl.modules

OBSERVATION, ACTION, HIDDEN = 8, 4, 64
ATOMS = 51


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        cells: width of the layers.
        trunk, head: number of hidden layers.
        critics: of REDQ.
        horizon: steps that Dreamer's actor imagines.
    """

    cells: int = 128
    trunk: int = 3
    head: int = 2
    critics: int = 10
    horizon: int = 15


BENCHMARK = Scale()
SMALL = Scale(cells=8, trunk=1, head=1, critics=3, horizon=3)  # compiles into the same graphs, sooner


class Networks:
    """Makes the networks of one loss; ``trunk`` is one and the same in all of them."""

    def __init__(self, scale: Scale, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.scale = scale
        self.trunk = TensorDictModule(self.layers(OBSERVATION, HIDDEN, scale.trunk), ["obs"], ["hidden"])

    def layers(self, inputs: int, outputs: int, depth: int) -> MLP:
        """A multi-layer perceptron with tanh; of several inputs it takes the concatenation."""
        return MLP(in_features=inputs, out_features=outputs, num_cells=self.scale.cells, depth=depth)

    def head(self, outputs: int, keys: list[str], action: bool = False) -> TensorDictModule:
        """A head on the trunk, or on the trunk and the action."""
        inputs = HIDDEN + ACTION * action
        read = ["hidden", "action"] if action else ["hidden"]
        return TensorDictModule(self.layers(inputs, outputs, self.scale.head), read, keys)

    def actor(self, **options: Any) -> ProbabilisticTensorDictSequential:
        """A tanh-normal policy."""
        layers = nn.Sequential(self.layers(HIDDEN, 2 * ACTION, self.scale.head), NormalParamExtractor())
        draw = ProbabilisticTensorDictModule(
            ["loc", "scale"],
            ["action"],
            distribution_class=TanhNormal,
            distribution_kwargs={"safe_tanh": False},
            **{"return_log_prob": True, **options},
        )
        return ProbabilisticTensorDictSequential(
            self.trunk, TensorDictModule(layers, ["hidden"], ["loc", "scale"]), draw
        )

    def deterministic_actor(self) -> TensorDictSequential:
        """A policy without noise."""
        return TensorDictSequential(self.trunk, self.head(ACTION, ["action"]))

    def categorical_actor(self) -> ProbabilisticTensorDictSequential:
        """A policy over one-hot actions."""
        draw = ProbabilisticTensorDictModule(
            ["logits"], ["action"], distribution_class=OneHotCategorical, return_log_prob=True
        )
        return ProbabilisticTensorDictSequential(self.trunk, self.head(ACTION, ["logits"]), draw)

    def value(self) -> TensorDictSequential:
        """A state value."""
        return TensorDictSequential(self.trunk, self.head(1, ["state_value"]))

    def action_value(self) -> TensorDictSequential:
        """The value of a state and a continuous action."""
        return TensorDictSequential(self.trunk, self.head(1, ["state_action_value"], action=True))

    def all_action_values(self, key: str = "action_value") -> TensorDictSequential:
        """The values of all of the discrete actions."""
        return TensorDictSequential(self.trunk, self.head(ACTION, [key]))

    def greedy_actor(self) -> QValueActor:
        """A Q-network over one-hot actions, without the trunk of its own kind."""
        return QValueActor(
            self.layers(OBSERVATION, ACTION, self.scale.trunk), in_keys=["obs"], spec=OneHot(ACTION), action_space=None
        )

    def distributional_actor(self, library: str) -> Any:
        """A categorical distribution over returns for each one-hot action.

        The actor around the layers is the library's own: TorchRL's looks at numbers and cannot be compiled into one graph.
        """
        wrapper = DistributionalQValueActor if library == "torchrl" else tritonrl.modules.DistributionalQValueActor
        layers = MLP(
            in_features=OBSERVATION,
            out_features=(ATOMS, ACTION),
            num_cells=self.scale.cells,
            depth=self.scale.trunk,
        )
        network = nn.Sequential(layers, nn.LogSoftmax(dim=-2))
        return wrapper(
            network, in_keys=["obs"], spec=OneHot(ACTION), support=torch.linspace(-10, 10, ATOMS), action_space=None
        )


def bounded_action() -> Bounded:
    """Actions in [-1, 1]."""
    return Bounded(-torch.ones(ACTION), torch.ones(ACTION), (ACTION,))
