"""Soft actor-critic (Haarnoja et al., 2018, https://arxiv.org/abs/1812.05905) with tritonrl, and two relatives of it.

    python examples/sac.py                         # Pendulum-v1 on a CPU in one to two minutes
    python examples/sac.py --redq                  # fewer steps, more critics, more gradient steps for each
    python examples/sac.py --discrete              # CartPole-v1: expectations over the actions instead of samples
    python examples/sac.py --resume runs/FOLDER    # goes on exactly where that run was stopped

A stochastic policy climbs the lesser of two critics and is paid for its entropy. What the entropy is worth, alpha, is
learnt too: it rises where the entropy is below its target.
This file is what is SAC's own. The update is in ``common/off_policy.py``, the loop around it in ``common/training.py``.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, ClassVar

import gymnasium as gym
from common import (
    OffPolicyLearner,
    Parser,
    make_action_value,
    make_actor,
    make_squashed_actor,
    number,
    off_policy_options,
    positive,
    run,
)
from tensordict import TensorDict
from torch import Tensor

from tritonrl.objectives import DiscreteSACLoss, LossModule, REDQLoss, SACLoss

DEFAULTS: dict[str, Any] = {
    "env": "Pendulum-v1",
    "num_envs": 4,
    "total_steps": 30_000,
    "gamma": 0.98,
    "reward_scale": 0.1,
    "learning_rate": 2e-3,
    "tau": 0.01,
}
RELATIVES: dict[str, dict[str, Any]] = {
    "redq": {"total_steps": 10_000, "num_envs": 1, "gradient_steps": 8, "steps_per_update": 4, "learning_rate": 1e-3},
    "discrete": {
        "env": "CartPole-v1",
        "num_envs": 8,
        "total_steps": 60_000,
        "gamma": 0.99,
        "reward_scale": 1.0,
        "n_step": 3,
        "gradient_steps": 16,
        "hidden": 128,
        "learning_rate": 1e-3,
    },
}
"""What the settings are for a relative, where they differ."""


def options() -> Parser:
    """The command line: what every off-policy example has, and SAC's own settings."""
    parser = off_policy_options("sac.py", "Train a stochastic policy with soft actor-critic.", **DEFAULTS)
    add, either = parser.add_argument, parser.add_mutually_exclusive_group()
    either.add_argument("--redq", action="store_true", help="randomised ensembled double Q-learning; other defaults")
    either.add_argument(
        "--discrete", action="store_true", help="soft actor-critic for Discrete actions; other defaults"
    )
    add("--critics", type=number(int, 2), default=5, help="critics of --redq, of which two at random make each target")
    add("--alpha", type=positive, default=0.2, help="what entropy is worth at first")
    add(
        "--entropy-share",
        type=positive,
        default=0.05,
        help="entropy that --discrete aims at, as a share of the largest",
    )
    parser.fixed = (*parser.fixed, "redq", "discrete", "critics")
    return parser


class SAC(OffPolicyLearner):
    """Soft actor-critic with two critics, for actions from a Box."""

    logged = ("loss_actor", "loss_qvalue", "loss_alpha", "alpha", "entropy")
    action_kinds: ClassVar[tuple[type[gym.Space], ...]] = (gym.spaces.Box,)

    def make_loss(self) -> LossModule:
        """Losses of policy, critics and alpha; the entropy to aim at is minus the number of entries of an action."""
        self.actor: Any = make_squashed_actor(self.environments, self.args.hidden)
        critic = make_action_value(self.environments, self.args.hidden)
        loss = self.make_sac_loss(critic, action_spec=self.environments.empty_actions(), alpha_init=self.args.alpha)
        loss.make_value_estimator(gamma=self.args.gamma)
        return loss

    def make_sac_loss(self, critic: Any, **kwargs: Any) -> LossModule:
        """The critics' distances from ``r + gamma ** n * (min Q_target(s', a') - alpha * log pi(a'|s'))``."""
        return SACLoss(self.actor, critic, **kwargs)

    def act(self, observation: Tensor, progress: float) -> Tensor:
        """Drawn from the policy."""
        return self.actor.get_dist(TensorDict({"observation": observation}, [len(observation)])).sample()


class REDQ(SAC):
    """Many critics, of which a random two make each target: so many gradient steps may be taken for each step."""

    window = 20  # it has not 100 episodes to learn in

    def make_sac_loss(self, critic: Any, **kwargs: Any) -> LossModule:
        """As ever, but for the mean of all critics in the policy's loss and the lesser of two in the target."""
        return REDQLoss(self.actor, critic, num_qvalue_nets=self.args.critics, min_alpha=None, **kwargs)


class DiscreteSAC(SAC):
    """Soft actor-critic for Discrete actions: every expectation over actions is a sum (Christodoulou, 2019)."""

    action_kinds = (gym.spaces.Discrete,)

    def make_loss(self) -> LossModule:
        """Losses of policy, critics and alpha; the entropy to aim at is a share of that of even chances."""
        self.actor = make_actor(self.environments, self.args.hidden)
        loss = DiscreteSACLoss(
            self.actor,
            make_action_value(self.environments, self.args.hidden, key="action_value"),
            action_space="categorical",
            num_actions=int(self.environments.action_space.n),  # type: ignore[attr-defined]
            target_entropy_weight=self.args.entropy_share,
            alpha_init=self.args.alpha,
        )
        loss.make_value_estimator(gamma=self.args.gamma)
        return loss


def make_learner(parser: Parser, args: argparse.Namespace) -> SAC:
    """The learner that the options ask for."""
    return (REDQ if args.redq else DiscreteSAC if args.discrete else SAC)(parser, args)


def main(argv: list[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    parser = options()
    asked_for = parser.parse_args(argv)
    for name, settings in RELATIVES.items():
        if getattr(asked_for, name):
            parser.set_defaults(**settings)
    return run(parser, make_learner, argv)


if __name__ == "__main__":
    sys.exit(main())
