"""Proximal policy optimisation (Schulman et al., 2017, https://arxiv.org/abs/1707.06347) with tritonrl.

    python examples/ppo.py                        # solves CartPole-v1 on a CPU in about a minute
    python examples/ppo.py --env Pendulum-v1 ...  # actions from a Box; settings for it in examples/README.md
    python examples/ppo.py --resume runs/FOLDER   # goes on exactly where that run was stopped

One update: step N environments T times into a tensordict ``[T, N]``; estimate advantages with GAE, whose kernel
reads that tensordict as it lies in memory; then go over the T*N transitions a few times in shuffled minibatches.
This file is what is PPO's own. The update is in ``common/on_policy.py``, the loop around it in ``common/training.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from common import OnPolicyLearner, Parser, count, fraction, non_negative, on_policy_options, positive, run
from tensordict import TensorDict

from tritonrl.objectives import ClipPPOLoss
from tritonrl.objectives.value import GAE


def options() -> Parser:
    """The command line: what every on-policy example has, and PPO's own settings."""
    return ppo_options("ppo.py", "Train a policy with proximal policy optimisation.")


def ppo_options(prog: str, description: str) -> Parser:
    """PPO's options, under another program's name too."""
    parser = on_policy_options(prog, description)
    add = parser.add_argument
    add("--gae-lambda", type=fraction, default=0.8, help="0: one-step TD errors, 1: Monte-Carlo returns")
    add("--epochs", type=count, default=10, help="passes over each rollout")
    add("--minibatch-size", type=count, default=256, help="transitions in one gradient step")
    add("--clip-epsilon", type=positive, default=0.2, help="how far the probability ratio may usefully move from 1")
    add("--entropy-coeff", type=non_negative, default=0.0, help="weight of the entropy bonus")
    add("--critic-coeff", type=positive, default=0.5, help="weight of the value loss")
    return parser


class PPO(OnPolicyLearner):
    """PPO with a clipped probability ratio."""

    @property
    def logged(self) -> tuple[str, ...]:
        """Entries of the loss to log."""
        return ("loss_objective", "loss_critic", "entropy", "kl_approx", "clip_fraction", "explained_variance")

    def make_estimator(self) -> GAE:
        """Advantages and value targets.

        GAE evaluates the critic at ("next", "observation") too. The collector stores the true next observation there,
        so a truncated step bootstraps from its value; behind ``terminated`` the value counts for nothing.
        """
        args = self.args
        return GAE(gamma=args.gamma, lmbda=args.gae_lambda, value_network=self.critic, time_dim=0, device=args.device)

    def make_loss(self, **options: Any) -> ClipPPOLoss:
        """The clipped objective, the value loss and the entropy bonus; with further ``options`` of the loss."""
        return ClipPPOLoss(
            self.actor,
            self.critic,
            clip_epsilon=self.args.clip_epsilon,
            entropy_coeff=self.args.entropy_coeff,
            critic_coeff=self.args.critic_coeff,
            loss_critic_type="l2",
            normalize_advantage=True,
            device=self.args.device,
            **options,
        )

    def minibatches(self, batch: TensorDict) -> Iterator[TensorDict]:
        """Some epochs over the rollout, each in a new order."""
        for _ in range(self.args.epochs):
            shuffled = batch[torch.randperm(len(batch), device=batch.device)]
            yield from shuffled.split(self.args.minibatch_size)


def main(argv: list[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    return run(options(), PPO, argv)


if __name__ == "__main__":
    sys.exit(main())
