"""``python -m perf warm``: fill Triton's cache on disk from many processes, so that a run on a lent GPU need not compile."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace

import torch

from .cases import Case, registry, select
from .data import make_problem
from .ops import OPS
from .peers import OURS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``warm``."""
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="cases whose id matches")
    parser.add_argument("--workers", type=int, default=4, help="processes that compile (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1e9, help="wait no longer for them")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Call ours once on every case; returns 1 if that took too long."""
    # The mode makes no difference to the kernels, and a compiled function would be compiled for nothing.
    cases = list(dict.fromkeys(replace(case, mode="eager") for case in select(registry("cuda"), arguments.only)))
    return int(not in_processes(_call, cases, arguments.workers, arguments.seconds))


def in_processes(function: object, tasks: Sequence[object], workers: int, seconds: float) -> bool:
    """Map a function over tasks in new processes. Returns whether all were done in time; the rest is given up."""
    pool = multiprocessing.get_context("spawn").Pool(workers)
    try:
        pool.map_async(function, tasks, chunksize=1).get(timeout=seconds)  # type: ignore[arg-type]
    except multiprocessing.TimeoutError:
        return False
    finally:
        pool.terminate()
        pool.join()
    return True


def _call(case: Case) -> None:
    try:
        _called(case)
    except Exception as error:  # the run will say so; the other cases go on
        print(f"{case.id}: {type(error).__name__}: {error}")


def _called(case: Case) -> None:
    problem = make_problem(case, "cuda")
    if case.direction == "backward":
        problem = problem.requiring_grad()
        outputs = OURS.bind(problem)()
        leaves = [problem.arguments[name] for name in OPS[case.op].differentiated]
        torch.autograd.grad(outputs, leaves, [torch.randn_like(x) for x in outputs])
    else:
        OURS.bind(problem)()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
