"""Results that go past the caches are those that do not, to the bit, and only go there where they can and should."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tritonrl import kernels
from tritonrl.kernels.cpu import dispatch, served

from .arguments import ALL, convert, draw, run


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    served.forget()
    monkeypatch.setattr(dispatch, "STREAMED_BYTES", 0)
    yield
    served.forget()


def streamed() -> list[bool]:
    """Of every call that was prepared, whether its results go past the caches."""
    return [prepared.plain is not None for prepared in dispatch._prepared.values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", ALL)
def test_the_results_are_the_same_to_the_bit(op: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for shape, time_dim in (((19, 96), 0), ((2, 19, 3, 32), 1)):
        args = convert(draw(op, shape, time_dim), dtype)
        dispatch.forget()
        found = run(op, args, time_dim)
        assert any(streamed())
        monkeypatch.setattr(dispatch, "STREAMED_BYTES", 1 << 60)
        dispatch.forget()
        wanted = run(op, args, time_dim)
        assert not any(streamed())
        assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))
        monkeypatch.setattr(dispatch, "STREAMED_BYTES", 0)


def gae(shape: tuple[int, ...], time_dim: int = 0, **more: Any) -> tuple[Tensor, ...]:
    x, done = torch.ones(shape), torch.zeros(shape, dtype=torch.bool)
    return kernels.gae(x, x, x, done, gamma=0.9, lmbda=0.8, time_dim=time_dim, **more)


@pytest.mark.parametrize(("shape", "time_dim"), [((9, 95), 0), ((9, 40), 0), ((96, 9), 1), ((2, 9, 33), 1)], ids=str)
def test_blocks_that_are_no_whole_lines_stay_in_the_cache(shape: tuple[int, ...], time_dim: int) -> None:
    gae(shape, time_dim)
    assert streamed() == [False]


def test_numbers_of_which_a_register_is_half_a_line_stay_in_the_cache() -> None:
    x, done = torch.ones(9, 96, dtype=torch.bfloat16), torch.zeros(9, 96, dtype=torch.bool)
    kernels.reward_to_go(x, done, gamma=0.9, time_dim=0)
    assert streamed() == [False]


def test_small_results_and_those_that_are_looked_at_again_stay_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    gae((9, 96), moments=True)
    assert streamed() == [False]
    gae((9, 96))
    assert streamed() == [False, True]
    dispatch.forget()
    monkeypatch.setattr(dispatch, "STREAMED_BYTES", 2 * 4 * 9 * 96 + 1)
    gae((9, 96))
    assert streamed() == [False]


def test_a_result_that_begins_within_a_line_is_computed_all_the_same() -> None:
    wanted = gae((9, 96))
    (prepared,) = dispatch._prepared.values()
    x, done = torch.ones(9, 96), torch.zeros(9, 96, dtype=torch.bool)
    number = [torch.tensor(n, dtype=torch.float64) for n in (0.9, 0.8)]
    results = [torch.empty(9 * 96 + 1)[1:].view(9, 96) for _ in range(2)]
    assert results[0].data_ptr() % 64
    dispatch.execute(prepared, [x, x, x, done, done, *number, *results])
    assert all(torch.equal(x, y) for x, y in zip(results, wanted, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_see_what_others_streamed(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(20):
            advantage, target = gae((64, 8192))
            assert streamed()[-1]
            assert torch.equal(target, advantage + 1)
    finally:
        torch.set_num_threads(before)
