"""Small world models, policies and data for the tests of the Dreamer losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import (
    InteractionType,
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import DreamerEnv

from tritonrl.modules import ImaginationEnv, RSSMPosterior, RSSMPrior, RSSMRollout, WorldModelWrapper

STATE, BELIEF, ACTION, PIXELS = 3, 5, 2, (2, 3, 4)


class Side(nn.Module):
    """A network of several inputs, side by side, with its output in a shape of its own."""

    def __init__(self, n_in: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        n_out = int(torch.Size(shape).numel())
        self.net = nn.Sequential(nn.Linear(n_in, 6), nn.Tanh(), nn.Linear(6, n_out))

    def forward(self, *inputs: Tensor) -> Tensor:
        out = self.net(torch.cat(inputs, -1))
        return out.reshape(*out.shape[:-1], *self.shape)


class Flatten(nn.Module):
    """Encodes an observation of any number of dimensions."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = len(shape)
        self.net = nn.Linear(int(torch.Size(shape).numel()), 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(-self.dims))


def rssm_prior(make: Callable[..., nn.Module] = RSSMPrior) -> nn.Module:
    return make(action_dim=ACTION, hidden_dim=6, rnn_hidden_dim=BELIEF, state_dim=STATE)


class NoiselessPrior(RSSMPrior):
    """Its sample is its mean."""

    def forward(
        self, state: Tensor, belief: Tensor, action: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return super().forward(state, belief, action, torch.zeros_like(state))


def world_model(
    shape: tuple[int, ...] = PIXELS, seed: int = 0, make_prior: Callable[..., nn.Module] = RSSMPrior
) -> TensorDictSequential:
    """Encoder, RSSM and decoder, then the reward; trained by ``DreamerModelLoss``."""
    torch.manual_seed(seed)
    prior = TensorDictModule(
        rssm_prior(make_prior),
        ["state", "belief", "action"],
        [("next", "prior_mean"), ("next", "prior_std"), "_", ("next", "belief")],
    )
    posterior = TensorDictModule(
        RSSMPosterior(hidden_dim=6, state_dim=STATE, rnn_hidden_dim=BELIEF, obs_embed_dim=4),
        [("next", "belief"), ("next", "encoded_latents")],
        [("next", "posterior_mean"), ("next", "posterior_std"), ("next", "state")],
    )
    latent = [("next", "state"), ("next", "belief")]
    model = TensorDictSequential(
        TensorDictModule(Flatten(shape), [("next", "pixels")], [("next", "encoded_latents")]),
        RSSMRollout(prior, posterior),
        TensorDictModule(Side(STATE + BELIEF, shape), latent, [("next", "reco_pixels")]),
    )
    reward = TensorDictModule(Side(STATE + BELIEF, (1,)), latent, [("next", "reward")])
    return TensorDictSequential(model, reward)


def sequences(shape: tuple[int, ...] = PIXELS, batch: tuple[int, ...] = (3, 5), seed: int = 1) -> TensorDict:
    torch.manual_seed(seed)
    step = {"pixels": torch.randn(*batch, *shape), "reward": torch.randn(*batch, 1)}
    data = {"state": torch.zeros(*batch, STATE), "belief": torch.zeros(*batch, BELIEF), "next": step}
    return TensorDict({**data, "action": torch.randn(*batch, ACTION)}, batch)


def imagined_transition(seed: int = 2) -> WorldModelWrapper:
    torch.manual_seed(seed)
    return WorldModelWrapper(
        TensorDictModule(rssm_prior(), ["state", "belief", "action"], ["_", "_", "state", "belief"]),
        TensorDictModule(Side(STATE + BELIEF, (1,)), ["state", "belief"], ["reward"]),
    )


def our_env(seed: int = 2) -> ImaginationEnv:
    return ImaginationEnv(imagined_transition(seed))


def torchrl_env(seed: int = 2) -> Any:
    env = DreamerEnv(imagined_transition(seed), (STATE,), (BELIEF,), batch_size=torch.Size([]))
    latent = {"state": Unbounded((STATE,)), "belief": Unbounded((BELIEF,))}
    env.observation_spec, env.state_spec = Composite(**latent), Composite(**latent)
    env.action_spec, env.reward_spec = Bounded(-1, 1, (ACTION,)), Unbounded((1,))
    return env


class NormalHead(nn.Module):
    """Location and scale of an action."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.split = Side(STATE + BELIEF, (2 * ACTION,)), NormalParamExtractor()

    def forward(self, state: Tensor, belief: Tensor) -> tuple[Tensor, ...]:
        return self.split(self.net(state, belief))


def policy(seed: int = 3) -> ProbabilisticTensorDictSequential:
    """Deterministic unless it is told to sample."""
    torch.manual_seed(seed)
    return ProbabilisticTensorDictSequential(
        TensorDictModule(NormalHead(), ["state", "belief"], ["loc", "scale"]),
        ProbabilisticTensorDictModule(
            ["loc", "scale"],
            ["action"],
            distribution_class=diagonal_normal,
            default_interaction_type=InteractionType.DETERMINISTIC,
        ),
    )


def diagonal_normal(loc: Tensor, scale: Tensor) -> Independent:
    return Independent(Normal(loc, scale), 1)


def value_model(seed: int = 4) -> TensorDictModule:
    torch.manual_seed(seed)
    return TensorDictModule(Side(STATE + BELIEF, (1,)), ["state", "belief"], ["state_value"])


def starts(batch: tuple[int, ...] = (4,), seed: int = 5) -> TensorDict:
    torch.manual_seed(seed)
    return TensorDict({"state": torch.randn(*batch, STATE), "belief": torch.randn(*batch, BELIEF)}, batch)
