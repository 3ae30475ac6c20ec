"""Learning from samples of stored transitions, wherever they came from: of this run (``off_policy``) or of a file.

A script derives from ``ReplayLearner``, gives its constructor environments and a buffer, and has to say

* ``make_loss()``: the loss, its networks made on ``args.device``, its value estimator with ``args.gamma``;
* ``logged``: the entries of the loss to log (each is averaged over its elements and over the gradient steps);

and may say otherwise what there is a default for: ``make_updater``, ``make_optimizer``, ``objective`` (what of the loss
to descend), ``move_targets`` and ``descend`` (one gradient step).
"""

from __future__ import annotations

import argparse
from abc import abstractmethod
from typing import Any, ClassVar

import gymnasium as gym
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from tritonrl.objectives import LossModule, SoftUpdate

from .environments import Environments, make_envs, pickles_exactly
from .learner import Learner
from .options import Parser, common_options, count, non_negative, number, positive
from .replay import ReplayBuffer


def replay_options(prog: str, description: str, unit: str = "environment steps", **defaults: Any) -> Parser:
    """The options of every example that learns from samples; ``defaults`` are those that differ."""
    parser = common_options(prog, description, unit)
    add = parser.add_argument
    add("--gradient-steps", type=count, default=8, help="gradient steps in one update")
    add("--batch-size", type=count, default=128, help="transitions in one gradient step")
    add("--learning-rate", type=positive, default=1e-3)
    add("--tau", type=number(float, 0, 1, open_low=True), default=0.005, help="how far the targets move each time")
    add("--max-grad-norm", type=non_negative, default=0.0, help="gradients are scaled down to this norm; 0: never")
    parser.set_defaults(**{"num_envs": 1, "save_every": 500, **defaults})
    return parser


class ReplayLearner(Learner):
    """Replay buffer, loss, target updater and optimizer of one run."""

    saved: ClassVar[tuple[str, ...]] = ("environments", "loss", "optimizer", "updater")
    logged: ClassVar[tuple[str, ...]] = ()
    """Entries of the loss to log."""
    action_kinds: ClassVar[tuple[type[gym.Space], ...]] = (gym.spaces.Discrete, gym.spaces.Box)
    """Action spaces that the algorithm can learn in."""

    window: ClassVar[int] = 100
    """Episodes whose mean return is reported."""

    loss: LossModule

    def __init__(self, args: argparse.Namespace, environments: Environments, buffer: ReplayBuffer) -> None:
        super().__init__(args, environments)
        self.buffer = buffer
        self.loss = self.make_loss().to(args.device)
        self.updater = self.make_updater()
        self.compiled_loss = torch.compile(self.loss, fullgraph=True) if args.compile else self.loss
        self.optimizer = self.make_optimizer()
        self.gradient_steps = 0  # so far, the one under way included
        self.phases = {
            "environments and policy": "environments and policy",
            "replay": "replay: storing and sampling",
            "learning": "learning",
        }

    # -- what an algorithm says -------------------------------------------------------------------------------------

    @abstractmethod
    def make_loss(self) -> LossModule:
        """The loss, its networks included."""

    @classmethod
    def make_environments(cls, parser: Parser, args: argparse.Namespace) -> Environments:
        """The environments to act in."""
        envs = make_envs(parser, args.env, args.num_envs, kinds=cls.action_kinds)
        return Environments(envs, exact=pickles_exactly(args.env), window=cls.window)

    def make_updater(self) -> Any:
        """What moves the target networks."""
        return SoftUpdate(self.loss, tau=self.args.tau)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Descends the gradient."""
        return torch.optim.Adam(self.loss.parameters(), lr=self.args.learning_rate, fused=True)

    def objective(self, losses: TensorDictBase) -> Tensor:
        """What of the loss to descend."""
        return self.loss.total(losses)

    def move_targets(self) -> None:
        """Called after each gradient step."""
        self.updater.step()

    # -- learning ---------------------------------------------------------------------------------------------------

    def learn_some(self) -> dict[str, float]:
        """The gradient steps of one update; returns what to log."""
        records = TensorDict.stack([self.learn() for _ in range(self.args.gradient_steps)])
        return {name: records[name].mean().item() for name in self.logged}

    def learn(self) -> TensorDictBase:
        """Learn from one sample; returns the scalars to log, still on the device."""
        with self.clock("replay"):
            sample = self.buffer.sample(self.args.batch_size)
        with self.clock("learning"):
            losses = self.descend(sample)
        with self.clock("replay"):
            self.buffer.update_priorities(sample)
        return losses.detach().select(*self.logged)

    def descend(self, sample: TensorDictBase) -> TensorDictBase:
        """One gradient step; the loss writes ``td_error`` into ``sample``."""
        self.gradient_steps += 1
        losses = self.compiled_loss(sample)
        self.optimizer.zero_grad()
        self.objective(losses).backward()
        if self.args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.loss.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.move_targets()
        return losses

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What training has made so far."""
        return super().state_dict() | {"gradient_steps": self.gradient_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.gradient_steps = state["gradient_steps"]
