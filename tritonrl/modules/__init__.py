"""Networks and distributions that losses and examples need, under the names and keys of TorchRL.

Losses take any tensordict module, so nothing here is obligatory: it is for those who do not have TorchRL installed.
"""

from __future__ import annotations

from tensordict.nn import NormalParamExtractor
from tensordict.nn.distributions import Delta

from tritonrl.modules.actor_value import ActorCriticOperator, ActorCriticWrapper, ActorValueOperator
from tritonrl.modules.actors import Actor, ProbabilisticActor
from tritonrl.modules.delta import TanhDelta
from tritonrl.modules.distributional_q_values import DistributionalQValueActor, DistributionalQValueModule
from tritonrl.modules.dreamer_actor import DreamerActor
from tritonrl.modules.exploration import AdditiveGaussianModule, EGreedyModule
from tritonrl.modules.imagination import ImaginationEnv, WorldModelWrapper
from tritonrl.modules.mlp import MLP
from tritonrl.modules.multi_agent import MultiAgentMLP
from tritonrl.modules.one_hot_categorical import OneHotCategorical, ReparamGradientStrategy
from tritonrl.modules.pixels import ObsDecoder, ObsEncoder
from tritonrl.modules.q_values import QValueActor, QValueModule
from tritonrl.modules.rssm import RSSMPosterior, RSSMPrior, RSSMRollout
from tritonrl.modules.tanh_normal import IndependentNormal, TanhNormal
from tritonrl.modules.value_operator import ValueOperator

__all__ = [
    "MLP",
    "Actor",
    "ActorCriticOperator",
    "ActorCriticWrapper",
    "ActorValueOperator",
    "AdditiveGaussianModule",
    "Delta",
    "DistributionalQValueActor",
    "DistributionalQValueModule",
    "DreamerActor",
    "EGreedyModule",
    "ImaginationEnv",
    "IndependentNormal",
    "MultiAgentMLP",
    "NormalParamExtractor",
    "ObsDecoder",
    "ObsEncoder",
    "OneHotCategorical",
    "ProbabilisticActor",
    "QValueActor",
    "QValueModule",
    "RSSMPosterior",
    "RSSMPrior",
    "RSSMRollout",
    "ReparamGradientStrategy",
    "TanhDelta",
    "TanhNormal",
    "ValueOperator",
    "WorldModelWrapper",
]
