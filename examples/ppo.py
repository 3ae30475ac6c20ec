"""Proximal policy optimisation (Schulman et al., 2017, https://arxiv.org/abs/1707.06347) with tritonrl.

    python examples/ppo.py                        # solves CartPole-v1 on a CPU in about a minute
    python examples/ppo.py --env Pendulum-v1 ...  # actions from a Box; settings for it in examples/README.md
    python examples/ppo.py --resume runs/FOLDER   # goes on exactly where that run was stopped

One iteration: step N environments T times into a tensordict ``[T, N]``; estimate advantages with GAE, whose kernel
reads that tensordict as it lies in memory; then go over the T*N transitions a few times in shuffled minibatches.
Command line, environments, networks, rollouts, logs and checkpoints are in ``common.py``.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from typing import Any

import torch
from common import (
    Clock,
    Collector,
    CtrlC,
    KernelClock,
    Parser,
    RunLog,
    common_options,
    count,
    fraction,
    make_envs,
    make_networks,
    non_negative,
    parse,
    positive,
    restore_rng,
    save_checkpoint,
)
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import nn
from tqdm import tqdm

from tritonrl.objectives import ClipPPOLoss
from tritonrl.objectives.value import GAE

LOGGED = ("loss_objective", "loss_critic", "entropy", "kl_approx", "clip_fraction", "explained_variance")


def options() -> Parser:
    """The command line: what every example has, and PPO's own settings."""
    parser = common_options("ppo.py", "Train a policy with proximal policy optimisation.")
    add = parser.add_argument
    add("--gamma", type=fraction, default=0.98, help="discount factor")
    add("--gae-lambda", type=fraction, default=0.8, help="0: one-step TD errors, 1: Monte-Carlo returns")
    add("--epochs", type=count, default=10, help="passes over each rollout")
    add("--minibatch-size", type=count, default=256, help="transitions in one gradient step")
    add("--clip-epsilon", type=positive, default=0.2, help="how far the probability ratio may usefully move from 1")
    add("--entropy-coeff", type=non_negative, default=0.0, help="weight of the entropy bonus")
    add("--critic-coeff", type=positive, default=0.5, help="weight of the value loss")
    add("--max-grad-norm", type=positive, default=0.5, help="gradients are scaled down to this norm")
    return parser


class PPO:
    """Networks, estimator, loss and optimizer of one run, and what is done with a rollout."""

    def __init__(self, args: argparse.Namespace, actor: ProbabilisticTensorDictSequential, critic: TensorDictModule):
        self.args, self.actor, self.critic = args, actor, critic
        # GAE evaluates the critic at ("next", "observation") too. The collector stores the true next observation
        # there, so a truncated step bootstraps from its value; behind `terminated` the value counts for nothing.
        self.gae = GAE(gamma=args.gamma, lmbda=args.gae_lambda, value_network=critic, time_dim=0, device=args.device)
        self.loss = ClipPPOLoss(
            actor,
            critic,
            clip_epsilon=args.clip_epsilon,
            entropy_coeff=args.entropy_coeff,
            critic_coeff=args.critic_coeff,
            loss_critic_type="l2",
            normalize_advantage=True,
            device=args.device,
        )
        self.compiled_loss = torch.compile(self.loss, fullgraph=True) if args.compile else self.loss
        self.optimizer = torch.optim.Adam(self.loss.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)

    def learn(self, data: TensorDict, progress: float) -> dict[str, float]:
        """Some epochs over one rollout, with a learning rate that falls linearly as ``progress`` goes from 0 to 1."""
        learning_rate = self.args.learning_rate * (1 - progress)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        names = ("observation", "action", "action_log_prob", "advantage", "value_target")
        batch = data.select(*names).reshape(-1)
        records: list[TensorDict] = []
        for _ in range(self.args.epochs):
            shuffled = batch[torch.randperm(len(batch), device=batch.device)]
            records += [self.gradient_step(minibatch) for minibatch in shuffled.split(self.args.minibatch_size)]
        logged = TensorDict.stack(records)
        return {name: value.mean().item() for name, value in logged.items()} | {"learning_rate": learning_rate}

    def gradient_step(self, minibatch: TensorDict) -> TensorDict:
        """One step down the gradient of the loss; returns the scalars to log, still on the device."""
        losses = self.compiled_loss(minibatch)
        loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.loss.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        return losses.detach().select(*LOGGED).set("grad_norm", norm)

    def state_dict(self) -> dict[str, dict]:
        """What training has made so far."""
        return {name: getattr(self, name).state_dict() for name in ("actor", "critic", "optimizer")}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """Go on from what ``state_dict`` returned."""
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)


def train(agent: PPO, collector: Collector, log: RunLog, clock: Clock) -> None:
    """Iterate until the steps are used up, ``--stop-at`` is reached or Ctrl-C was pressed."""
    args, batch = agent.args, collector.data.numel()
    first, updates = len(log.rows), math.ceil(args.total_steps / batch)
    kernel_clock = KernelClock(clock)
    log.outcome = "finished" if first >= updates else ""
    started = time.perf_counter() - clock.seconds["total"]
    bar = tqdm(total=updates * batch, initial=first * batch, unit=" steps", unit_scale=True, disable=None)
    with CtrlC() as ctrl_c, bar:
        for update in range(first, updates):
            with clock("environments and policy"):
                data = collector.collect(agent.actor)
            with clock("estimator"), kernel_clock:
                agent.gae(data)
            with clock("learning"):
                losses = agent.learn(data, update / updates)
            clock.seconds["total"] = time.perf_counter() - started
            log.add({"step": (update + 1) * batch, **collector.statistics, **losses, "seconds": clock.seconds["total"]})
            bar.set_postfix_str(f"return {collector.mean_return:.1f}", refresh=False)
            bar.update(batch)
            if update + 1 == updates:
                log.outcome = "finished"
            elif args.stop_at is not None and len(collector.finished) == 100 and collector.mean_return >= args.stop_at:
                log.outcome = f"stopped early at a return of {args.stop_at:g}"
            elif ctrl_c.pressed:
                log.outcome = "interrupted"
            if log.outcome or (update + 1) % args.save_every == 0:
                parts: dict[str, Any] = {"agent": agent.state_dict(), "collector": collector.state_dict()}
                save_checkpoint("ppo.py", args, **parts, rows=log.rows, seconds=dict(clock.seconds))
            if log.outcome:
                break


def report(args: argparse.Namespace, collector: Collector, log: RunLog, clock: Clock) -> None:
    """Print the result, and where the time went."""
    seconds, total = clock.seconds, clock.seconds["total"]
    print(
        f"{log.title}: {log.outcome} after {log.rows[-1]['step']} steps in {total:.1f} s, mean return "
        f"{collector.mean_return:.1f} over the last {len(collector.finished)} of {collector.episodes} episodes"
    )
    for name, label in (
        ("environments and policy", "environments and policy"),
        ("learning", "learning"),
        ("estimator", "estimator: GAE, its calls of the value network included"),
        ("first kernel call", "  of which the first call of tritonrl's kernel, which compiles or loads it"),
        ("kernels", "  of which all other calls of it, the kernel alone"),
    ):
        print(f"  {seconds[name] / total:8.3%}  {seconds[name]:8.3f} s  {label}")
    print(f"config, metrics, TensorBoard, learning curve and checkpoint: {args.out}")
    if log.outcome == "interrupted":
        print(f"continue with: python examples/ppo.py --resume {args.out}")


def main(argv: list[str] | None = None) -> int:
    """Run the example; returns the exit code (130 after Ctrl-C, as shells expect)."""
    parser = options()
    args, checkpoint = parse(parser, argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    envs = make_envs(parser, args.env, args.num_envs)
    actor, critic = (network.to(args.device) for network in make_networks(envs, args.hidden))
    agent, clock = PPO(args, actor, critic), Clock(args.device)
    collector = Collector(envs, args.env, args.rollout_steps, args.reward_scale, args.device)
    if not collector.exact:
        print(f"note: the state of {args.env} cannot be saved, so a resumed run starts new episodes", file=sys.stderr)
    collector.reset(args.seed)
    if checkpoint:
        agent.load_state_dict(checkpoint["agent"])
        restore_rng(checkpoint, args.device)
        collector.load_state_dict(checkpoint["collector"])
        clock.seconds.update(checkpoint["seconds"])
    log = RunLog(parser, args, checkpoint["rows"] if checkpoint else [])
    try:
        train(agent, collector, log, clock)
    except KeyboardInterrupt:
        print(f"stopped at once; {args.out} has the last checkpoint, if there was one", file=sys.stderr)
        return 130
    finally:
        log.close()
    report(args, collector, log, clock)
    return 130 if log.outcome == "interrupted" else 0


if __name__ == "__main__":
    sys.exit(main())
