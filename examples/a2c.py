"""Advantage actor-critic (Mnih et al., 2016, https://arxiv.org/abs/1602.01783) with tritonrl.

    python examples/a2c.py                        # solves CartPole-v1 in about half a minute of CPU time
    python examples/a2c.py --resume runs/FOLDER   # goes on exactly where that run was stopped

One update: step N environments a few times into a tensordict ``[T, N]``, estimate advantages with GAE, and take a single
gradient step on all of it. Rollouts are short and updates many, because nothing corrects for data that are older than
the policy. This file is what is A2C's own. The update is in ``common/on_policy.py``, the loop around it in
``common/training.py``.
"""

from __future__ import annotations

import sys

from common import OnPolicyLearner, Parser, fraction, non_negative, on_policy_options, positive, run

from tritonrl.objectives import A2CLoss
from tritonrl.objectives.value import GAE


def options() -> Parser:
    """The command line: what every on-policy example has, and A2C's own settings."""
    parser = on_policy_options(
        "a2c.py",
        "Train a policy with advantage actor-critic.",
        rollout_steps=8,
        learning_rate=3e-3,
        save_every=200,
    )
    add = parser.add_argument
    add("--gae-lambda", type=fraction, default=0.95, help="0: one-step TD errors, 1: Monte-Carlo returns")
    add(
        "--entropy-coeff",
        type=non_negative,
        default=0.0,
        help="weight of the entropy bonus; 0 leaves it out of the log too",
    )
    add("--critic-coeff", type=positive, default=0.5, help="weight of the value loss")
    return parser


class A2C(OnPolicyLearner):
    """A2C: one gradient step on each rollout."""

    def make_estimator(self) -> GAE:
        """Advantages and value targets; an advantage of n steps is what lambda = 1 would be."""
        args = self.args
        return GAE(gamma=args.gamma, lmbda=args.gae_lambda, value_network=self.critic, time_dim=0, device=args.device)

    def make_loss(self) -> A2CLoss:
        """The policy gradient, the value loss and the entropy bonus."""
        return A2CLoss(
            self.actor,
            self.critic,
            entropy_coeff=self.args.entropy_coeff,
            critic_coeff=self.args.critic_coeff,
            loss_critic_type="l2",
        ).to(self.args.device)


def main(argv: list[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    return run(options(), A2C, argv)


if __name__ == "__main__":
    sys.exit(main())
