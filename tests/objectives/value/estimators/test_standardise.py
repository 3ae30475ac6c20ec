"""Standardisation of a batch, of its valid elements and of its groups, against direct computation."""

from __future__ import annotations

import pytest
import torch

from tritonrl.objectives.value.estimators.standardise import standardise


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
def test_the_batch_has_mean_zero_and_unbiased_deviation_one(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    torch.testing.assert_close(standardise(x, 1e-4), (x - x.mean()) / x.std())


def test_dimensions_can_be_kept_apart() -> None:
    x = torch.randn(4, 6, 3)
    torch.testing.assert_close(
        standardise(x, 1e-4, dim=(0, 1)), (x - x.mean((0, 1), keepdim=True)) / x.std((0, 1), keepdim=True)
    )


def test_masked_elements_are_left_out_and_zero() -> None:
    x, valid = torch.randn(4, 6, 1), torch.rand(4, 6) < 0.6
    kept = x[valid]
    with_nan = torch.where(valid.unsqueeze(-1), x, float("nan"))
    out = standardise(with_nan, 1e-4, valid=valid)
    torch.testing.assert_close(out[valid], (kept - kept.mean()) / kept.std(unbiased=False))
    assert not out[~valid].any()


def test_each_group_is_standardised_by_itself() -> None:
    x, groups = torch.randn(4, 6, 2), torch.randint(-2, 9, (4, 6))
    groups[0, 0] = 1000  # Alone in its group: no spread.
    out = standardise(x, 1e-4, groups=groups)
    for group in groups.unique():
        mine = x[groups == group]
        torch.testing.assert_close(out[groups == group], (mine - mine.mean()) / mine.std().clamp_min(1e-4))
    single = standardise(x[..., :1], 1e-4, groups=groups)
    assert single[0, 0].item() == 0.0


def test_groups_and_mask_together() -> None:
    x, groups, valid = torch.randn(5, 8), torch.arange(8).expand(5, 8) % 3, torch.rand(5, 8) < 0.7
    with_nan = torch.where(valid, x, float("nan"))
    out = standardise(with_nan, 1e-4, valid=valid, groups=groups)
    for group in range(3):
        chosen = (groups == group) & valid
        mine = x[chosen]
        torch.testing.assert_close(out[chosen], (mine - mine.mean()) / mine.std())
    assert not out[~valid].any()


@pytest.mark.parametrize("groups", [None, torch.zeros(3, 2, dtype=torch.long)])
def test_constant_data_become_zero_with_finite_gradients(groups: torch.Tensor | None) -> None:
    x = torch.full((3, 2), 5.0, requires_grad=True)
    out = standardise(x, 1e-4, groups=groups)
    assert not out.any()
    assert torch.autograd.grad(out[0, 0], x)[0].isfinite().all()


@pytest.mark.parametrize("shape", [(1,), (0, 3), (1, 1, 1)])
def test_one_element_becomes_zero_and_none_stays_none(shape: tuple[int, ...]) -> None:
    out = standardise(torch.randn(shape), 1e-4)
    assert out.shape == shape
    assert not out.any()
    assert standardise(torch.randn(shape), 1e-4, groups=torch.zeros(shape, dtype=torch.long)).shape == shape


def test_a_small_spread_is_divided_by_the_minimum() -> None:
    x = torch.tensor([0.0, 1e-6, -1e-6], dtype=torch.float64)
    torch.testing.assert_close(standardise(x, 1e-4), x / 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_in_half_precision(dtype: torch.dtype) -> None:
    x = torch.randn(64).to(dtype)
    out = standardise(x, 1e-4)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), standardise(x.float(), 1e-4), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("ids", [torch.zeros(2, 5, 1, 1), torch.zeros(3, 5)])
def test_ids_that_do_not_match_the_data_are_refused(ids: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"group ids of shape .*\(2, 5, 1\)"):
        standardise(torch.zeros(2, 5, 1), 1e-4, groups=ids)
