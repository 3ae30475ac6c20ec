"""``python -m perf tune``: what the numbers of a plan table are worth on this GPU, varied a few at a time.

Each case is run with the plan of the default table, and with every other plan that a variation of that table leads to. All
plans of a case and ``clone()`` of as many bytes are timed in the same rounds, by the durations that the driver's profiler
reports, with L2 evicted before each call; their results have to agree with those of the default plan. What comes of it is
written down by hand, as a file in ``kernels/tables/``.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritonrl.kernels import plan
from tritonrl.kernels.geometry import Lanes
from tritonrl.kernels.tables import DEFAULT, Table

from .cases import Case, M, select
from .data import make_problem, minimum_bytes
from .machine import describe
from .ops import OPS
from .warm import call_once, in_processes

DEVICE = "cuda"
Variation = dict[str, int]
"""Fields of a plan table, and ``maxnreg``: the compiler's limit of registers."""


def _each(field: str, *values: int) -> list[Variation]:
    return [{field: value} for value in values]


# With DEFAULT itself always in front.
VARIATIONS: tuple[Variation, ...] = (
    *_each("rows_warps", 1, 4),
    *_each("rows_programs", 2, 8),
    *_each("row_numbers", 0, 4_700, 9_300),
    *_each("walk_warps", 1, 4),
    *_each("walk_vectors", 1, 2),
    *({"bytes_in_flight": 10**9, "walk_warps": w} for w in (1, 2, 4)),
    *_each("maxnreg", 80, 96, 128, 168),
    *_each("ahead_numbers", 0),
    *_each("bytes_in_flight", 0, 18_000, 72_000, 10**9),
    *({"bytes_in_flight": 0, "unroll": u, "lanes_numbers": 1000} for u in (4, 16)),
    *({"bytes_in_flight": 0, "lanes_warps": w} for w in (1, 2, 8)),
    *_each("tile_warps", 2, 8),
    *({"tile_warps": w, "tile_steps": 2} for w in (4, 8, 16)),
    *({"tile_warps": 8, "tile_steps": 2, "maxnreg": n} for n in (64, 80)),
    *_each("split_tiles", 1, 10**9),
    *(
        {"split_rows_warps": w, "split_rows_vectors": v, "maxnreg": n}
        for w, v, n in ((8, 1, 40), (8, 1, 48), (16, 1, 40), (4, 1, 40), (4, 2, 64), (4, 2, 72))
    ),
    *_each("split_tile_numbers", 0),
    *({"split_tile_warps": w} for w in (1, 4)),
    *({"split_tile_limit": n} for n in (128, 168, 192)),
    *({"registers": 128, "tile_steps": 8, "tile_warps": 2, "maxnreg": n} for n in (168, 176)),
)

CASES: tuple[Case, ...] = (
    *(
        Case("gae", "simulators", n, t, layout)
        for n, t in ((32768, 8), (32768, 16), (4096, 32))
        for layout in ("NT", "TN")
    ),
    *(Case("gae", "classic", 8192, t, layout) for t in (2048, 4096) for layout in ("NT", "TN")),
    *(
        Case("gae", "tokens", n, t, layout)
        for n, t in ((512, 16384), (4096, 2048), (64, 131072), (128, 131072))
        for layout in ("NT", "TN")
    ),
    Case("gae", "tokens", 1, 16 * M),
    *(Case("gae", "classic", 8192, 2048, layout, direction="backward") for layout in ("NT", "TN")),
    *(Case("gae", "simulators", n, 128, layout) for n in (4096, 32768) for layout in ("NT", "TN")),
    *(Case(op, "classic", 8192, 2048, layout) for op in ("vtrace", "reward_to_go") for layout in ("NT", "TN")),
    *(Case("gae", "classic", 8192, 2048, layout, "bfloat16") for layout in ("NT", "TN")),
    *(Case("gae", "classic", 64, 1024, layout) for layout in ("NT", "TN")),
)


def chosen(case: Case, table: Table = DEFAULT, multiprocessors: int = 132) -> plan.Plan:
    """The plan that ``table`` leads to for a case, without a GPU."""
    op, steps = OPS[case.op], case.steps
    sizes = Lanes(case.lanes, steps, 1) if case.layout == "NT" else Lanes(1, steps, case.lanes)
    strides = (steps, 1, 0) if case.layout == "NT" else (0, case.lanes, 1)
    inputs = (*op.tensors, *op.flags) if case.direction == "forward" else (*op.outputs, *op.flags, *op.saved)
    streams = len(inputs) + len(op.outputs if case.direction == "forward" else op.differentiated)
    item = getattr(torch, case.dtype).itemsize
    with _table(table):
        return plan.choose_plan(sizes, [strides] * streams, strides, item, multiprocessors, streams)


def figure_of(chosen: plan.Plan, result: dict[str, Any]) -> dict[str, Any] | None:
    """What was measured of a plan, among the plans of a case in a record; ``None`` if nothing was."""

    def limit(of: int | None, warps: int) -> int:
        return min(255 if of is None else of, 65_536 // (32 * warps))

    wanted = chosen._asdict()
    for each in result["plans"]:
        same = all(wanted[name] == value for name, value in each["plan"].items() if name not in ("grid", "limit"))
        limits = each.get("limits", [each["maxnreg"]])  # several where they make the same kernel
        if same and limit(chosen.limit, chosen.warps) in [limit(n, chosen.warps) for n in limits]:
            return dict(each)
    return None


class Variant(NamedTuple):
    """One plan of a case, and the call of the backend that uses it."""

    plan: plan.Plan
    maxnreg: int | None
    changed: list[Variation]  # every variation that leads to it
    call: Callable[[], Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tune``."""
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="cases whose id matches")
    parser.add_argument("--rounds", type=int, default=11, help="samples of each plan (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that compile everything first")
    parser.add_argument(
        "--deadline", type=float, default=1e9, metavar="SECONDS", help="start no further case after so long"
    )
    parser.add_argument(
        "--compile-by", type=float, default=1e9, metavar="SECONDS", help="wait no longer for the workers"
    )
    parser.add_argument("--json", metavar="PATH", help="write every figure")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """Compile, time, print and write; returns 1 if a plan gives other results than the default one."""
    started = time.perf_counter()
    cases = select(CASES, arguments.only)
    if arguments.workers:
        tasks = [(case, piece) for case in cases for piece in range(_PIECES)]
        if in_processes(_compile, tasks, arguments.workers, arguments.compile_by) is None:
            print("not everything was compiled in time")
        print(f"compiled after {time.perf_counter() - started:.0f} s", flush=True)
    found: list[dict[str, Any]] = []
    for case in cases:
        if time.perf_counter() - started > arguments.deadline:
            print(f"left out, too late: {case.id}")
            continue
        found.append(_tuned(case, arguments.rounds))
        _print(found[-1])
        if arguments.json:
            save({"machine": describe("cuda"), "cases": found}, Path(arguments.json))
    return int(any(plan["wrong"] for case in found for plan in case["plans"]))


def save(record: dict[str, Any], path: Path) -> None:
    """As JSON, with a line for each plan."""
    lines = []
    for case in record["cases"]:
        plans = ",\n  ".join(json.dumps(each) for each in case["plans"])
        head = json.dumps({name: value for name, value in case.items() if name != "plans"})
        lines.append(f'{head[:-1]}, "plans": [\n  {plans}]}}')
    machine, cases = json.dumps(record["machine"]), ",\n".join(lines)
    path.write_text(f'{{"machine": {machine},\n"cases": [\n{cases}\n]}}\n')


_PIECES = 4


def _compile(task: tuple[Case, int]) -> None:
    case, piece = task
    for _ in _variants(case, [{}, *VARIATIONS][piece::_PIECES]):
        pass
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


@contextmanager
def _table(table: Table) -> Iterator[None]:
    """Plans are made by this table, whatever the device."""
    table_for = plan.table_for
    plan.table_for = lambda device_name: table
    try:
        yield
    finally:
        plan.table_for = table_for


@contextmanager
def _varied(variation: Variation) -> Iterator[None]:
    """Plans are made by a variation of the default table, and kernels compiled with its ``maxnreg``."""
    from tritonrl.kernels import launch

    fields: dict[str, Any] = {name: value for name, value in variation.items() if name != "maxnreg"}
    options = launch.compiler_options

    def limited(plan: plan.Plan) -> dict[str, Any]:
        return options(plan) | ({"maxnreg": variation["maxnreg"]} if "maxnreg" in variation else {})

    launch.compiler_options = limited
    launch.forget()
    try:
        with _table(DEFAULT._replace(**fields)):
            yield
    finally:
        launch.compiler_options = options
        launch.forget()


def _noted(case: Case) -> tuple[str, tuple[Any, ...], int]:
    """The call of the backend that a case comes down to, and its bytes."""
    from tritonrl.kernels import launch

    problem = make_problem(case, DEVICE)
    size = minimum_bytes(problem)
    noted: list[tuple[str, tuple[Any, ...]]] = []
    own = launch._run

    def noting(op: str, *args: Any) -> Any:
        noted.append((op, args))
        return own(op, *args)

    launch.forget()
    launch._run = noting
    try:
        call_once(problem)
    finally:
        launch._run = own
    return *noted[-1], size


def _variants(case: Case, variations: Sequence[Variation]) -> Iterator[Variant]:
    """A variant for each plan that the variations lead to."""
    from tritonrl.kernels import launch

    op, args, _ = _noted(case)
    found: dict[Any, Variant] = {}
    for variation in variations:
        with _varied(variation), torch.no_grad():
            try:
                launch._run(op, *args)
                prepared = launch._prepared[launch._key(op, args)]
            except Exception as error:  # a plan too large for the machine; the others go on
                print(f"{case.id} {variation}: {type(error).__name__}: {str(error).splitlines()[0]}")
                continue
            call, options = prepared.call, launch.compiler_options(prepared.plan)
        assert call is not None
        key = (prepared.plan, options.get("maxnreg"))
        if key in found:
            found[key].changed.append(variation)
        else:
            found[key] = Variant(*key, [variation], functools.partial(call, args))
            yield found[key]


def _tuned(case: Case, rounds: int) -> dict[str, Any]:
    """The times of every plan of a case."""
    variants = list(_variants(case, [{}, *VARIATIONS]))
    size = _noted(case)[2]
    right = variants[0].call()
    wrong = [not _agree(variant.call(), right) for variant in variants]
    x = torch.ones(max(1, size // 8), device="cuda")
    times = device_times([x.clone, *[variant.call for variant in variants]], rounds)
    clone, *ours = (statistics.median(samples) for samples in times)
    plans = [
        {
            "plan": v.plan._asdict(),
            "maxnreg": v.maxnreg,
            "changed": v.changed,
            "seconds": t,
            "of_clone": clone / t,
            "wrong": w,
        }
        for v, t, w in zip(variants, ours, wrong, strict=True)
    ]
    return {"case": case.id, "bytes": size, "clone": clone, "plans": plans}


def _agree(results: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Whether results differ by no more than the rounding of sums in another order."""
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-3}.get(right[0].dtype, 5e-2)
    return all(torch.allclose(x, y, tolerance, tolerance, equal_nan=True) for x, y in zip(results, right, strict=True))


def device_times(calls: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of device time of each call, ``rounds`` times in turns, with L2 evicted before every call.

    The durations of a call's kernels (and copies) are added up, as the driver's profiler reports them.
    """
    from torch.profiler import ProfilerActivity, profile

    from .evict import NAME, evict_l2

    for call in calls:
        call()
    evict_l2()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(rounds):
            for call in calls:
                evict_l2()
                call()
        torch.cuda.synchronize()
    seen = sorted(
        (e for e in profiler.events() or () if e.device_type.name == "CUDA"), key=lambda event: event.time_range.start
    )
    pieces: list[float] = []
    for event in seen:
        if NAME in event.name:
            pieces.append(0.0)
        elif pieces:
            pieces[-1] += event.time_range.elapsed_us() * 1e-6
    if len(pieces) != rounds * len(calls):
        raise RuntimeError(f"the profiler saw {len(pieces)} calls, and there were {rounds * len(calls)}")
    return [pieces[i :: len(calls)] for i in range(len(calls))]


def _print(result: dict[str, Any]) -> None:
    """The default plan and the fastest ones."""
    print(
        f"\n{result['case']}: clone {1e6 * result['clone']:.2f} us, {result['bytes'] / result['clone'] / 1e9:.0f} GB/s"
    )
    default, *others = result["plans"]
    for each in [default, *sorted(others, key=lambda p: p["seconds"])[:6]]:
        shown = {name: value for name, value in each["plan"].items() if value not in (False, 1) or name == "lanes"}
        changed = ", ".join(f"{k}={v}" for k, v in each["changed"][0].items()) or "default"
        print(
            f"  {1e6 * each['seconds']:9.2f} us {100 * each['of_clone']:5.1f} %{'  WRONG' if each['wrong'] else ''}"
            f"  {changed}  [{' '.join(f'{k}={v}' for k, v in shown.items())} maxnreg={each['maxnreg']}]",
            flush=True,
        )
