"""Deep Q-learning (Mnih et al., 2015, https://www.nature.com/articles/nature14236) with tritonrl.

    python examples/dqn.py                         # CartPole-v1 on a CPU in about a minute
    python examples/dqn.py --double                # the next action chosen by one network, valued by the other
    python examples/dqn.py --distributional        # C51: the distribution of the return instead of its mean
    python examples/dqn.py --n-step 1 --priority-alpha 0.3
    python examples/dqn.py --resume runs/FOLDER    # goes on exactly where that run was stopped

One update: step N environments a few times, each action random with probability epsilon and greedy otherwise; store the
transitions, joined over n steps; then take a few gradient steps on samples of all that is stored.
This file is what is DQN's own. The update is in ``common/off_policy.py``, the loop around it in ``common/training.py``.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import gymnasium as gym
import torch
from common import OffPolicyLearner, Parser, count, fraction, number, off_policy_options, relu_mlp, run
from tensordict import TensorDict
from torch import Tensor

from tritonrl.modules import MLP, DistributionalQValueActor, EGreedyModule, QValueActor
from tritonrl.objectives import DistributionalDQNLoss, DQNLoss, LossModule


def options() -> Parser:
    """The command line: what every off-policy example has, and DQN's own settings."""
    parser = off_policy_options(
        "dqn.py",
        "Train action values with deep Q-learning.",
        num_envs=8,
        total_steps=80_000,
        hidden=128,
        gamma=0.99,
        gradient_steps=16,
        n_step=3,
        tau=0.01,
    )
    add = parser.add_argument
    add("--double", action="store_true", help="double Q-learning (--distributional always is)")
    add("--distributional", action="store_true", help="learn the distribution of the return on a support of atoms")
    add("--atoms", type=number(int, 2), default=51, help="atoms of the support")
    add("--support", type=float, nargs=2, default=[0.0, 100.0], metavar=("LOW", "HIGH"), help="its first and last atom")
    add("--epsilon", type=fraction, default=0.02, help="share of random actions in the end; at first it is 1")
    add("--exploration-steps", type=count, default=10_000, help="environment steps until --epsilon is reached")
    parser.fixed = (*parser.fixed, "distributional", "atoms", "support")
    return parser


class DQN(OffPolicyLearner):
    """Q-learning with a target network, epsilon-greedy."""

    saved = (*OffPolicyLearner.saved, "explorer")
    logged = ("loss",)
    action_kinds = (gym.spaces.Discrete,)

    def __init__(self, parser: Parser, args: argparse.Namespace) -> None:
        super().__init__(parser, args)
        self.explorer = EGreedyModule(
            action_space="categorical",
            num_actions=self.num_actions,
            eps_init=1.0,
            eps_end=args.epsilon,
            annealing_num_steps=args.exploration_steps,
            device=args.device,
        )

    @property
    def num_actions(self) -> int:
        """How many actions there are to choose from."""
        space = self.environments.action_space
        assert isinstance(space, gym.spaces.Discrete)  # the only one of `action_kinds`
        return int(space.n)

    def make_network(self, *out_features: int) -> MLP:
        """Observations to ``[*out_features, actions]``."""
        [inputs] = self.environments.observation_shape
        return relu_mlp(inputs, self.args.hidden, [*out_features, self.num_actions])

    def make_loss(self) -> LossModule:
        """The distance of Q(s, a) from ``r + gamma ** n * max Q_target(s', .)``."""
        self.actor: Any = QValueActor(self.make_network(), action_space="categorical").to(self.args.device)
        loss = DQNLoss(self.actor, action_space="categorical", double_dqn=self.args.double, loss_function="smooth_l1")
        loss.make_value_estimator(gamma=self.args.gamma)
        return loss

    def act(self, observation: Tensor, progress: float) -> Tensor:
        """Greedy, but for a share of epsilon, which falls with every step."""
        self.explorer.step(len(self.environments))
        data = self.actor(TensorDict({"observation": observation}, [len(observation)]))
        return self.explorer(data)["action"]

    def update(self, progress: float) -> dict[str, float]:
        """As ever; epsilon is logged too."""
        return {**super().update(progress), "epsilon": self.explorer.eps.item()}


class DistributionalDQN(DQN):
    """Q-learning on distributions of the return (C51, Bellemare et al., 2017, https://arxiv.org/abs/1707.06887)."""

    def __init__(self, parser: Parser, args: argparse.Namespace) -> None:
        low, high = args.support
        if not low < high:
            parser.error(f"argument --support: expected LOW < HIGH, got {low:g} {high:g}")
        super().__init__(parser, args)

    def make_loss(self) -> LossModule:
        """The cross-entropy to the projected distribution of ``r + gamma ** n * Z_target(s', a*)``."""
        low, high = self.args.support
        support = torch.linspace(low, high, self.args.atoms)
        network = self.make_network(self.args.atoms)
        self.actor = DistributionalQValueActor(network, support, action_space="categorical").to(self.args.device)
        return DistributionalDQNLoss(self.actor, gamma=self.args.gamma)


def make_learner(parser: Parser, args: argparse.Namespace) -> DQN:
    """The learner that the options ask for."""
    return (DistributionalDQN if args.distributional else DQN)(parser, args)


def main(argv: list[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    return run(options(), make_learner, argv)


if __name__ == "__main__":
    sys.exit(main())
