"""Learning from what was done at any time: the part that DQN, DDPG, TD3, SAC and REDQ have in common.

A script makes its parser with ``off_policy_options(prog, description, **defaults)``, adds its own options, derives from
``OffPolicyLearner`` and calls ``run(options(), Learner, argv)``. It has to say

* ``make_loss()``: the loss, its networks made on ``args.device``, its value estimator with ``args.gamma``;
* ``act(observation, progress)``: the actions to try out;
* ``logged``: the entries of the loss to log (each is averaged over its elements and over the gradient steps);

and may say otherwise what there is a default for: ``action_kinds``, ``make_environments``, ``make_updater``,
``make_optimizer``, ``objective`` (what of the loss to descend), ``move_targets``, ``descend`` (one gradient step),
``collect`` and ``update`` (with ``{**super().update(progress), "name": number}`` for more to log), and ``saved``, where it
has more to save than ``OffPolicyLearner.saved``. A setting that a resumed run must keep goes into ``parser.fixed``.
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
from .options import Parser, common_options, count, fraction, non_negative, number, positive
from .replay import NStep, ReplayBuffer


def off_policy_options(prog: str, description: str, **defaults: Any) -> Parser:
    """The options of every off-policy example; ``defaults`` are those that differ."""
    parser = common_options(prog, description)
    add = parser.add_argument
    add("--steps-per-update", type=count, default=8, help="steps of each environment between two updates")
    add("--gradient-steps", type=count, default=8, help="gradient steps in one update")
    add("--batch-size", type=count, default=128, help="transitions in one gradient step")
    add("--capacity", type=count, default=50_000, help="transitions that the replay buffer holds")
    add("--warm-up", type=count, default=1_000, help="environment steps of random actions before learning begins")
    add("--learning-rate", type=positive, default=1e-3)
    add("--tau", type=number(float, 0, 1, open_low=True), default=0.005, help="how far the targets move each time")
    add("--n-step", type=count, default=1, help="steps that one stored transition spans")
    add("--priority-alpha", type=fraction, default=0.0, help="0: replay evenly; up to 1: by td_error of the loss")
    add("--priority-beta", type=fraction, default=0.4, help="how much of the bias of replay by priority is corrected")
    add("--max-grad-norm", type=non_negative, default=0.0, help="gradients are scaled down to this norm; 0: never")
    parser.set_defaults(**{"num_envs": 1, "save_every": 500, **defaults})
    parser.fixed = (*parser.fixed, "capacity", "n_step")
    return parser


class OffPolicyLearner(Learner):
    """Environments, replay buffer, loss, target updater and optimizer of one run.

    One update: step N environments a few times and store what happened; then take a few gradient steps, each on a sample
    of all that is stored. An algorithm says which loss, how to act, and overrides what it does otherwise.
    """

    saved = ("environments", "buffer", "n_step", "loss", "optimizer", "updater")
    logged: ClassVar[tuple[str, ...]] = ()
    """Entries of the loss to log."""
    action_kinds: ClassVar[tuple[type[gym.Space], ...]] = (gym.spaces.Discrete, gym.spaces.Box)
    """Action spaces that the algorithm can learn in."""

    loss: LossModule

    def __init__(self, parser: Parser, args: argparse.Namespace) -> None:
        super().__init__(args, self.make_environments(parser, args))
        self.buffer = ReplayBuffer(
            args.capacity, alpha=args.priority_alpha, beta=args.priority_beta, device=args.device
        )
        self.n_step = NStep(args.n_step, args.gamma)
        self.loss = self.make_loss().to(args.device)
        self.updater = self.make_updater()
        self.compiled_loss = torch.compile(self.loss, fullgraph=True) if args.compile else self.loss
        self.optimizer = self.make_optimizer()
        self.steps_per_update = args.steps_per_update * args.num_envs
        self.gradient_steps = 0  # taken so far
        self.phases = {
            "environments and policy": "environments and policy",
            "replay": "replay: storing and sampling",
            "learning": "learning",
        }

    # -- what an algorithm says -------------------------------------------------------------------------------------

    @abstractmethod
    def make_loss(self) -> LossModule:
        """The loss, its networks included."""

    @abstractmethod
    def act(self, observation: Tensor, progress: float) -> Tensor:
        """The actions ``[N, ...]`` to try out, given observations ``[N, ...]`` on the device of the networks."""

    def make_environments(self, parser: Parser, args: argparse.Namespace) -> Environments:
        """The environments to learn in."""
        envs = make_envs(parser, args.env, args.num_envs, kinds=self.action_kinds)
        return Environments(envs, exact=pickles_exactly(args.env))

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

    # -- one update -------------------------------------------------------------------------------------------------

    def update(self, progress: float) -> dict[str, float]:
        """Act, store, learn."""
        self.collect(progress)
        if self.warming_up:
            return dict.fromkeys(self.logged, float("nan"))
        records = TensorDict.stack([self.learn() for _ in range(self.args.gradient_steps)])
        return {name: records[name].mean().item() for name in self.logged}

    @property
    def warming_up(self) -> bool:
        """Whether there is too little in the buffer to learn from."""
        return len(self.buffer) < min(self.args.warm_up, self.args.capacity)

    def collect(self, progress: float) -> None:
        """Take some steps and store what happened."""
        for _ in range(self.args.steps_per_update):
            with self.clock("environments and policy"):
                step = self.step(progress)
            with self.clock("replay"):
                self.buffer.add(self.n_step(step))

    def step(self, progress: float) -> TensorDictBase:
        """One step of every environment, as transitions ``[N]``."""
        observation = torch.as_tensor(self.environments.observation, dtype=torch.float32).clone()
        if self.warming_up:
            action = self.random_action()
        else:
            with torch.no_grad():
                action = self.act(observation.to(self.args.device), progress).cpu()
        after, reward, terminated, done = self.environments.step(action)
        following = {
            "observation": torch.as_tensor(after, dtype=torch.float32).clone(),
            "reward": torch.as_tensor(reward * self.args.reward_scale, dtype=torch.float32).unsqueeze(-1),
            "terminated": torch.as_tensor(terminated).clone().unsqueeze(-1),
            "done": torch.as_tensor(done).clone().unsqueeze(-1),
        }
        size = [len(self.environments)]
        return TensorDict({"observation": observation, "action": action, "next": TensorDict(following, size)}, size)

    def random_action(self) -> Tensor:
        """Actions ``[N, ...]`` that know nothing: even over a Discrete space, or over [-1, 1]."""
        empty = self.environments.empty_actions(len(self.environments))
        if empty.is_floating_point():
            return empty.uniform_(-1, 1)
        return torch.randint(int(self.environments.action_space.n), empty.shape)  # type: ignore[attr-defined]

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
        losses = self.compiled_loss(sample)
        self.optimizer.zero_grad()
        self.objective(losses).backward()
        if self.args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.loss.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.gradient_steps += 1
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
        if not self.environments.exact:  # they start new episodes, to which what was under way does not lead
            self.n_step.forget()
