"""The networks of Dreamer for observations that are vectors, and its actor loss with a clock on the returns."""

from __future__ import annotations

from typing import ClassVar

import gymnasium as gym
import torch
from common import Clock, Environments, KernelClock
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import InteractionType, TensorDictModule, TensorDictSequential
from torch import Tensor, nn

from tritonrl.modules import (
    MLP,
    DreamerActor,
    ImaginationEnv,
    ProbabilisticActor,
    RSSMPosterior,
    RSSMPrior,
    RSSMRollout,
    TanhNormal,
    ValueOperator,
    WorldModelWrapper,
)
from tritonrl.objectives import DreamerActorLoss

LATENT = ["state", "belief"]


class Beginning(nn.Module):
    """The latent state at the first observation: a belief of zero, and the state that the posterior makes of both."""

    def __init__(self, posterior: RSSMPosterior, belief_size: int) -> None:
        super().__init__()
        self.posterior, self.belief_size = posterior, belief_size

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        belief = embedding.new_zeros(*embedding.shape[:-1], self.belief_size)
        return self.posterior(belief, embedding)[2], belief


class Networks(nn.Module):
    """World model, policy and value function; hidden layers and belief have ``hidden`` units each.

    ``world_model`` is what ``DreamerModelLoss`` trains, on sequences ``[B, T]`` with ``observation``, ``action``,
    ``is_init`` (True where an episode begins) and under ``"next"`` the ``observation``. ``imagination`` is the same model
    as the environment in which ``DreamerActorLoss`` trains ``actor``.
    """

    def __init__(self, environments: Environments, hidden: int, state_size: int) -> None:
        super().__init__()
        [inputs], self.action_size = environments.observation_shape, gym.spaces.flatdim(environments.action_space)
        self.hidden, self.state_size, latent = hidden, state_size, hidden + state_size
        self.encoder = self._network(inputs, hidden)
        self.prior = RSSMPrior(None, hidden, hidden, state_size, action_dim=self.action_size)
        self.posterior = RSSMPosterior(hidden, state_size, rnn_hidden_dim=hidden, obs_embed_dim=hidden)
        self.beginning = Beginning(self.posterior, hidden)
        self.decoder, self.reward = self._network(latent, inputs), self._network(latent, 1)
        self.world_model = self._world_model()
        self.imagination = ImaginationEnv(
            WorldModelWrapper(
                TensorDictModule(self.prior, [*LATENT, "action"], ["_", "_", *LATENT]),
                TensorDictModule(self.reward, LATENT, ["reward"]),
            )
        )
        self.actor = ProbabilisticActor(
            TensorDictModule(
                DreamerActor(self.action_size, 2, hidden, std_bias=1.0, std_min_val=0.1, in_features=latent),
                LATENT,
                ["loc", "scale"],
            ),
            in_keys=["loc", "scale"],
            distribution_class=TanhNormal,
            distribution_kwargs={"tanh_loc": True, "upscale": 2.0},  # nearer the bounds tanh lets no gradient back
            default_interaction_type=InteractionType.RANDOM,
        )
        self.value = ValueOperator(self._network(latent, 1), in_keys=LATENT)

    def _network(self, inputs: int, outputs: int) -> MLP:
        return MLP(inputs, outputs, num_cells=[self.hidden] * 2, activation_class=nn.ELU)

    def _world_model(self) -> TensorDictSequential:
        """Encode, infer the latent states, decode; then predict the rewards."""
        after = [("next", name) for name in LATENT]
        prior_out = [("next", "prior_mean"), ("next", "prior_std"), "_", ("next", "belief")]
        posterior_out = [("next", "posterior_mean"), ("next", "posterior_std"), ("next", "state")]
        rollout = RSSMRollout(
            TensorDictModule(self.prior, [*LATENT, "action"], prior_out),
            TensorDictModule(self.posterior, [("next", "belief"), ("next", "embedding")], posterior_out),
            is_init_key="is_init",
        )
        model = TensorDictSequential(
            TensorDictModule(self.encoder, ["observation"], ["embedding"]),
            TensorDictModule(self.encoder, [("next", "observation")], [("next", "embedding")]),
            TensorDictModule(self.beginning, ["embedding"], LATENT),
            rollout,
            TensorDictModule(self.decoder, after, [("next", "reconstruction")]),
        )
        return TensorDictSequential(model, TensorDictModule(self.reward, after, [("next", "reward")]))

    # -- acting -----------------------------------------------------------------------------------------------------

    def nothing(self, num_envs: int) -> TensorDict:
        """The memory ``[N]`` before the first observation."""
        sizes = {"state": self.state_size, "belief": self.hidden, "action": self.action_size}
        memory = TensorDict({name: torch.zeros(num_envs, size) for name, size in sizes.items()}, [num_envs])
        return memory.set("is_init", torch.ones(num_envs, 1, dtype=torch.bool)).to(next(self.parameters()).device)

    def observe(self, memory: TensorDictBase, observation: Tensor) -> None:
        """Update the latent states in ``memory``, by the action in it and what was seen after it.

        Where ``is_init``, the episode is new and what came before is forgotten.
        """
        embedding = self.encoder(observation)
        first = self.beginning(embedding)
        *_, belief = self.prior(memory["state"], memory["belief"], memory["action"])
        *_, state = self.posterior(belief, embedding)
        for name, new, begun in zip(LATENT, (state, belief), first, strict=True):
            memory[name] = torch.where(memory["is_init"], begun, new)


class TimedActorLoss(DreamerActorLoss):
    """Dreamer's actor loss, with the time that the TD(lambda) returns take.

    The clock counts their computation as ``returns`` (the kernel in it as in ``KernelClock``), and their gradient, from
    that with respect to the returns to that with respect to the values, as ``returns backward``.
    """

    clock: Clock | None = None
    phases: ClassVar[dict[str, str]] = {
        "returns": "  of which TD(lambda) returns, forward (the estimator)",
        "first kernel call": "    of which the first call of tritonrl's kernel, which compiles or loads it",
        "kernels": "    of which all other calls of it, the kernel alone",
        "returns backward": "  of which TD(lambda) returns, backward (the kernel's gradient)",
    }

    def timed_by(self, clock: Clock | None) -> None:
        """Use this clock; none, where the loss is compiled."""
        self.clock, self.kernel_clock = clock, KernelClock(clock) if clock else None

    def lambda_target(self, reward: Tensor, value: Tensor) -> Tensor:
        """The returns of imagined steps."""
        if self.clock is None or self.kernel_clock is None:
            return super().lambda_target(reward, value)
        with self.clock("returns"), self.kernel_clock:
            returns = super().lambda_target(reward, value)
        timer = self.clock("returns backward")

        def begin(_: Tensor) -> None:
            timer.__enter__()

        def end(_: Tensor) -> None:
            timer.__exit__(None, None, None)

        if returns.requires_grad:
            returns.register_hook(begin)
            value.register_hook(end)  # the engine comes to the values' gradient before it goes on along the rewards'
        return returns
