"""Dreamer (Hafner et al., 2019, https://arxiv.org/abs/1912.01603) with tritonrl: learning by imagination.

    python examples/dreamer.py                      # Pendulum-v1 on a CPU in a few minutes
    python examples/dreamer.py --resume runs/FOLDER # goes on exactly where that run was stopped

A recurrent state-space model learns what follows from what, out of pieces of past episodes. From every state in them,
policy and value function are then trained on imagined steps alone: the policy by the gradients of the TD(lambda) returns
through the model, in which the backward pass of tritonrl's kernel takes part.

Here observations are vectors, so encoder and decoder are small; for images only these two would be others. The model
imagines no ends of episodes, so this is for tasks that a time limit alone ends. The networks are in ``world_model.py``,
the loop is ``common/training.py``.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import torch
from common import (
    ActionRepeat,
    Environments,
    Learner,
    Parser,
    SequenceReplay,
    common_options,
    count,
    fraction,
    make_envs,
    non_negative,
    pickles_exactly,
    positive,
    present_observation,
    random_action,
    run,
    take_step,
)
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from world_model import Networks, TimedActorLoss

from tritonrl.modules import AdditiveGaussianModule
from tritonrl.objectives import DreamerModelLoss, DreamerValueLoss

DEFAULTS = {"env": "Pendulum-v1", "total_steps": 16_000, "num_envs": 1, "gamma": 0.95, "reward_scale": 0.1}


def options() -> Parser:
    """The command line: what every example has, and Dreamer's own settings."""
    parser = common_options("dreamer.py", "Train a policy in the imagination of a world model (Dreamer).")
    parser.set_defaults(**DEFAULTS)
    add = parser.add_argument
    add("--action-repeat", type=count, default=4, help="environment steps for which an action is kept")
    add("--steps-per-update", type=count, default=5, help="actions in each environment between two updates")
    add("--gradient-steps", type=count, default=3, help="gradient steps in one update, of each of the three losses")
    add("--batch-size", type=count, default=24, help="pieces of episodes in one gradient step")
    add("--sequence-length", type=count, default=10, help="actions in one piece")
    add("--horizon", type=count, default=10, help="imagined actions, from every state of every piece")
    add("--capacity", type=count, default=50_000, help="actions of each environment that are kept")
    add("--warm-up", type=count, default=1_000, help="environment steps of random actions before learning begins")
    add("--td-lambda", type=fraction, default=0.95, help="0: one-step returns, 1: returns over the whole horizon")
    add("--noise", type=non_negative, default=0.2, help="standard deviation of exploration; actions span [-1, 1]")
    add("--state-size", type=count, default=8, help="size of the random part of the latent state")
    add("--kl-weight", type=positive, default=0.1, help="weight of the divergence of the prior from the posterior")
    add("--free-nats", type=non_negative, default=0.0, help="divergence that costs nothing")
    add("--model-learning-rate", type=positive, default=1e-3)
    add("--learning-rate", type=positive, default=1e-3, help="of policy and value function")
    add("--max-grad-norm", type=positive, default=100.0, help="gradients are scaled down to this norm")
    parser.fixed = (*parser.fixed, "capacity", "state_size", "action_repeat")
    return parser


class Dreamer(Learner):
    """World model, policy, value function, and the past that the first of them learns from.

    One update: take some steps, storing them; then a few times sample pieces of the past, fit the world model to them,
    and train policy and value function on what the model imagines from there.
    """

    saved = ("environments", "buffer", "networks", "model_optimizer", "actor_optimizer", "value_optimizer")
    logged = ("loss_model", "loss_model_kl", "loss_model_reco", "loss_model_reward", "loss_actor", "loss_value")
    curves: ClassVar[dict[str, str]] = {"loss_model": "loss of the world model"}

    def __init__(self, parser: Parser, args: argparse.Namespace) -> None:
        maker = partial(ActionRepeat.make, times=args.action_repeat)
        envs = make_envs(parser, args.env, args.num_envs, maker, kinds=(gym.spaces.Box,))
        super().__init__(args, Environments(envs, exact=pickles_exactly(args.env, maker), window=10))
        self.buffer = SequenceReplay(args.capacity, device=args.device)
        self.networks = Networks(self.environments, args.hidden, args.state_size).to(args.device)
        self.explorer = AdditiveGaussianModule(
            sigma_init=args.noise, sigma_end=args.noise, low=-1.0, high=1.0, device=args.device
        )
        self.make_losses()
        self.memory = self.networks.nothing(args.num_envs)
        self.steps_per_update = args.steps_per_update * args.num_envs * args.action_repeat
        self.phases = {
            "environments and policy": "environments and policy",
            "replay": "replay: storing and sampling",
            "world model": "world model: loss, gradient, step",
            "actor": "policy: imagination, loss, gradient, step",
            **({} if args.compile else TimedActorLoss.phases),
            "value": "value function: loss, gradient, step",
        }

    def make_losses(self) -> None:
        """The three losses, each with its own optimizer."""
        args, networks = self.args, self.networks
        self.model_loss = DreamerModelLoss(networks.world_model, lambda_kl=args.kl_weight, free_nats=args.free_nats)
        self.model_loss.set_keys(pixels="observation", reco_pixels="reconstruction")
        self.actor_loss = TimedActorLoss(
            networks.actor, networks.value, networks.imagination, imagination_horizon=args.horizon
        )
        self.actor_loss.make_value_estimator(gamma=args.gamma, lmbda=args.td_lambda, device=args.device)
        self.actor_loss.timed_by(None if args.compile else self.clock)
        self.value_loss = DreamerValueLoss(networks.value, gamma=args.gamma)
        if args.compile:
            for name in ("model_loss", "actor_loss", "value_loss"):
                setattr(self, name, torch.compile(getattr(self, name), fullgraph=True))
        Adam = partial(torch.optim.Adam, eps=1e-5, fused=True)
        self.model_optimizer = Adam(networks.world_model.parameters(), lr=args.model_learning_rate)
        self.actor_optimizer = Adam(networks.actor.parameters(), lr=args.learning_rate)
        self.value_optimizer = Adam(networks.value.parameters(), lr=args.learning_rate)

    # -- one update -------------------------------------------------------------------------------------------------

    def update(self, progress: float) -> dict[str, float]:
        """Act, store, learn."""
        for _ in range(self.args.steps_per_update):
            with self.clock("environments and policy"):
                step = self.step()
            with self.clock("replay"):
                self.buffer.add(step)
        if self.warming_up:
            return dict.fromkeys(self.logged, float("nan"))
        records = TensorDict.stack([self.learn() for _ in range(self.args.gradient_steps)])
        return {name: records[name].mean().item() for name in self.logged}

    @property
    def warming_up(self) -> bool:
        """Whether too little has happened to learn from."""
        args = self.args
        stored = len(self.buffer) * args.num_envs * args.action_repeat
        return len(self.buffer) < min(args.capacity, args.sequence_length) or stored < args.warm_up

    def step(self) -> TensorDictBase:
        """One step of every environment, as the buffer wants it: ``[1, N, ...]``."""
        is_init = self.memory["is_init"].cpu().clone()
        action = self.act(present_observation(self.environments).to(self.args.device))
        step = take_step(self.environments, action.cpu(), self.args.reward_scale)
        self.memory["is_init"] = step["next", "done"].to(self.args.device)
        kept = step.set("is_init", is_init).exclude(("next", "done"), ("next", "terminated"))
        return kept.apply(lambda entry: entry.unsqueeze(0), batch_size=[1])

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        """The actions ``[N, A]`` to try out; remembers the latent states and the actions."""
        self.networks.observe(self.memory, observation)
        action: Any = self.explorer(self.networks.actor(self.memory.select("state", "belief")))["action"]
        if self.warming_up:
            action = random_action(self.environments).to(action)
        self.memory["action"] = action
        return action

    def learn(self) -> TensorDictBase:
        """One gradient step of each loss; returns the scalars to log, still on the device."""
        with self.clock("replay"):
            pieces = self.buffer.sequences(self.args.batch_size, self.args.sequence_length)
        with self.clock("world model"):
            model, inferred = self.model_loss(pieces)
            model["loss_model"] = sum(model.values())
            self.descend(model["loss_model"], self.model_optimizer)
        with self.clock("actor"):
            actor, imagined = self.actor_loss(inferred["next"].select("state", "belief").reshape(-1))
            self.descend(actor["loss_actor"], self.actor_optimizer)
        with self.clock("value"):
            value, _ = self.value_loss(imagined)
            self.descend(value["loss_value"], self.value_optimizer)
        return TensorDict(
            {name: entry.detach().sum() for part in (model, actor, value) for name, entry in part.items()}
        )

    def descend(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """One step of an optimizer down the gradient of its loss."""
        optimizer.zero_grad()
        loss.sum().backward()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], self.args.max_grad_norm)
        optimizer.step()

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What training has made so far, and what the policy remembers of the episodes under way."""
        return super().state_dict() | {"memory": self.memory.cpu().clone().to_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        super().load_state_dict(state)
        self.memory.update(TensorDict(state["memory"], self.memory.batch_size))
        if not self.environments.exact:  # they start new episodes, of which nothing is remembered
            self.memory["is_init"] = torch.ones_like(self.memory["is_init"])


def main(argv: list[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    return run(options(), Dreamer, argv)


if __name__ == "__main__":
    sys.exit(main())
