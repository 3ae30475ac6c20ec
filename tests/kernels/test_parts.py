"""Moments on the CPU: taken part by part, by the kernel that computes the numbers or behind it, to the same bits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from tritonrl import kernels
from tritonrl.kernels.cpu import dispatch, geometry, parts, served
from tritonrl.kernels.cpu.geometry import Operand, Plan, make_plan
from tritonrl.kernels.cpu.looks import part_at
from tritonrl.kernels.cpu.parts import Parts
from tritonrl.kernels.cpu.simd import njit

# With parts of 64 numbers: rows of which several are in a part, none fits, or one just does; few lanes; strips with ends and
# other dimensions within and around a step; a single step, a single number.
SHAPES = (
    *(((37, 5), -1), ((3, 64), -1), ((5, 65), -1), ((2, 1000), -1), ((1, 3001), -1), ((2, 3, 11), -1)),
    *(((301, 3), -2), ((4, 7, 3), -2), ((2, 500, 3), -2)),
    *(((9, 16), -2), ((21, 37), -2), ((5, 513), -2), ((3, 1, 600), -2), ((2, 11, 3, 40), -3), ((700, 17), -2)),
    *(((1, 1), -1), ((1, 70), -2), ((50,), -1)),
)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small work is cut into many parts, strips and pieces, for several threads."""
    monkeypatch.setattr(parts, "PART", 64)
    monkeypatch.setattr(dispatch, "STEPS_PER_CHUNK", 32)
    monkeypatch.setattr(geometry, "MIN_SHARED_STRIP_BYTES", 64)
    monkeypatch.setattr(geometry, "MAX_STRIP_BYTES", 1024)
    monkeypatch.setattr(geometry, "MIN_PIECE", 200)
    monkeypatch.setattr(geometry, "STEPS_BETWEEN_MARKS", 32)
    threads = torch.get_num_threads()
    forget()
    yield
    torch.set_num_threads(threads)
    forget()


def forget() -> None:
    """Forget every plan."""
    dispatch.forget()
    served.forget()


def gae(x: Tensor, time_dim: int = -1, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The numbers of ``x`` as advantages, for what is beyond all numbers spreads past no done; and their moments."""
    none, all_of_them = torch.zeros_like(x), torch.ones_like(x, dtype=torch.bool)
    advantage, _, moments = kernels.gae(
        x, none, none, all_of_them, gamma=0.5, lmbda=0.5, time_dim=time_dim, valid=valid, moments=True
    )
    return advantage, moments


def by_definition(x: Tensor) -> Tensor:
    """Count, mean and M2, in float64."""
    x = x.double().flatten()
    return torch.stack([torch.tensor(float(x.numel()), dtype=torch.float64), x.mean(), (x - x.mean()).square().sum()])


@njit
def located(plan: int, part: int) -> tuple[int, int, int, int]:
    """What kernels know of where a part is."""
    found: tuple[int, int, int, int] = part_at(plan, part)
    return found


def plan_for(shape: tuple[int, ...], time_dim: int, shares: int) -> Plan:
    """Of float32 data, dense, one operand of which is a number for all."""
    strides = torch.empty(shape, device="meta").stride()
    operands = [Operand((0,) * len(shape), 4), Operand(tuple(4 * s for s in strides), 4)]
    return make_plan(shape, time_dim, operands, 1, 4, shares, measured=True)


@pytest.mark.parametrize("shares", [1, 3])
@pytest.mark.parametrize(("shape", "time_dim"), SHAPES)
def test_every_number_is_in_one_part(small_parts: None, shape: tuple[int, ...], time_dim: int, shares: int) -> None:
    plan, seen = plan_for(shape, time_dim, shares), np.zeros(math.prod(shape), dtype=int)
    for part in range(plan.parts):
        at, lines, count, stride = located(plan.address, part)
        for line in range(lines):
            seen[at + line * stride : at + line * stride + count] += 1
        assert lines * count > 0 and at + (lines - 1) * stride + count <= len(seen)
    assert (seen == 1).all()


def test_parts_do_not_depend_on_how_many_threads_there_are(small_parts: None) -> None:
    for shape, time_dim in SHAPES:
        fields = slice(geometry.NUMBERS, geometry.NUMBERS + len(Parts._fields))
        alone, many = (plan_for(shape, time_dim, shares).words[fields].tolist() for shares in (1, 7))
        assert alone == many


def test_moments_have_the_same_bits_for_any_number_of_threads(small_parts: None) -> None:
    """Where time is cut into pieces they are taken behind the kernel, elsewhere by it."""
    together = set()
    for shape, time_dim in SHAPES:
        x, reward = torch.randn(shape), torch.randn(shape)
        found = []
        for threads, _ in itertools.product((1, 2, 5), range(2)):  # a first call, and its repetition
            torch.set_num_threads(threads)
            advantage, _, moments = kernels.gae(
                reward,
                x,
                x,
                torch.zeros_like(x, dtype=torch.bool),
                gamma=0.9,
                lmbda=0.9,
                time_dim=time_dim,
                moments=True,
            )
            found.append(moments)
        together |= {(prepared.plan.group == 0, prepared.plan.together) for prepared in dispatch._prepared.values()}
        assert all(torch.equal(moments, found[0]) for moments in found)
        torch.testing.assert_close(found[0], by_definition(advantage), rtol=1e-11, atol=1e-11)
    assert together == set(itertools.product((True, False), repeat=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (4096,), (65537,), (3, 40_000), (70, 2100), (2, 33, 700)])
def test_moments_are_those_of_the_result_whatever_its_size(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = (torch.randn(shape) * 3 + 100).to(dtype)
    for time_dim in range(-min(2, len(shape)), 0):
        advantage, moments = gae(x, time_dim)
        assert torch.equal(advantage, x)
        torch.testing.assert_close(moments, by_definition(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("shape", "time_dim"), [((3, 40_000), -1), ((90, 600), -1), ((600, 90), -2), ((2100, 16), -2)])
def test_numbers_far_from_zero_lose_no_digits(shape: tuple[int, ...], time_dim: int) -> None:
    """Sums of their own squares would lose twelve of sixteen."""
    x = 1e6 + torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(gae(x, time_dim)[1], by_definition(x), rtol=1e-9, atol=0)


@pytest.mark.parametrize("extreme", [1.0, 1e9])
def test_a_part_that_begins_far_from_its_mean_loses_few_digits(extreme: float) -> None:
    """The fewest lanes that make a strip, one of which begins as far from all others as numbers can be."""
    x = torch.randn(parts.PART // 8, 8, dtype=torch.float64)
    x[-1, 0] = extreme
    torch.testing.assert_close(gae(x, -2)[1], by_definition(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("extreme", [1e200, -1e200, math.inf, math.nan])
@pytest.mark.parametrize(("shape", "time_dim"), [((3 * parts.PART,), -1), ((90, 600), -1), ((600, 90), -2)])
def test_moments_beyond_all_numbers_are_not_finite_and_no_error(
    extreme: float, shape: tuple[int, ...], time_dim: int
) -> None:
    x = torch.zeros(shape, dtype=torch.float64)
    x[: shape[0] // 3] = extreme
    for valid in (None, x == 0):
        moments, expected = gae(x, time_dim, valid)[1], by_definition(x if valid is None else x[valid])
        assert torch.equal(moments.isfinite(), expected.isfinite())
        torch.testing.assert_close(moments[moments.isfinite()], expected[expected.isfinite()])
