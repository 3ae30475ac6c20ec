"""What RL programs do to a CPU backend: call it from many Python threads at once, and fork, at any moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tritonrl import kernels
from tritonrl.kernels.cpu import bodies, compile, dispatch, served, team
from tritonrl.kernels.cpu.pool import POOL, Pool

# Enough rows or strips for all threads; and too few, so that time is cut.
SHAPES = (
    *(((600, 70), -1), ((70, 600), -2), ((40, 90, 5), -2)),
    *(((900, 3), -2), ((2, 1501), -1), ((1777, 21), -2)),
)


@pytest.fixture(autouse=True, params=["openmp", "pool"])
def _small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cut even small work into pieces for several threads, OpenMP's or our own."""
    if request.param == "openmp" and team.openmp() is None:
        pytest.skip("torch has no OpenMP here")
    monkeypatch.setattr(team, "_is_child", [request.param == "pool"])
    monkeypatch.setattr(dispatch, "STEPS_PER_CHUNK", 512)
    monkeypatch.setattr("tritonrl.kernels.cpu.geometry.MIN_SHARED_STRIP_BYTES", 64)
    monkeypatch.setattr("tritonrl.kernels.cpu.geometry.MIN_PIECE", 200)
    monkeypatch.setattr("tritonrl.kernels.cpu.geometry.STEPS_BETWEEN_MARKS", 32)
    monkeypatch.setattr("tritonrl.kernels.cpu.parts.PART", 256)
    served.forget()
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)
    served.forget()


def draw(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    reward, value, next_value = (torch.randn(shape, generator=generator) for _ in range(3))
    return reward, value, next_value, torch.rand(shape, generator=generator) < 0.05


def gae(data: tuple[Tensor, ...], time_dim: int) -> tuple[Tensor, Tensor]:
    return kernels.gae(*data, gamma=0.99, lmbda=0.95, time_dim=time_dim)


def same(x: tuple[Tensor, ...], y: tuple[Tensor, ...]) -> bool:
    """Bitwise the same; by numpy, because torch's own threads do not survive a fork."""
    return all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(("shape", "time_dim"), SHAPES)
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, ...], time_dim: int) -> None:
    data = draw(shape)
    torch.set_num_threads(1)
    alone = gae(data, time_dim)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert same(gae(data, time_dim), alone)


@pytest.mark.parametrize(("gamma", "lmbda", "ends"), [(0.99, 0.95, 0.0), (1.0, 1.0, 0.0), (1.0, 1.0, 0.01)])
@pytest.mark.parametrize(("shape", "time_dim"), [((3001,), -1), ((3000, 3), -2), ((2999, 33), -2)])
@pytest.mark.parametrize("poison", [0.0, float("nan"), float("inf")])
def test_cutting_time_into_pieces_changes_no_bit(
    shape: tuple[int, ...], time_dim: int, gamma: float, lmbda: float, ends: float, poison: float
) -> None:
    reward, value, next_value, _ = draw(shape)
    done = torch.rand(shape) < ends
    reward.select(time_dim, 1700).add_(poison)

    def compute() -> tuple[Tensor, ...]:
        numbers = {"gamma": gamma, "time_dim": time_dim}
        advantages = kernels.gae(reward, value, next_value, done, lmbda=lmbda, **numbers)
        corrected = kernels.vtrace(0.1 * value, 0.1 * reward, reward, value, next_value, done, **numbers)
        forwards = kernels.linear_recurrence(torch.full(shape, gamma), reward, time_dim=time_dim, reverse=False)
        return *advantages, *corrected, forwards

    torch.set_num_threads(1)
    alone = compute()
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        served.forget()
        assert same(compute(), alone)
        assert all(prepared.plan.pieces > 1 for prepared in dispatch._prepared.values())


def test_a_piece_that_was_begun_with_the_wrong_state_is_begun_again() -> None:
    """Without discount the last reward reaches every step, so no piece but the last can be right at once."""
    reward = torch.zeros(3000)
    reward[-1] = 1.0
    done = torch.zeros(3000, dtype=torch.bool)
    assert torch.equal(kernels.reward_to_go(reward, done, gamma=1.0, time_dim=0), torch.ones(3000))
    (prepared,) = dispatch._prepared.values()
    assert prepared.plan.pieces == 3


def test_work_is_really_shared() -> None:
    names, together = set(), threading.Barrier(3)

    def work(i: int) -> None:
        together.wait(timeout=60)
        names.add(threading.current_thread().name)

    POOL.run(work, chunks=3, threads=3)
    assert len(names) >= 2


def test_many_python_threads_may_call_at_once() -> None:
    wanted = {seed: [gae(draw(shape, seed), time_dim) for shape, time_dim in SHAPES] for seed in range(8)}

    def calls(seed: int) -> bool:
        data = [(draw(shape, seed), time_dim) for shape, time_dim in SHAPES]
        return all(same(gae(*call), result) for _ in range(20) for call, result in zip(data, wanted[seed], strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(calls, range(8)))


def test_moments_may_be_taken_in_many_threads_at_once() -> None:
    """Each of them in parts, by the kernel or behind it."""
    cases = [(draw(shape, seed), time_dim) for seed, (shape, time_dim) in enumerate(SHAPES)]

    def compute(i: int) -> tuple[Tensor, ...]:
        data, time_dim = cases[i % len(cases)]
        return kernels.gae(*data, gamma=0.99, lmbda=0.95, time_dim=time_dim, moments=True)

    alone = [compute(i) for i in range(len(cases))]
    with ThreadPoolExecutor(8) as pool:
        for i, found in enumerate(pool.map(compute, range(200))):
            assert same(found, alone[i % len(cases)])


def test_gradients_may_be_taken_in_many_threads_at_once() -> None:
    def gradient(seed: int) -> Tensor:
        reward, value, next_value, done = draw((600, 70), seed)
        reward.requires_grad_()
        advantage, _ = gae((reward, value, next_value, done), -1)
        advantage.square().sum().backward()
        assert reward.grad is not None
        return reward.grad

    wanted = [gradient(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(x, y) for x, y in zip(pool.map(gradient, range(8)), wanted, strict=True))


def test_an_error_in_any_piece_reaches_the_caller() -> None:
    def work(i: int) -> None:
        if i == 3:
            raise ZeroDivisionError("in piece 3")

    with pytest.raises(ZeroDivisionError, match="in piece 3"):
        Pool().run(work, chunks=5, threads=2)


def test_helpers_that_never_come_are_not_waited_for() -> None:
    pool, done = Pool(), []
    pool._helpers = 2  # as if two were there
    pool.run(done.append, chunks=5, threads=3)
    assert sorted(done) == [0, 1, 2, 3, 4]


def in_child(work: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Fork, run ``work`` in the child, and say whether it came back true in time."""
    child = os.fork()
    if child == 0:
        ok = False
        try:
            ok = work()
        finally:
            os._exit(0 if ok else 1)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_with_helpers_of_its_own() -> None:
    calls = [(draw(shape), time_dim) for shape, time_dim in SHAPES]
    wanted = [gae(*call) for call in calls]
    POOL.run(lambda i: None, chunks=3, threads=3)
    assert POOL._helpers > 0

    def work() -> bool:
        fresh = POOL._helpers == 0 and team._is_child[0]
        right = all(same(gae(*call), result) for call, result in zip(calls, wanted, strict=True))
        return fresh and right and POOL._helpers > 0

    assert in_child(work)
    assert same(gae(*calls[0]), wanted[0])


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_other_threads_compute_leaves_a_child_that_works() -> None:
    data = draw((600, 70))
    wanted, stop = gae(data, -1), threading.Event()

    def busy() -> int:
        count = 0
        while not stop.is_set():
            assert same(gae(data, -1), wanted)
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(busy) for _ in range(3)]
        try:
            assert all(in_child(lambda: same(gae(data, -1), wanted)) for _ in range(10))
        finally:
            stop.set()
        assert all(other.result() > 0 for other in others)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_compiles_leaves_a_child_that_can_compile(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compile, "_kernels", {})
    begun = threading.Event()

    def compiles() -> None:
        begun.set()
        compile.kernel("reward_to_go", bodies.REWARD_TO_GO, torch.float32, 8, 1)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(compiles)
        begun.wait()
        assert in_child(lambda: compile.kernel("reward_to_go", bodies.REWARD_TO_GO, torch.float32, 4, 1) is not None)
        other.result()


def _gae_in_another_process(seed: int) -> tuple[Tensor, Tensor]:
    return gae(draw((30, 40), seed), -1)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_of_a_forking_process_pool_work() -> None:
    wanted = [_gae_in_another_process(seed) for seed in range(4)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(_gae_in_another_process, range(4)).get(timeout=60)
    assert all(same(x, y) for x, y in zip(found, wanted, strict=True))
