"""REINFORCE with a baseline (Williams, 1992, https://doi.org/10.1007/BF00992696) with tritonrl.

    python examples/reinforce.py                        # solves CartPole-v1 in about half a minute of CPU time
    python examples/reinforce.py --resume runs/FOLDER   # goes on exactly where that run was stopped

One update: step N environments into a tensordict ``[T, N]`` with T as long as an episode, sum up the discounted returns
of every step with TD(1), subtract the baseline, and take a single gradient step on all of it. Where the rollout ends in
mid-episode, or a time limit ends the episode, the rest of the return is not known and the baseline stands in for it;
everywhere else the returns are the Monte-Carlo returns of the paper. This file is what is REINFORCE's own. The update is
in ``common/on_policy.py``, the loop around it in ``common/training.py``.
"""

from __future__ import annotations

import sys

from common import OnPolicyLearner, Parser, on_policy_options, run

from tritonrl.objectives import ReinforceLoss
from tritonrl.objectives.value import TD1Estimator


def options() -> Parser:
    """The command line: what every on-policy example has."""
    return on_policy_options(
        "reinforce.py",
        "Train a policy with REINFORCE and a learnt baseline.",
        num_envs=8,
        rollout_steps=500,
        learning_rate=1e-2,
        reward_scale=0.05,  # returns of about 1, so that the baseline's gradient does not drown the policy's
    )


class Reinforce(OnPolicyLearner):
    """REINFORCE: Monte-Carlo returns less a baseline, one gradient step on each rollout."""

    def make_estimator(self) -> TD1Estimator:
        """The returns as value targets; as advantages, what of them the baseline did not foresee."""
        return TD1Estimator(gamma=self.args.gamma, value_network=self.critic, time_dim=0, device=self.args.device)

    def make_loss(self) -> ReinforceLoss:
        """The likelihood-ratio policy gradient, and the baseline's regression on the returns."""
        return ReinforceLoss(self.actor, self.critic, loss_critic_type="l2").to(self.args.device)


def main(argv: list[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    return run(options(), Reinforce, argv)


if __name__ == "__main__":
    sys.exit(main())
