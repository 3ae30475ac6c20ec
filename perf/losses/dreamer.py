"""World models, policies and batches of the Dreamer losses, which TorchRL does not benchmark: sizes of our own choice.

Layers are the same modules for both libraries. What rolls them out in time is each library's own: TorchRL's environment
cannot be compiled into one graph.
"""

from __future__ import annotations

from typing import Any

import torch
import torchrl.modules
from tensordict import TensorDict
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import nn
from torch.distributions import Independent, Normal
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import DreamerEnv
from torchrl.modules import MLP

from tritonrl.modules import ImaginationEnv, RSSMPosterior, RSSMPrior, RSSMRollout, WorldModelWrapper

from .batches import Shape
from .networks import ACTION, Networks

STATE, BELIEF, PIXELS, EMBEDDED = 30, 200, (3, 16, 16), 64
LATENT, NEXT_LATENT = ["state", "belief"], [("next", "state"), ("next", "belief")]
STEPS = 5


def _layers(networks: Networks, inputs: int, outputs: Any) -> MLP:
    return MLP(in_features=inputs, out_features=outputs, num_cells=networks.scale.cells, depth=networks.scale.head)


def _prior(networks: Networks) -> RSSMPrior:
    return RSSMPrior(
        action_dim=ACTION,
        hidden_dim=networks.scale.cells,
        rnn_hidden_dim=BELIEF,
        state_dim=STATE,
    )


def world_model(library: str, networks: Networks) -> TensorDictSequential:
    """Encoder, recurrent state-space model and decoder, then the reward; steps are walked through one by one."""
    rollout = torchrl.modules.RSSMRollout if library == "torchrl" else RSSMRollout
    prior = TensorDictModule(
        _prior(networks),
        [*LATENT, "action"],
        [("next", "prior_mean"), ("next", "prior_std"), "_", ("next", "belief")],
    )
    posterior = TensorDictModule(
        RSSMPosterior(hidden_dim=networks.scale.cells, state_dim=STATE, rnn_hidden_dim=BELIEF, obs_embed_dim=EMBEDDED),
        [("next", "belief"), ("next", "encoded_latents")],
        [("next", "posterior_mean"), ("next", "posterior_std"), ("next", "state")],
    )
    encoder = nn.Sequential(nn.Flatten(-len(PIXELS)), _layers(networks, torch.Size(PIXELS).numel(), EMBEDDED))
    model = TensorDictSequential(
        TensorDictModule(encoder, [("next", "pixels")], [("next", "encoded_latents")]),
        rollout(prior, posterior),
        TensorDictModule(_layers(networks, STATE + BELIEF, PIXELS), NEXT_LATENT, [("next", "reco_pixels")]),
    )
    reward = TensorDictModule(_layers(networks, STATE + BELIEF, 1), NEXT_LATENT, [("next", "reward")])
    return TensorDictSequential(model, reward)


def environment(library: str, networks: Networks) -> Any:
    """What the actor imagines in: the library's own environment around the same layers."""
    wrapper = torchrl.modules.WorldModelWrapper if library == "torchrl" else WorldModelWrapper
    model = wrapper(
        TensorDictModule(_prior(networks), [*LATENT, "action"], ["_", "_", *LATENT]),
        TensorDictModule(_layers(networks, STATE + BELIEF, 1), LATENT, ["reward"]),
    )
    if library != "torchrl":
        return ImaginationEnv(model)
    env = DreamerEnv(model, (STATE,), (BELIEF,), batch_size=torch.Size([]))
    latent = {"state": Unbounded((STATE,)), "belief": Unbounded((BELIEF,))}
    env.observation_spec, env.state_spec = Composite(**latent), Composite(**latent)
    env.action_spec, env.reward_spec = Bounded(-1, 1, (ACTION,)), Unbounded((1,))
    return env


def actor(networks: Networks) -> ProbabilisticTensorDictSequential:
    """A policy that reads the latent state."""
    layers = TensorDictModule(_layers(networks, STATE + BELIEF, 2 * ACTION), LATENT, ["params"])
    split = TensorDictModule(NormalParamExtractor(), ["params"], ["loc", "scale"])
    draw = ProbabilisticTensorDictModule(["loc", "scale"], ["action"], distribution_class=_diagonal_normal)
    return ProbabilisticTensorDictSequential(layers, split, draw)


def value(networks: Networks) -> TensorDictModule:
    """A value of the latent state."""
    return TensorDictModule(_layers(networks, STATE + BELIEF, 1), LATENT, ["state_value"])


def _diagonal_normal(loc: torch.Tensor, scale: torch.Tensor) -> Independent:
    return Independent(Normal(loc, scale), 1)


def sequences(shape: Shape, seed: int = 0) -> TensorDict:
    """Pixels and rewards ``[B, T]``, for the model."""
    generator = torch.Generator().manual_seed(seed)
    step = {
        "pixels": torch.randn(*shape, *PIXELS, generator=generator),
        "reward": torch.randn(*shape, 1, generator=generator),
    }
    latent = {"state": torch.zeros(*shape, STATE), "belief": torch.zeros(*shape, BELIEF)}
    return TensorDict({**latent, "action": torch.randn(*shape, ACTION, generator=generator), "next": step}, shape)


def starts(shape: Shape, seed: int = 0) -> TensorDict:
    """Latent states ``[B]``, for the actor."""
    generator = torch.Generator().manual_seed(seed)
    latent = {"state": STATE, "belief": BELIEF}
    return TensorDict({key: torch.randn(*shape, size, generator=generator) for key, size in latent.items()}, shape)


def imagined(shape: Shape, seed: int = 0) -> TensorDict:
    """Latent states ``[B, T]`` with their targets, for the value."""
    data = starts(shape, seed)
    return data.set("lambda_target", torch.randn(*shape, 1, generator=torch.Generator().manual_seed(seed + 1)))
