"""The loop around a learner: progress, logs, checkpoints, Ctrl-C, resume, and the report at the end."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

from .checkpoints import restore_rng, save_checkpoint
from .interrupt import CtrlC
from .learner import Learner
from .options import Parser, parse
from .run_log import RunLog


def run(parser: Parser, learner_type: Callable[[Parser, argparse.Namespace], Learner], argv: list[str] | None) -> int:
    """Train what ``learner_type(parser, args)`` makes; returns the exit code (130 after Ctrl-C, as shells expect)."""
    args, checkpoint = parse(parser, argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    learner = learner_type(parser, args)
    if not learner.environments.exact:
        print(f"note: the state of {args.env} cannot be saved, so a resumed run starts new episodes", file=sys.stderr)
    learner.environments.reset(args.seed)
    if checkpoint:
        restore_rng(checkpoint, args.device)
        learner.load_state_dict(checkpoint["learner"])
        learner.clock.seconds.update(checkpoint["seconds"])
    log = RunLog(parser, args, checkpoint["rows"] if checkpoint else [])
    log.unit = learner.unit
    log.curves = {"return": f"mean return of the last {learner.environments.window} episodes", **learner.curves}
    try:
        train(parser.prog, learner, log)
    except KeyboardInterrupt:
        print(f"stopped at once; {args.out} has the last checkpoint, if there was one", file=sys.stderr)
        return 130
    finally:
        log.close()
    report(parser.prog, learner, log)
    return 130 if log.outcome == "interrupted" else 0


def train(program: str, learner: Learner, log: RunLog) -> None:
    """Update until the steps are used up, ``--stop-at`` is reached or Ctrl-C was pressed."""
    args, environments, seconds = learner.args, learner.environments, learner.clock.seconds
    first, updates = len(log.rows), math.ceil(args.total_steps / learner.steps_per_update)
    log.outcome = "finished" if first >= updates else ""
    started = time.perf_counter() - seconds["total"]
    total, initial = updates * learner.steps_per_update, first * learner.steps_per_update
    bar = tqdm(total=total, initial=initial, unit=" steps", unit_scale=True, disable=None)
    with CtrlC() as ctrl_c, bar:
        for update in range(first, updates):
            losses = learner.update(update / updates)
            seconds["total"] = time.perf_counter() - started
            steps = (update + 1) * learner.steps_per_update
            log.add({"step": steps, **environments.statistics, **losses, "seconds": seconds["total"]})
            bar.set_postfix_str(f"return {environments.mean_return:.1f}", refresh=False)
            bar.update(learner.steps_per_update)
            log.outcome = _outcome(learner, steps >= total, ctrl_c)
            if log.outcome or (update + 1) % args.save_every == 0:
                state = {"learner": learner.state_dict(), "rows": log.rows, "seconds": dict(seconds)}
                save_checkpoint(program, args, **state)
            if log.outcome:
                break


def _outcome(learner: Learner, finished: bool, ctrl_c: CtrlC) -> str:
    """Why the run ends here, or nothing."""
    goal, environments = learner.args.stop_at, learner.environments
    if finished:
        return "finished"
    if goal is not None and len(environments.finished) == environments.window and environments.mean_return >= goal:
        return f"stopped early at a return of {goal:g}"
    return "interrupted" if ctrl_c.pressed else ""


def report(program: str, learner: Learner, log: RunLog) -> None:
    """Print the result, and where the time went."""
    environments, seconds, out = learner.environments, learner.clock.seconds, learner.args.out
    print(
        f"{log.title}: {log.outcome} after {log.rows[-1]['step']} steps in {seconds['total']:.1f} s, mean return "
        f"{environments.mean_return:.1f} over the last {len(environments.finished)} of {environments.episodes} episodes"
    )
    for name, label in learner.phases.items():
        print(f"  {seconds[name] / seconds['total']:8.3%}  {seconds[name]:8.3f} s  {label}")
    print(f"config, metrics, TensorBoard, learning curve and checkpoint: {out}")
    if log.outcome == "interrupted":
        print(f"continue with: python examples/{program} --resume {out}")
