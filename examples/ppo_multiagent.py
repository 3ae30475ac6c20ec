"""PPO with a centralised critic for a team (MAPPO, Yu et al., 2022, https://arxiv.org/abs/2103.01955) with tritonrl.

    python examples/ppo_multiagent.py                        # two agents learn to balance one pole, in CPU minutes
    python examples/ppo_multiagent.py --resume runs/FOLDER   # goes on exactly where that run was stopped

The task is CartPole for two, ``shared_cart.py``: both push the same cart, each sees half of the state, and the reward is
the team's. Each agent acts on what it sees itself, with a policy network that both share. While learning, and only then,
the critic sees what all agents see, and has a value for each agent. Rewards and ends of episodes ``[T, N, 1]`` are the
team's, the values ``[T, N, agents, 1]`` are the agents': ``MultiAgentGAE`` brings them together, in one kernel.

This file is what several agents change about ``ppo.py``. The entries of the agents are in the group ``"agents"`` of a
rollout, the names that TorchRL gives them too.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import gymnasium as gym
from common import Environments, Parser, make_envs, mlp, pickles_exactly, run
from ppo import PPO, ppo_options
from shared_cart import ENV_ID
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical

from tritonrl.objectives import ClipPPOLoss
from tritonrl.objectives.value import MultiAgentGAE


def options() -> Parser:
    """The command line: PPO's."""
    parser = ppo_options("ppo_multiagent.py", "Train a team with multi-agent proximal policy optimisation.")
    parser.set_defaults(env=ENV_ID)
    return parser


def make_team_env(env_id: str) -> gym.Env:
    """One environment with observations ``[agents, features]``."""
    return gym.make(env_id, disable_env_checker=True)


class CentralisedCritic(nn.Module):
    """Values ``[*, agents, 1]`` from the observations ``[*, agents, features]`` of all agents together."""

    def __init__(self, agents: int, features: int, hidden: int) -> None:
        super().__init__()
        self.network = mlp(agents * features, hidden, agents, 1.0)

    def forward(self, observation: Tensor) -> Tensor:
        return self.network(observation.flatten(-2)).unsqueeze(-1)


class MultiAgentPPO(PPO):
    """PPO for a team: decentralised actors that share their weights, and a centralised critic."""

    group = "agents"
    learnt_from = ("agents",)

    def make_environments(self, parser: Parser, args: argparse.Namespace) -> Environments:
        """Environments whose observations and actions have a first dimension for the agents."""
        envs = make_envs(parser, args.env, args.num_envs, make_team_env, (gym.spaces.MultiDiscrete,))
        observations, actions = envs.single_observation_space, envs.single_action_space
        assert isinstance(actions, gym.spaces.MultiDiscrete) and observations.shape is not None
        agents = observations.shape[:-1]
        if len(agents) != 1 or actions.shape != agents or len(set(actions.nvec)) > 1:
            expected = "observations [agents, features] and as many actions, equally many for each agent"
            parser.error(
                f"argument --env: {args.env} has observations {observations} and {actions}, expected {expected}"
            )
        return Environments(envs, exact=pickles_exactly(args.env, make_team_env))

    def make_networks(self) -> tuple[ProbabilisticTensorDictSequential, TensorDictModule]:
        """The shared actor, with one choice per agent, and the critic."""
        agents, features = self.environments.observation_shape
        actions = self.environments.action_space
        assert isinstance(actions, gym.spaces.MultiDiscrete)
        network = mlp(features, self.args.hidden, int(actions.nvec[0]), 0.01)
        actor = ProbabilisticTensorDictSequential(
            TensorDictModule(network, [("agents", "observation")], [("agents", "logits")]),
            ProbabilisticTensorDictModule(
                {"logits": ("agents", "logits")},
                [("agents", "action")],
                distribution_class=Categorical,
                distribution_kwargs={"validate_args": False},
                return_log_prob=True,
                log_prob_key=("agents", "action_log_prob"),
            ),
        )
        critic = CentralisedCritic(agents, features, self.args.hidden)
        return actor, TensorDictModule(critic, [("agents", "observation")], [("agents", "state_value")])

    def make_estimator(self) -> MultiAgentGAE:
        """Advantages and value targets for each agent, from the team's rewards."""
        gae = MultiAgentGAE(
            gamma=self.args.gamma,
            lmbda=self.args.gae_lambda,
            value_network=self.critic,
            time_dim=0,
            device=self.args.device,
        )
        gae.set_keys(**{name: ("agents", key) for name, key in self.value_keys.items()})
        return gae

    def make_loss(self, **options: Any) -> ClipPPOLoss:
        """PPO's loss over all agents' actions: each has a probability ratio, and statistics of its advantage, for itself."""
        loss = super().make_loss(normalize_advantage_exclude_dims=(-2,), **options)
        keys = self.value_keys | {"action": "action", "sample_log_prob": "action_log_prob"}
        loss.set_keys(**{name: ("agents", key) for name, key in keys.items()})
        return loss

    @property
    def value_keys(self) -> dict[str, str]:
        """What estimator and loss call the entries that go from one to the other."""
        return {"value": "state_value", "advantage": "advantage", "value_target": "value_target"}


def main(argv: list[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    return run(options(), MultiAgentPPO, argv)


if __name__ == "__main__":
    sys.exit(main())
