"""Kernels with their programs interleaved (interleave.py), in Triton's interpreter. Started by test_concurrent.py.

Split, whose programs wait for each other, and moments in every strategy, which the last program merges.

Windows are cut to two tiles, so that nine tiles already make three spans: every kind of tile, every wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import InterpreterError

from tritonrl import kernels
from tritonrl.kernels import counters, eager, launch
from tritonrl.kernels.device import moments as moments_file
from tritonrl.kernels.device import split as split_file

from . import oracle, triton_cases
from .arguments import Args, assert_close, convert, draw, floating, gradients, run, upstream_for
from .interleave import Schedule, anyone, interleaved, last_started_first, last_ticket_first
from .triton_cases import Force, hide_nan

force, _on_triton = triton_cases.force, triton_cases._on_triton  # fixtures

SCHEDULES = (
    *(Schedule(anyone, seed=seed) for seed in range(4)),
    Schedule(last_ticket_first),
    Schedule(last_started_first),
    Schedule(last_started_first, resident=1),
    Schedule(anyone, resident=1, seed=4, in_grid_order=False),
    Schedule(last_ticket_first, resident=2, seed=5, in_grid_order=False),
    Schedule(anyone, resident=3, seed=6, in_grid_order=False),
    Schedule(last_ticket_first, resident=3),
)


class Setting(NamedTuple):
    """An op, and the tiles that it is computed in."""

    op: str
    shape: tuple[int, ...]
    time_dim: int
    tiles: dict[str, Any]
    ends: float = 0.0
    discounts: str = "scalar"

    def args(self) -> Args:
        drawn = draw(self.op, self.shape, self.time_dim, ends=self.ends, discounts=self.discounts)
        return hide_nan(convert(drawn, torch.float32))


ONE_ROW = {"lanes": 1, "vectors": 2}
SETTINGS = {
    "one row": Setting("gae", (1, 17), -1, ONE_ROW),
    "one row with cuts": Setting("gae", (1, 17), -1, ONE_ROW, ends=0.3),
    "a carry": Setting("linear_recurrence_carried", (1, 18), -1, ONE_ROW),
    "forwards": Setting("linear_recurrence_forwards", (3, 9), -1, {"lanes": 2, "vectors": 1}, ends=0.2),
    "blocks of rows": Setting("gae", (3, 14), -1, {"lanes": 2, "vector": 2, "vectors": 1}, ends=0.1),
    "blocks of one row": Setting("gae", (2, 10), -1, {"lanes": 1, "vector": 2, "vectors": 1}),
    "lanes": Setting("vtrace", (14, 4), 0, {"lanes": 2, "vector": 2, "vectors": 1, "width": 2, "stacked": True}),
}


@pytest.fixture(autouse=True)
def _small_windows_and_poisoned_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_file, "WINDOW", tl.constexpr(2))
    real = eager.workspace_of

    def poisoned(*args: Any) -> dict[str, Tensor]:
        workspace = real(*args)
        for name in workspace.keys() & {"published", "partials"}:
            workspace[name].fill_(torch.nan)  # what a stale load finds must not be right by chance
        return workspace

    monkeypatch.setattr(eager, "workspace_of", poisoned)


@pytest.fixture
def lazily(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Whether tiles wait for what a cut makes needless."""
    real = launch.prepare

    def use(lazy: bool) -> None:
        def prepare(*args: Any) -> launch.Prepared:
            prepared = real(*args)
            prepared.constants["LAZY"] = lazy
            return prepared

        launch.forget()
        monkeypatch.setattr(launch, "prepare", prepare)

    return use


def bits(results: tuple[Tensor, ...]) -> list[list[int]]:
    return [x.contiguous().view(torch.int32).flatten().tolist() for x in results]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_schedule_gives_the_bits_of_one_program_after_the_other(
    name: str, force: Force, lazily: Callable[[bool], None]
) -> None:
    setting = SETTINGS[name]
    force("split", **setting.tiles)
    args = setting.args()
    in_order = run(setting.op, args, setting.time_dim)
    for actual, wanted in zip(in_order, oracle.compute(setting.op, args, setting.time_dim), strict=True):
        assert_close(actual, wanted, name)
    waited = 0
    for i, schedule in enumerate(SCHEDULES):
        lazily(i % 2 == 1)
        with interleaved(schedule) as found:
            results = run(setting.op, args, setting.time_dim)
        assert bits(results) == bits(in_order), schedule
        assert not found.races, (schedule, found.races)
        assert found.waited == 0 or schedule.resident != 1, "alone, a program finds all that it needs"
        waited += found.waited
    assert waited > 0, "no program ever waited: the schedules show nothing"


@pytest.mark.parametrize("name", ["one row", "forwards"])
def test_gradients_have_the_same_bits_in_every_schedule(name: str, force: Force) -> None:
    setting = SETTINGS[name]
    force("split", **setting.tiles)
    args = setting.args() | ({"gamma": 0.97, "lmbda": 0.9} if setting.op == "gae" else {})
    upstream = tuple(g.float() for g in upstream_for(setting.op, args))
    names = tuple(n for n in floating(setting.op) if isinstance(args[n], Tensor) and args[n].dim())

    def found() -> dict[str, Tensor]:
        return gradients(setting.op, args, setting.time_dim, upstream, names)

    in_order = found()
    for n, wanted in oracle.gradients(setting.op, args, setting.time_dim, upstream, names).items():
        assert_close(in_order[n], wanted, n, 1e-5)
    for schedule in SCHEDULES[::4]:
        with interleaved(schedule) as ran:
            assert bits(tuple(found().values())) == bits(tuple(in_order.values())), schedule
        assert not ran.races


MERGING = {
    "rows": Setting("gae", (7, 6), -1, {"lanes": 2, "vector": 2, "vectors": 2}, ends=0.1),
    "lanes": Setting("gae", (6, 7), 0, {"lanes": 2, "unroll": 2}, ends=0.1),
    "split": SETTINGS["blocks of rows"],
}


def with_moments(setting: Setting) -> tuple[Tensor, ...]:
    return tuple(kernels.gae(**setting.args(), time_dim=setting.time_dim, moments=True))


@pytest.mark.parametrize("strategy", MERGING)
def test_moments_have_the_same_bits_in_every_schedule(strategy: str, force: Force) -> None:
    setting = MERGING[strategy]
    force(strategy, **setting.tiles)
    in_order = with_moments(setting)
    advantage = in_order[0].double()
    count = torch.tensor(42.0)
    assert_close(in_order[2], torch.stack([count, advantage.mean(), advantage.var() * (count - 1)]), "", 1e-5)
    for schedule in SCHEDULES[::2]:
        with interleaved(schedule) as ran:
            assert bits(with_moments(setting)) == bits(in_order), schedule
        assert not ran.races


def test_a_schedule_can_be_run_again(force: Force) -> None:
    setting = SETTINGS["one row"]
    force("split", **setting.tiles)

    def waits(seed: int) -> int:
        with interleaved(Schedule(seed=seed)) as ran:
            run(setting.op, setting.args(), setting.time_dim)
        return ran.waited

    assert waits(7) == waits(7)
    assert len({waits(seed) for seed in range(5)}) > 1


# What follows breaks the kernel on purpose: the harness has to see it.


@triton.jit
def reversed_program_id(counter):
    return tl.num_programs(0) - 1 - tl.program_id(0)


@triton.jit
def raise_bit_relaxed(word, bit):
    tl.debug_barrier()
    tl.atomic_or(word, 1 << bit, sem="relaxed", scope="gpu")


@triton.jit
def raise_bit_before_the_other_threads(word, bit):
    tl.atomic_or(word, 1 << bit, sem="release", scope="gpu")


@triton.jit
def publish_after_the_bit(to, distance, a, b, word, bit):
    split_file.raise_bit(word, bit)
    tl.store(to, a)
    tl.store(to + distance, b)


@triton.jit
def wait_relaxed(word, count):
    wanted = ~(-1 << count)
    while (tl.atomic_add(word, 0, sem="relaxed", scope="gpu") & wanted) != wanted:
        pass
    tl.debug_barrier()


@triton.jit
def wait_in_one_thread(word, count):
    wanted = ~(-1 << count)
    while (tl.atomic_add(word, 0, sem="acquire", scope="gpu") & wanted) != wanted:
        pass


@triton.jit
def wait_for_one_less(word, count):
    wanted = ~(-1 << (count - 1))
    while (tl.atomic_add(word, 0, sem="acquire", scope="gpu") & wanted) != wanted:
        pass
    tl.debug_barrier()


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("raise_bit", raise_bit_relaxed),
        ("raise_bit", raise_bit_before_the_other_threads),
        ("publish", publish_after_the_bit),
        ("wait_for", wait_relaxed),
        ("wait_for", wait_in_one_thread),
        ("wait_for", wait_for_one_less),
    ],
    ids=lambda x: x if isinstance(x, str) else x.__name__,
)
def test_a_kernel_that_orders_too_little_is_caught(
    name: str, broken: Any, force: Force, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = SETTINGS["one row"]
    force("split", **setting.tiles)
    in_order = bits(run(setting.op, setting.args(), setting.time_dim))
    monkeypatch.setattr(split_file, name, broken)
    races, wrong = 0, 0
    for schedule in SCHEDULES[:5]:
        with interleaved(schedule) as ran:
            results = run(setting.op, setting.args(), setting.time_dim)
        races += len(ran.races)
        wrong += bits(results) != in_order
    assert races > 0
    assert wrong > 0, "no race ever did any harm"


@triton.jit
def is_last_relaxed(counter, programs):
    tl.debug_barrier()
    before = tl.atomic_add(counter, 1, sem="relaxed", scope="gpu")
    tl.debug_barrier()
    return before == programs - 1


@triton.jit
def is_last_only_released(counter, programs):
    tl.debug_barrier()
    before = tl.atomic_add(counter, 1, sem="release", scope="gpu")
    tl.debug_barrier()
    return before == programs - 1


@triton.jit
def is_last_before_the_other_threads(counter, programs):
    before = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    return before == programs - 1


@triton.jit
def is_last_in_one_thread(counter, programs):
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == programs - 1


@triton.jit
def is_last_but_one(counter, programs):
    tl.debug_barrier()
    before = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()
    return before >= programs - 2


@pytest.mark.parametrize(
    "broken",
    [is_last_relaxed, is_last_only_released, is_last_before_the_other_threads, is_last_in_one_thread, is_last_but_one],
    ids=lambda f: f.__name__,
)
def test_a_merge_that_is_ordered_behind_too_little_is_caught(
    broken: Any, force: Force, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = MERGING["rows"]
    force("rows", **setting.tiles)
    in_order = bits(with_moments(setting))
    monkeypatch.setattr(moments_file, "is_last", broken)
    races, wrong = 0, 0
    for schedule in SCHEDULES[:5]:
        monkeypatch.setattr(counters, "_by_device", {})  # a wrong count leaves a counter behind that is not zero
        with interleaved(schedule) as ran:
            results = with_moments(setting)
        races += len(ran.races)
        wrong += bits(results) != in_order
    assert races > 0
    assert wrong > 0, "no race ever did any harm"


def test_without_a_ticket_programs_wait_for_others_that_find_no_room(
    force: Force, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = SETTINGS["one row"]
    force("split", **setting.tiles)
    monkeypatch.setattr(split_file, "take_ticket", reversed_program_id)
    in_order = bits(run_all(setting))
    for room in (1, 2, 3):
        with pytest.raises(InterpreterError, match=r"waits for 0x.*not started"), interleaved(Schedule(resident=room)):
            run(setting.op, setting.args(), setting.time_dim)
    assert bits(run_all(setting)) == in_order


def run_all(setting: Setting) -> tuple[Tensor, ...]:
    """With room for every program at once, where it does not matter who starts."""
    with interleaved(Schedule(last_ticket_first, resident=None)):
        return run(setting.op, setting.args(), setting.time_dim)


@triton.jit
def raise_nothing(word, bit):
    tl.debug_barrier()


def test_a_bit_that_nobody_raises_is_named_and_does_not_hang(force: Force, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = SETTINGS["one row"]
    force("split", **setting.tiles)
    monkeypatch.setattr(split_file, "raise_bit", raise_nothing)
    for schedule in SCHEDULES:
        with (
            pytest.raises(InterpreterError, match=r"NobodyMoves.*waits for 0x\w+, which holds 0+"),
            interleaved(schedule),
        ):
            run(setting.op, setting.args(), setting.time_dim)
