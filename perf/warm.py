"""``python -m perf warm``: fill Triton's cache on disk from many processes, so that a run on a lent GPU need not compile."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from .cases import Case, registry, select
from .data import Problem, make_problem
from .ops import OPS
from .peers import OURS

T = TypeVar("T")
R = TypeVar("R")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``warm``."""
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="cases whose id matches")
    parser.add_argument("--workers", type=int, default=4, help="processes that compile (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1e9, help="wait no longer for them")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Call ours once on every case; returns 1 if that took too long, or if a case failed."""
    # The mode makes no difference to the kernels, and a compiled function would be compiled for nothing.
    cases = list(dict.fromkeys(replace(case, mode="eager") for case in select(registry("cuda"), arguments.only)))
    done = in_processes(_warmed, cases, arguments.workers, arguments.seconds)
    return int(done is None or not all(done))


def in_processes(function: Callable[[T], R], tasks: Sequence[T], workers: int, seconds: float) -> list[R] | None:
    """Map a function over tasks in new processes; ``None`` if not all were done in time, and the rest is given up."""
    pool = multiprocessing.get_context("spawn").Pool(workers)
    try:
        return pool.map_async(function, tasks, chunksize=1).get(timeout=seconds)
    except multiprocessing.TimeoutError:
        return None
    finally:
        pool.terminate()
        pool.join()


def call_once(problem: Problem) -> None:
    """Compute a problem with ours, forwards and, where the case is of a backward pass, backwards."""
    if problem.case.direction == "forward":
        OURS.bind(problem)()
        return
    problem = problem.requiring_grad()
    outputs = OURS.bind(problem)()
    leaves = [problem.arguments[name] for name in OPS[problem.op].differentiated]
    torch.autograd.grad(outputs, leaves, [torch.randn_like(x) for x in outputs])


def _warmed(case: Case) -> bool:
    """Whether a case could be computed; else it is named, and the other cases go on."""
    try:
        call_once(make_problem(case, "cuda"))
        torch.cuda.synchronize()
    except Exception as error:
        print(f"{case.id}: {type(error).__name__}: {error}", flush=True)
        return False
    torch.cuda.empty_cache()
    return True
