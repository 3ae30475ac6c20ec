"""Normalisation and layout of the advantage."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tritonrl.objectives.advantage import align_advantage, normalize_advantage


def test_the_whole_batch_gets_mean_zero_and_unbiased_deviation_one() -> None:
    advantage = torch.randn(5, 7, 1, dtype=torch.float64) * 3 + 2
    numbers = advantage.flatten().tolist()
    expected = [(x - statistics.mean(numbers)) / statistics.stdev(numbers) for x in numbers]
    torch.testing.assert_close(normalize_advantage(advantage).flatten(), torch.tensor(expected, dtype=torch.float64))


def test_an_excluded_dimension_keeps_statistics_of_its_own() -> None:
    advantage = torch.randn(4, 5, 3, 1, dtype=torch.float64)
    together = normalize_advantage(advantage, exclude_dims=(-2,))
    for agent in range(3):
        torch.testing.assert_close(together[:, :, agent], normalize_advantage(advantage[:, :, agent]))
    torch.testing.assert_close(together, normalize_advantage(advantage, exclude_dims=(2,)))


def test_only_valid_entries_count_and_the_deviation_is_then_biased() -> None:
    advantage = torch.randn(6, 3, 1, dtype=torch.float64)
    mask = torch.rand(6, 3, 1) > 0.4
    valid = advantage[mask].tolist()
    expected = [(x - statistics.mean(valid)) / statistics.pstdev(valid) for x in valid]
    result = normalize_advantage(advantage, mask=mask)
    torch.testing.assert_close(result[mask], torch.tensor(expected, dtype=torch.float64))
    assert (result[~mask] == 0).all()


def test_a_nan_behind_the_mask_reaches_neither_result_nor_gradient() -> None:
    advantage = torch.tensor([[1.0], [math.nan], [4.0], [math.inf]], requires_grad=True)
    mask = torch.tensor([[True], [False], [True], [False]])
    result = normalize_advantage(advantage, mask=mask)
    torch.testing.assert_close(result, torch.tensor([[-1.0], [0.0], [1.0], [0.0]]))
    result.square().sum().backward()
    assert torch.isfinite(advantage.grad).all()


@pytest.mark.parametrize("exclude_dims", [(0, 1), (0, 1, 2)])
def test_a_group_of_one_is_left_as_it_is(exclude_dims: tuple[int, ...]) -> None:
    advantage = torch.randn(5, 7, 1)
    assert normalize_advantage(advantage, exclude_dims=exclude_dims) is advantage
    assert normalize_advantage(advantage[:1, :1]) is not None
    assert torch.equal(normalize_advantage(advantage[:1, :1]), advantage[:1, :1])


def test_a_mask_with_one_valid_entry_gives_a_finite_zero() -> None:
    mask = torch.tensor([[True], [False]])
    assert normalize_advantage(torch.tensor([[3.0], [5.0]]), mask=mask).tolist() == [[0.0], [0.0]]


def test_a_constant_advantage_does_not_divide_by_zero() -> None:
    assert normalize_advantage(torch.full((4, 1), 2.5)).tolist() == [[0.0]] * 4


def test_an_excluded_dimension_out_of_range_is_named_with_the_shape() -> None:
    with pytest.raises(ValueError, match=r"normalize_advantage_exclude_dims=\(5,\).*\(5, 7, 1\)"):
        normalize_advantage(torch.zeros(5, 7, 1), exclude_dims=(5,))


@given(st.integers(1, 4), st.integers(2, 5), st.floats(-3, 3), st.floats(0.1, 4))
def test_shifting_and_scaling_the_advantage_changes_nothing(rows: int, cols: int, shift: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(rows * 10 + cols)
    advantage = torch.randn(rows, cols, 1, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(normalize_advantage(advantage * scale + shift), normalize_advantage(advantage))


@pytest.mark.parametrize(
    ("advantage", "log_weight", "product"),
    [
        ((6, 1), (6, 1), (6, 1)),
        ((5, 7, 1), (5, 7, 1), (5, 7, 1)),
        ((6, 1), (6, 3, 1), (6, 3, 1)),  # per-token log-weights
        ((5, 7, 1), (5, 7, 3, 2, 1), (5, 7, 3, 2, 1)),
        ((6, 3), (6, 1), (6, 3)),  # several advantages for one action
        ((5, 1, 1), (5, 7, 1), (5, 7, 1)),
        ((1, 1), (5, 7, 1), (5, 7, 1)),
        ((), (6, 1), (6, 1)),
    ],
)
def test_shapes_that_pair_up(advantage: tuple[int, ...], log_weight: tuple[int, ...], product: tuple[int, ...]) -> None:
    aligned = align_advantage(torch.randn(advantage), torch.randn(log_weight))
    assert (aligned * torch.randn(log_weight)).shape == product


def test_every_token_gets_the_advantage_of_its_own_action() -> None:
    advantage = torch.arange(4.0).unsqueeze(-1)
    product = align_advantage(advantage, torch.ones(4, 3, 1)) * torch.ones(4, 3, 1)
    assert product.squeeze(-1).tolist() == [[float(row)] * 3 for row in range(4)]


@pytest.mark.parametrize(
    ("advantage", "log_weight"),
    [
        ((6,), (6, 1)),
        ((5, 7), (5, 7, 1)),
        ((7, 1), (5, 7, 1)),
        ((7,), (5, 7, 1)),
        ((5, 1, 3), (5, 3, 1)),
        ((5, 7, 2, 1), (5, 7, 1)),
        ((6, 1), (5, 1)),
        ((3,), (1, 1)),
    ],
)
def test_shapes_that_do_not_pair_up_are_refused(advantage: tuple[int, ...], log_weight: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        align_advantage(torch.randn(advantage), torch.randn(log_weight))
    assert str(advantage) in str(error.value)
    assert str(log_weight) in str(error.value)
