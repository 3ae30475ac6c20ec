"""Learning from what was done at any time: the part that DQN, DDPG, TD3, SAC and REDQ have in common.

A script makes its parser with ``off_policy_options(prog, description, **defaults)``, adds its own options, derives from
``OffPolicyLearner`` and calls ``run(options(), Learner, argv)``. It has to say

* ``make_loss()``: the loss, its networks made on ``args.device``, its value estimator with ``args.gamma``;
* ``act(observation, progress)``: the actions to try out;
* ``logged``: the entries of the loss to log (each is averaged over its elements and over the gradient steps);

and may say otherwise what there is a default for: ``action_kinds``, ``make_environments``, what ``replay_learner`` names,
``collect`` and ``update`` (with ``{**super().update(progress), "name": number}`` for more to log), and ``saved``, where it
has more to save than ``OffPolicyLearner.saved``. A setting that a resumed run must keep goes into ``parser.fixed``.
"""

from __future__ import annotations

import argparse
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from .options import Parser, count, fraction
from .replay import NStep, ReplayBuffer
from .replay_learner import ReplayLearner, replay_options
from .transitions import present_observation, random_action, take_step


def off_policy_options(prog: str, description: str, **defaults: Any) -> Parser:
    """The options of every off-policy example; ``defaults`` are those that differ."""
    parser = replay_options(prog, description)
    add = parser.add_argument
    add("--steps-per-update", type=count, default=8, help="steps of each environment between two updates")
    add("--capacity", type=count, default=50_000, help="transitions that the replay buffer holds")
    add("--warm-up", type=count, default=1_000, help="environment steps of random actions before learning begins")
    add("--n-step", type=count, default=1, help="steps that one stored transition spans")
    add("--priority-alpha", type=fraction, default=0.0, help="0: replay evenly; up to 1: by td_error of the loss")
    add("--priority-beta", type=fraction, default=0.4, help="how much of the bias of replay by priority is corrected")
    parser.set_defaults(**defaults)
    parser.fixed = (*parser.fixed, "capacity", "n_step")
    return parser


class OffPolicyLearner(ReplayLearner):
    """Environments, replay buffer, loss, target updater and optimizer of one run.

    One update: step N environments a few times and store what happened; then take a few gradient steps, each on a sample
    of all that is stored. An algorithm says which loss, how to act, and overrides what it does otherwise.
    """

    saved: ClassVar[tuple[str, ...]] = ("environments", "buffer", "n_step", "loss", "optimizer", "updater")

    def __init__(self, parser: Parser, args: argparse.Namespace) -> None:
        buffer = ReplayBuffer(args.capacity, alpha=args.priority_alpha, beta=args.priority_beta, device=args.device)
        super().__init__(args, self.make_environments(parser, args), buffer)
        self.n_step = NStep(args.n_step, args.gamma)
        self.steps_per_update = args.steps_per_update * args.num_envs

    @abstractmethod
    def act(self, observation: Tensor, progress: float) -> Tensor:
        """The actions ``[N, ...]`` to try out, given observations ``[N, ...]`` on the device of the networks."""

    # -- one update -------------------------------------------------------------------------------------------------

    def update(self, progress: float) -> dict[str, float]:
        """Act, store, learn."""
        self.collect(progress)
        return dict.fromkeys(self.logged, float("nan")) if self.warming_up else self.learn_some()

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
        if self.warming_up:
            action = self.random_action()
        else:
            observation = present_observation(self.environments).to(self.args.device)
            with torch.no_grad():
                action = self.act(observation, progress).cpu()
        return take_step(self.environments, action, self.args.reward_scale)

    def random_action(self) -> Tensor:
        """Actions ``[N, ...]`` that know nothing."""
        return random_action(self.environments)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        super().load_state_dict(state)
        if not self.environments.exact:  # they start new episodes, to which what was under way does not lead
            self.n_step.forget()
