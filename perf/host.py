"""``python -m perf host``: what a call on Triton costs the Python thread, measured without a GPU.

Everything up to the driver is really done: argument checks, allocation, the lookup of what was prepared, Triton's launcher in
Python and in C (:mod:`perf.no_cuda`). *Not* in the figures: the driver's own launch (on a GPU some 2 to 4 us more), what
CUDA's caching allocator costs beyond the CPU's, and to ask PyTorch for the current device and stream (well under 1 us). On
a GPU, ``python -m perf`` has the whole of it (the clock ``host``).

The parts of a call: ``outputs``, to allocate as many tensors as the call returns; ``launch``, Triton's launcher with the
arguments of the call; ``ours``, the rest: checks, the lookup of what is known of such calls, addresses.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from . import no_cuda
from .cases import Case, select
from .data import make_problem
from .ops import as_tuple, kernel_of

CASES = (
    Case("gae", "simulators", 4096, 128),
    Case("gae", "simulators", 65536, 16, layout="TN"),
    Case("gae", "classic", 8, 65536),
    Case("gae", "simulators", 4096, 128, variants=("one_flag",)),
    Case("gae", "simulators", 4096, 128, variants=("gamma_steps", "lmbda_steps")),
    Case("gae", "simulators", 4096, 128, variants=("valid", "skip")),
    Case("gae", "simulators", 4096, 128, variants=("bootstrap",)),
    Case("gae", "simulators", 4096, 128, variants=("moments",)),
    Case("td_lambda_return", "simulators", 4096, 128),
    Case("reward_to_go", "simulators", 4096, 128),
    Case("vtrace", "simulators", 4096, 128),
    Case("linear_recurrence", "simulators", 4096, 128),
    Case("gae", "simulators", 4096, 128, direction="backward"),
)
PARTS = ("call", "ours", "outputs", "launch")


class Split(NamedTuple):
    """Microseconds of one call and of its parts, and how many kernels Triton launched in it."""

    case: Case
    call: float
    ours: float
    outputs: float
    launch: float
    launches: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``perf host``."""
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="cases whose id matches")
    parser.add_argument("--calls", type=int, default=2000, help="timed calls of each case (default: %(default)s)")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; returns 0."""
    torch.set_num_threads(1)
    _keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        library = no_cuda.install(Path(folder))
        splits = [measured(case, arguments.calls, library) for case in select(CASES, arguments.only)]
    _print(splits)
    return 0


def _keep_memory() -> None:
    """Have malloc keep what is freed, as CUDA's caching allocator does; large blocks would go to the system and back."""
    mallopt = ctypes.CDLL(None).mallopt
    for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        mallopt(option, 1 << 25)


def measured(case: Case, calls: int, library: Any) -> Split:
    """One case on Triton, which has to be told that it can serve the CPU: with the driver of :mod:`perf.no_cuda` it can."""
    from tritonrl import kernels
    from tritonrl.kernels import backend

    backend.missing = lambda name, device: None  # type: ignore[assignment]
    counter = ctypes.c_uint64.in_dll(library, "launches")
    function = _call_of(case)
    with kernels.use_backend("triton"), torch.no_grad():
        for _ in range(3):  # compiles, and finds out how such calls are repeated
            results = function()
        launcher = _launcher_call(function)
        before = counter.value
        function()
        launches = counter.value - before
        outputs = [x for x in as_tuple(results) if isinstance(x, Tensor)]
        clocks = [function, lambda: [torch.empty_like(x) for x in outputs], launcher]
        whole, allocated, launched = _medians(clocks, calls)
    return Split(case, whole, whole - allocated - launched, allocated, launched, launches)


def _call_of(case: Case) -> Callable[[], Any]:
    problem = make_problem(case, "cpu")
    given = problem.arguments
    if case.direction == "forward":
        public = kernel_of(case.op)
        return lambda: public(**given)
    # The backward pass as autograd calls it, without autograd's own engine.
    number = torch.tensor(0.99, dtype=torch.float64)
    like = given["reward"]
    args = (like, like, given["next_value"], like, given["done"], given["terminated"], number, number, -1, False)
    return lambda: torch.ops.tritonrl.gae_backward(*args)


def _launcher_call(function: Callable[[], Any]) -> Callable[[], Any]:
    """The call(s) of Triton's C launcher with what stands around it in Python, as made in a call."""
    from triton.backends.nvidia.driver import CudaLauncher

    real, caught = CudaLauncher.__call__, list[tuple[Any, ...]]()

    def catching(self: Any, *args: Any) -> None:
        caught.append((self, *args))
        real(self, *args)

    CudaLauncher.__call__ = catching
    function()
    CudaLauncher.__call__ = real

    def launch() -> None:
        for self, *args in caught:
            self(*args)

    return launch


def _medians(clocks: Sequence[Callable[[], Any]], calls: int) -> list[float]:
    """Median microseconds of each, taken in turns, so that all of them see the same machine."""
    samples: list[list[float]] = [[] for _ in clocks]
    block = 20
    for _ in range(max(1, calls // block)):
        for clock, taken in zip(clocks, samples, strict=True):
            start = time.perf_counter()
            for _ in range(block):
                clock()
            taken.append((time.perf_counter() - start) / block * 1e6)
    return [statistics.median(taken) for taken in samples]


def _print(splits: Sequence[Split]) -> None:
    table = Table("case", *(f"{part} us" for part in PARTS), "launches")
    for split in splits:
        case = split.case
        name = " ".join([case.op, case.shape, case.layout, *case.variants, case.direction])
        table.add_row(name, *(f"{getattr(split, part):.1f}" for part in PARTS), str(split.launches))
    Console(width=140).print(table)
