"""Learning from what the current policy has just done: the part that PPO, A2C and REINFORCE have in common."""

from __future__ import annotations

import argparse
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn

from tritonrl.objectives import LossModule
from tritonrl.objectives.value import ValueEstimatorBase

from .clocks import KernelClock
from .environments import Environments, make_envs, pickles_exactly
from .learner import Learner
from .networks import make_actor, make_critic
from .options import Parser, common_options, count, positive
from .rollouts import Collector


def on_policy_options(prog: str, description: str, **defaults: Any) -> Parser:
    """The options of every on-policy example; ``defaults`` are those that differ from PPO's."""
    parser = common_options(prog, description)
    add = parser.add_argument
    add("--rollout-steps", type=count, default=64, help="steps of each environment between two updates (T)")
    add("--learning-rate", type=positive, default=1e-3, help="at the start; decays linearly to zero")
    add("--max-grad-norm", type=positive, default=0.5, help="gradients are scaled down to this norm")
    parser.set_defaults(**defaults)
    return parser


class OnPolicyLearner(Learner):
    """Networks, estimator, loss and optimizer of one run, and what is done with a rollout.

    One update: step N environments T times into a tensordict ``[T, N]``; estimate advantages, with a kernel that reads
    that tensordict as it lies in memory; then descend the gradient of the loss, here once and on the whole rollout.
    An algorithm says which estimator and which loss, and overrides what it does otherwise.
    """

    saved = ("actor", "critic", "optimizer", "environments")
    learnt_from: ClassVar[tuple[NestedKey, ...]] = (
        "observation",
        "action",
        "action_log_prob",
        "advantage",
        "value_target",
    )
    """Entries of the rollout that the loss reads."""
    group: ClassVar[str | None] = None
    """The name of the agents, where there are several."""

    def __init__(self, parser: Parser, args: argparse.Namespace) -> None:
        super().__init__(args, self.make_environments(parser, args))
        self.actor, self.critic = (network.to(args.device) for network in self.make_networks())
        self.estimator, self.loss = self.make_estimator(), self.make_loss()
        self.compiled_loss = torch.compile(self.loss, fullgraph=True) if args.compile else self.loss
        self.optimizer = self.make_optimizer()
        self.collector = Collector(self.environments, args.rollout_steps, args.reward_scale, args.device, self.group)
        self.steps_per_update = self.collector.data.numel()
        self.kernel_clock = KernelClock(self.clock)
        self.phases = {
            "environments and policy": "environments and policy",
            "learning": "learning",
            "estimator": f"estimator: {type(self.estimator).__name__}, its calls of the value network included",
            "first kernel call": "  of which the first call of tritonrl's kernel, which compiles or loads it",
            "kernels": "  of which all other calls of it, the kernel alone",
        }

    def make_environments(self, parser: Parser, args: argparse.Namespace) -> Environments:
        """The environments to learn in."""
        return Environments(make_envs(parser, args.env, args.num_envs), exact=pickles_exactly(args.env))

    def make_networks(self) -> tuple[ProbabilisticTensorDictSequential, TensorDictModule]:
        """Actor and critic."""
        return make_actor(self.environments, self.args.hidden), make_critic(self.environments, self.args.hidden)

    @property
    def logged(self) -> tuple[str, ...]:
        """Entries of the loss to log."""
        return tuple(self.loss.out_keys)

    @abstractmethod
    def make_estimator(self) -> ValueEstimatorBase:
        """What writes advantages and value targets into a rollout ``[T, N]``."""

    @abstractmethod
    def make_loss(self) -> LossModule:
        """The loss, a function of the entries ``learnt_from``."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Descends the gradient."""
        return torch.optim.Adam(self.loss.parameters(), lr=self.args.learning_rate, eps=1e-5, fused=True)

    def update(self, progress: float) -> dict[str, float]:
        """Collect, estimate, learn."""
        with self.clock("environments and policy"):
            data = self.collector.collect(self.actor)
        with self.clock("estimator"), self.kernel_clock:
            self.estimator(data)
        with self.clock("learning"):
            return self.learn(data, progress)

    def learn(self, data: TensorDict, progress: float) -> dict[str, float]:
        """Learn from one rollout, with a learning rate that falls linearly as ``progress`` goes from 0 to 1."""
        learning_rate = self.args.learning_rate * (1 - progress)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        batch = data.select(*self.learnt_from).reshape(-1)
        records = TensorDict.stack([self.gradient_step(minibatch) for minibatch in self.minibatches(batch)])
        return {name: value.mean().item() for name, value in records.items()} | {"learning_rate": learning_rate}

    def minibatches(self, batch: TensorDict) -> Iterator[TensorDict]:
        """The transitions ``[T * N]`` of a rollout, divided into what each gradient step learns from."""
        yield batch

    def gradient_step(self, minibatch: TensorDict) -> TensorDict:
        """One step down the gradient of the loss; returns the scalars to log, still on the device."""
        losses = self.compiled_loss(minibatch)
        self.optimizer.zero_grad()
        self.loss.total(losses).backward()
        norm = nn.utils.clip_grad_norm_(self.loss.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        return losses.detach().select(*self.logged).set("grad_norm", norm)
