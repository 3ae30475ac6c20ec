"""Implicit Q-learning (Kostrikov et al., 2021, https://arxiv.org/abs/2110.06169) with tritonrl: learning from a file.

    python examples/iql.py                         # Pendulum-v1: collects data, saves them, learns from the file
    python examples/iql.py --env CartPole-v1       # Discrete actions: DiscreteIQLLoss
    python examples/iql.py --data runs/FOLDER/data.pt --seed 1   # learns from data that are there
    python examples/iql.py --resume runs/FOLDER    # goes on exactly where that run was stopped

A policy written by hand (``behaviours.py``), many of whose actions are random, collects the data. Then nothing but the
file is learnt from: a value function that is the critics' upper expectile over the actions in the data, critics that
bootstrap from it, and a policy that imitates the better ones of those actions. The environments are only there to
evaluate the policy in; what happens in them is not learnt from. Steps are gradient steps here.
This file is what is IQL's own. The gradient step is in ``common/replay_learner.py``.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from behaviours import BEHAVIOURS
from common import (
    Environments,
    Parser,
    ReplayBuffer,
    ReplayLearner,
    count,
    fraction,
    make_action_value,
    make_actor,
    make_critic,
    non_negative,
    number,
    present_observation,
    random_action,
    replay_options,
    run,
    take_step,
)
from gymnasium.spaces import Discrete
from tensordict import TensorDict

from tritonrl.objectives import DiscreteIQLLoss, IQLLoss, LossModule

DEFAULTS: dict[str, Any] = {
    "env": "Pendulum-v1",
    "num_envs": 20,
    "total_steps": 4_500,
    "gradient_steps": 300,
    "batch_size": 256,
    "reward_scale": 0.1,
    "tau": 0.01,
    "save_every": 5,
}


def options() -> Parser:
    """The command line: what every example that learns from samples has, and IQL's own settings."""
    parser = replay_options("iql.py", "Train a policy on a file of transitions.", unit="gradient steps", **DEFAULTS)
    add = parser.add_argument
    add("--data", type=absolute, help="file to learn from (default: data.pt in the run folder, collected first)")
    add(
        "--behaviour",
        choices=BEHAVIOURS,
        help="policy that collects the data (default: the one made for --env, if any)",
    )
    add("--randomness", type=fraction, default=0.5, help="share of its actions that are random instead")
    add("--data-steps", type=count, default=20_000, help="environment steps to collect, rounded up")
    add("--evaluation-steps", type=count, default=200, help="steps of each environment after each update")
    add(
        "--expectile",
        type=number(float, 0.5, 0.999),
        default=0.8,
        help="0.5: the mean; towards 1: the best in the data",
    )
    add("--temperature", type=non_negative, default=3.0, help="0: imitate all actions; above it, the better ones")
    return parser


def absolute(path: str) -> str:
    """An argparse type: a path that means the same to a run that is resumed elsewhere."""
    return str(Path(path).resolve())


class IQL(ReplayLearner):
    """Critics, value function and policy, from a file of transitions."""

    logged = ("loss_actor", "loss_qvalue", "loss_value", "entropy")
    unit = "gradient steps"

    def __init__(self, parser: Parser, args: argparse.Namespace) -> None:
        environments = self.make_environments(parser, args)
        super().__init__(args, environments, load(parser, args, environments, data_file(parser, args)))
        self.steps_per_update = args.gradient_steps
        self.phases = {
            "replay": "sampling",
            "learning": "learning",
            "evaluation": "evaluation: environments and policy",
        }

    def make_loss(self) -> LossModule:
        """V is an expectile of min Q, Q is regressed on ``r + gamma * V(s')``, the policy on actions by their advantage."""
        environments, hidden = self.environments, self.args.hidden
        self.actor = make_actor(environments, hidden)
        critic, value = make_action_value(environments, hidden), make_critic(environments, hidden)
        settings: dict[str, Any] = {"expectile": self.args.expectile, "temperature": self.args.temperature}
        if isinstance(environments.action_space, Discrete):
            loss = DiscreteIQLLoss(self.actor, critic, value, action_space="categorical", **settings)
        else:
            loss = IQLLoss(self.actor, critic, value, **settings)
        loss.make_value_estimator(gamma=self.args.gamma)
        return loss

    def update(self, progress: float) -> dict[str, float]:
        """Learn from the file, more and more slowly, then see how well the policy does."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.learning_rate * (1 - progress)
        losses = self.learn_some()
        with self.clock("evaluation"):
            self.evaluate()
        return losses

    @torch.no_grad()
    def evaluate(self) -> None:
        """Some steps, each with the likeliest action; the environments count the returns."""
        for _ in range(self.args.evaluation_steps):
            observation = present_observation(self.environments).to(self.args.device)
            policy = self.actor.get_dist(TensorDict({"observation": observation}, [len(observation)]))
            self.environments.step(policy.mode)


# -- the data set -------------------------------------------------------------------------------------------------------


def data_file(parser: Parser, args: argparse.Namespace) -> Path:
    """The file to learn from; collected first by a new run that was given none."""
    if args.data:
        return Path(args.data)
    if args.resume:
        path = (args.resume if args.resume.is_dir() else args.resume.parent) / "data.pt"
        if path.parent.resolve() != args.out.resolve():
            args.data = absolute(str(path))  # for when the new run is resumed in turn
        return path
    path = args.out / "data.pt"
    collect(parser, args, path)
    return path


def collect(parser: Parser, args: argparse.Namespace, path: Path) -> None:
    """Let the behaviour policy act, and write what happened to ``path``."""
    name = args.behaviour or next((name for name, known in BEHAVIOURS.items() if known.env == args.env), "random")
    policy, made_for = BEHAVIOURS[name]
    if made_for not in (None, args.env):
        parser.error(f"argument --behaviour: {name} is for {made_for}, not for {args.env}")
    environments = IQL.make_environments(parser, args)
    times = math.ceil(args.data_steps / len(environments))
    buffer = ReplayBuffer(times * len(environments))
    with torch.random.fork_rng(devices=[]):  # so that learning does not depend on who collected the data
        torch.manual_seed(args.seed)
        environments.reset(args.seed + 1_000_000)  # not the episodes of the evaluation
        for _ in range(times):
            action = random_action(environments)
            if policy is not None:
                at_random = torch.rand(action.shape) < args.randomness
                action = torch.where(at_random, action, policy(present_observation(environments)))
            buffer.add(take_step(environments, action, reward_scale=1.0))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer.save(path)
    except OSError as error:
        parser.error(f"argument --out: cannot write {path}: {error}")
    share = 1.0 if policy is None else args.randomness
    print(
        f"{path}: {len(buffer)} steps by {name!r} ({share:.0%} random), mean return {environments.mean_return:.1f} over "
        f"the last {len(environments.finished)} of {environments.episodes} episodes"
    )


def load(parser: Parser, args: argparse.Namespace, environments: Environments, path: Path) -> ReplayBuffer:
    """What is in the file, with the rewards scaled."""
    try:
        buffer = ReplayBuffer.from_file(path, device=args.device)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        parser.error(f"argument --data: cannot read a data set from {path} ({reason})")
    data, actions = buffer.storage, environments.empty_actions(len(buffer))
    assert data is not None  # a buffer from a file is not empty
    expected = {"observation": (len(buffer), *environments.observation_shape), "action": tuple(actions.shape)}
    for key, shape in expected.items():
        found = data[key]
        if tuple(found.shape) != shape or (key == "action" and found.dtype != actions.dtype):
            parser.error(f"argument --data: {path} has {key} {list(found.shape)}, {args.env} needs {list(shape)}")
    data["next", "reward"].mul_(args.reward_scale)
    return buffer


def main(argv: list[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    return run(options(), IQL, argv)


if __name__ == "__main__":
    sys.exit(main())
