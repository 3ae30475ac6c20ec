"""The command line that every example has; what cannot work ends in one line and exit code 2."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from .checkpoints import CHECKPOINT, load_checkpoint


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line (argparse prints the whole usage first)."""

    fixed: tuple[str, ...] = ("env", "num_envs", "hidden", "seed")
    """Settings that a resumed run cannot change, because what its checkpoint holds would not fit them."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def number(kind: type, low: float, high: float = math.inf, *, open_low: bool = False) -> Callable[[str], Any]:
    """An argparse type: a finite ``kind`` in ``[low, high]``, or ``(low, high]`` with ``open_low``."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value if open_low else low <= value) or value > high or math.isinf(value):
            bounds = f"{'>' if open_low else '>='} {low}" + ("" if math.isinf(high) else f" and <= {high}")
            noun = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {noun} {bounds}, got {text!r}")
        return value

    return parse


count, positive = number(int, 1), number(float, 0, open_low=True)
non_negative, fraction = number(float, 0), number(float, 0, 1)


def common_options(prog: str, description: str, unit: str = "environment steps") -> Parser:
    """The options that every example has; an example adds its own. ``unit`` is what it counts."""
    parser = Parser(prog, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--env", default="CartPole-v1", help="Gymnasium id of an environment with Discrete or Box actions")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0)
    add("--total-steps", type=count, default=200_000, help=f"{unit}, rounded up to whole updates")
    add("--num-envs", type=count, default=16, help="environments that step side by side (N)")
    add("--hidden", type=count, default=64, help="width of the two hidden layers of actor and critic")
    add("--gamma", type=fraction, default=0.98, help="discount factor")
    add("--reward-scale", type=positive, default=1.0, help="factor on the rewards that are learnt from, not reported")
    add("--stop-at", type=float, help="stop early, once the mean return of the last 100 episodes reaches this")
    add("--save-every", type=count, default=20, help="updates between two checkpoints")
    add("--device", default="cpu", help="where networks, data and estimators live")
    add("--threads", type=count, default=1, help="CPU threads of torch; networks this small lose time with more")
    add("--compile", action="store_true", help="torch.compile the loss (full graph)")
    add("--out", type=Path, help="run folder (default: a new one under runs/, or the one that is resumed)")
    add("--overwrite", action="store_true", help="replace a run that --out holds already")
    add("--resume", type=Path, help="run folder or checkpoint to continue; its settings become the defaults")
    return parser


def parse(parser: Parser, argv: list[str] | None) -> tuple[argparse.Namespace, dict[str, Any] | None]:
    """Settings and, with ``--resume``, the checkpoint."""
    args, checkpoint = parser.parse_args(argv), None
    if args.resume:
        path = args.resume / CHECKPOINT if args.resume.is_dir() else args.resume
        checkpoint = _checkpoint(parser, path)
        parser.set_defaults(**checkpoint["settings"], out=path.parent)
        args = parser.parse_args(argv)
        for name in parser.fixed:
            before, now = checkpoint["settings"][name], getattr(args, name)
            if before != now:
                parser.error(f"argument --{name.replace('_', '-')}: the run to resume has {before}, got {now}")
    _check_device(parser, args)
    if args.out is None:
        name = f"{parser.prog.removesuffix('.py')}-{args.env.replace('/', '-')}-seed{args.seed}"
        args.out = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    goes_on = args.resume is not None and args.out == path.parent
    if (args.out / "config.json").exists() and not args.overwrite and not goes_on:
        parser.error(f"argument --out: {args.out} holds a run already; --resume or --overwrite it, or name another")
    return args, checkpoint


def _checkpoint(parser: Parser, path: Path) -> dict[str, Any]:
    if not path.is_file():
        parser.error(f"argument --resume: no checkpoint at {path}")
    try:
        checkpoint = load_checkpoint(path)
        program = checkpoint["program"]
    except Exception as error:
        parser.error(f"argument --resume: {path} is not a checkpoint of {parser.prog} ({type(error).__name__})")
    if program != parser.prog:
        parser.error(f"argument --resume: {path} was written by {program}, not by {parser.prog}")
    return checkpoint


def _check_device(parser: Parser, args: argparse.Namespace) -> None:
    """End with one line unless a tensor can be put on ``--device`` and, with ``--compile``, code be built for it."""
    try:
        torch.zeros(1, device=args.device).item()
    except Exception as error:
        parser.error(f"argument --device: cannot use {args.device!r}: {str(error).splitlines()[0]}")
    compilers = (os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl")
    if args.compile and torch.device(args.device).type == "cpu" and not any(map(shutil.which, compilers)):
        parser.error("argument --compile: needs a C++ compiler on the CPU and none was found")
