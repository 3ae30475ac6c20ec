"""Twin delayed DDPG (Fujimoto et al., 2018, https://arxiv.org/abs/1802.09477) with tritonrl, and DDPG itself.

    python examples/td3.py                         # Pendulum-v1 on a CPU in a few minutes
    python examples/td3.py --ddpg                  # one critic, no smoothing, no delay (Lillicrap et al., 2015)
    python examples/td3.py --resume runs/FOLDER    # goes on exactly where that run was stopped

A deterministic policy climbs the critic's estimate of Q(s, a). TD3 adds three remedies against estimates that are too
high: the lesser of two critics, noise on the target policy's action, and a policy that moves less often than they do.
This file is what is TD3's own. The update is in ``common/off_policy.py``, the loop around it in ``common/training.py``.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, ClassVar

import gymnasium as gym
from common import OffPolicyLearner, Parser, count, make_action_value, non_negative, off_policy_options, relu_mlp, run
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from tritonrl.modules import Actor, AdditiveGaussianModule, ValueOperator
from tritonrl.objectives import DDPGLoss, LossModule, TD3Loss


def options() -> Parser:
    """The command line: what every off-policy example has, and the settings of TD3 and DDPG."""
    parser = off_policy_options(
        "td3.py",
        "Train a deterministic policy with TD3 or DDPG.",
        env="Pendulum-v1",
        num_envs=4,
        total_steps=36_000,
        gamma=0.98,
        reward_scale=0.1,
        steps_per_update=4,
        gradient_steps=4,
        tau=0.01,
    )
    add = parser.add_argument
    add("--ddpg", action="store_true", help="deep deterministic policy gradient: TD3 without its three remedies")
    add("--noise", type=non_negative, default=0.1, help="standard deviation of exploration; actions span [-1, 1]")
    add("--policy-noise", type=non_negative, default=0.2, help="that of the noise on the target policy's action")
    add("--noise-clip", type=non_negative, default=0.5, help="its largest size")
    add("--policy-delay", type=count, default=2, help="steps of the critics for one of policy and targets")
    parser.fixed = (*parser.fixed, "ddpg")
    return parser


class DDPG(OffPolicyLearner):
    """One critic and a policy that climbs it, both with targets."""

    logged: ClassVar[tuple[str, ...]] = ("loss_actor", "loss_value")
    action_kinds = (gym.spaces.Box,)

    def __init__(self, parser: Parser, args: argparse.Namespace) -> None:
        super().__init__(parser, args)
        bounds = {"low": -1.0, "high": 1.0, "device": args.device}
        self.explorer = AdditiveGaussianModule(sigma_init=args.noise, sigma_end=args.noise, **bounds)

    def make_actor(self) -> Actor:
        """The policy; 1 and -1 stand for the bounds of the action."""
        [inputs], outputs = self.environments.observation_shape, gym.spaces.flatdim(self.environments.action_space)
        return Actor(nn.Sequential(relu_mlp(inputs, self.args.hidden, outputs), nn.Tanh())).to(self.args.device)

    def make_critic(self) -> ValueOperator:
        """The action value Q(s, a)."""
        return make_action_value(self.environments, self.args.hidden).to(self.args.device)

    def make_loss(self) -> LossModule:
        """The critic's distance from ``r + gamma ** n * Q_target(s', mu_target(s'))``, and minus Q(s, mu(s))."""
        self.actor = self.make_actor()
        loss = DDPGLoss(self.actor, self.make_critic(), delay_actor=True, loss_function="smooth_l1")
        loss.make_value_estimator(gamma=self.args.gamma)
        return loss

    def act(self, observation: Tensor, progress: float) -> Tensor:
        """The policy's action with noise."""
        data: Any = self.actor(TensorDict({"observation": observation}, [len(observation)]))
        return self.explorer(data)["action"]


class TD3(DDPG):
    """Two critics of which the lesser counts, a smoothed target policy, and a policy that is updated less often."""

    logged = ("loss_actor", "loss_qvalue")

    def make_loss(self) -> LossModule:
        """The critics' distances from ``r + gamma ** n * min Q_target(s', mu_target(s') + noise)``, and minus Q(s, mu(s))."""
        self.actor = self.make_actor()
        loss = TD3Loss(
            self.actor,
            self.make_critic(),
            bounds=(-1.0, 1.0),
            policy_noise=self.args.policy_noise,
            noise_clip=self.args.noise_clip,
        )
        loss.make_value_estimator(gamma=self.args.gamma)
        return loss

    @property
    def policy_moves(self) -> bool:
        """Whether it is the turn of the policy and of the targets."""
        return self.gradient_steps % self.args.policy_delay == 0

    def objective(self, losses: TensorDictBase) -> Tensor:
        """Both terms now and then, the critics' alone otherwise: the optimizer passes over what has no gradient."""
        return self.loss.total(losses) if self.policy_moves else losses["loss_qvalue"]

    def move_targets(self) -> None:
        """Only together with the policy."""
        if self.policy_moves:
            self.updater.step()


def make_learner(parser: Parser, args: argparse.Namespace) -> DDPG:
    """The learner that the options ask for."""
    return (DDPG if args.ddpg else TD3)(parser, args)


def main(argv: list[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    return run(options(), make_learner, argv)


if __name__ == "__main__":
    sys.exit(main())
