"""Statistics that respect a mask, against loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from tritonrl.objectives.metrics import effective_sample_size, explained_variance, masked_max, masked_mean

MASK = torch.tensor([[True, False, True], [False, False, True], [True, False, True], [True, False, False]])


def columns(values: Tensor, mask: Tensor) -> list[list[float]]:
    return [values[mask[:, j], j].tolist() for j in range(values.shape[1])]


def test_the_mean_and_the_maximum_run_over_valid_entries() -> None:
    values = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    valid = [x for column in columns(values, MASK) for x in column]
    assert masked_mean(values, MASK).item() == pytest.approx(statistics.mean(valid))
    assert masked_max(values, MASK).item() == max(valid)
    assert masked_mean(values).item() == pytest.approx(values.detach().mean().item())
    assert masked_max(values).item() == values.detach().max().item()
    assert not masked_mean(values, MASK).requires_grad


def test_a_mask_of_the_batch_covers_the_trailing_dimensions() -> None:
    values = torch.randn(4, 3, 2)
    torch.testing.assert_close(masked_mean(values, MASK), values[MASK].mean())


def test_a_nan_behind_the_mask_stays_there() -> None:
    values = torch.where(MASK, torch.ones(4, 3), torch.full((4, 3), math.nan))
    assert masked_mean(values, MASK) == 1
    assert masked_max(values, MASK) == 1
    assert torch.isfinite(effective_sample_size(values, MASK)).all()
    assert torch.isfinite(explained_variance(values, values, MASK)).all()


def test_nothing_valid_gives_zero() -> None:
    none = torch.zeros(4, 3, dtype=torch.bool)
    values = torch.randn(4, 3)
    assert masked_mean(values, none) == 0
    assert masked_max(values, none) == 0
    assert effective_sample_size(values, none).tolist() == [0.0] * 3


@pytest.mark.parametrize("masked", [False, True])
def test_the_effective_sample_size_of_each_column(masked: bool) -> None:
    log_weight = torch.randn(4, 3, dtype=torch.float64)
    mask = MASK if masked else torch.ones_like(MASK)
    expected = []
    for column in columns(log_weight, mask):
        weights = [math.exp(x) for x in column]
        expected.append(sum(weights) ** 2 / sum(w * w for w in weights) / len(weights) if weights else 0.0)
    result = effective_sample_size(log_weight, mask if masked else None)
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))


def test_the_effective_sample_size_ignores_a_common_factor_and_does_not_overflow() -> None:
    log_weight = torch.randn(9)
    torch.testing.assert_close(effective_sample_size(log_weight + 200.0), effective_sample_size(log_weight))


@pytest.mark.parametrize("masked", [False, True])
def test_the_explained_variance_of_each_column(masked: bool) -> None:
    value, target = torch.randn(2, 4, 3, dtype=torch.float64)
    mask = MASK if masked else torch.ones_like(MASK)
    expected = []
    for target_column, residual_column in zip(columns(target, mask), columns(target - value, mask), strict=True):
        if not target_column:
            expected.append(1.0)
            continue
        eps = torch.finfo(torch.float64).eps
        expected.append(1 - statistics.pvariance(residual_column) / (statistics.pvariance(target_column) + eps))
    result = explained_variance(value, target, mask if masked else None)
    single = torch.tensor([len(column) == 1 for column in columns(target, mask)])  # variance 0 over variance 0
    torch.testing.assert_close(result[~single], torch.tensor(expected, dtype=torch.float64)[~single])


def test_a_mask_that_does_not_fit_is_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(4, 3\)"):
        masked_mean(torch.zeros(4, 3), torch.ones(3, 4, dtype=torch.bool))
