"""Reduction, validity masks and priority weights: against the formulas in fp64, and against TorchRL."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives import LossModule as TorchRLLossModule

from tritonrl.objectives import LossModule
from tritonrl.objectives.reduction import expand_validity_mask, loss_mask_keys, reduce_loss

MASK = torch.tensor([True, True, False, True])
LOSS = torch.tensor([1.0, 2.0, float("nan"), 4.0])
WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0])


def masked(mask: Tensor = MASK) -> TensorDict:
    return TensorDict({"collector": {"mask": mask}}, mask.shape[:1])


def by_hand(loss: Tensor, reduction: str, mask: Tensor, weights: Tensor) -> list[float] | float:
    rows = [(x, w) for x, m, w in zip(loss.tolist(), mask.tolist(), weights.tolist(), strict=True) if m]
    if reduction == "none":
        return [x * w if m else 0.0 for x, m, w in zip(loss.tolist(), mask.tolist(), weights.tolist(), strict=True)]
    total = sum(x * w for x, w in rows)
    if reduction == "sum":
        return total
    norm = sum(w for _, w in rows)
    return total / norm if norm else 0.0


@given(st.data())
def test_the_reductions_are_what_their_table_says(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 9))
    floats = st.floats(-5, 5, allow_nan=False)
    loss = torch.tensor(data.draw(st.lists(floats, min_size=size, max_size=size)), dtype=torch.float64)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool)
    weights = torch.tensor(data.draw(st.lists(st.floats(0.1, 3), min_size=size, max_size=size)), dtype=torch.float64)
    everywhere = torch.ones(size, dtype=torch.bool)
    ones = torch.ones(size, dtype=torch.float64)
    for reduction in ("mean", "sum", "none"):
        for m, w in ((mask, None), (None, weights), (mask, weights)):
            expected = by_hand(loss, reduction, everywhere if m is None else m, ones if w is None else w)
            got = reduce_loss(loss, reduction, m, w)
            torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64).reshape(got.shape))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_nan_behind_the_mask_reaches_neither_loss_nor_gradient(reduction: str, weights: Tensor | None) -> None:
    loss = LOSS.clone().requires_grad_()
    out = reduce_loss(loss, reduction, MASK, weights)
    assert out.isfinite().all()
    out.sum().backward()
    assert loss.grad is not None
    assert loss.grad.isfinite().all()
    assert loss.grad[2] == 0


def test_a_nan_weight_behind_the_mask_does_not_matter() -> None:
    weights = torch.tensor([1.0, 2.0, float("nan"), 4.0])
    assert reduce_loss(LOSS, "mean", MASK, weights) == (1 + 4 + 16) / 7


def test_where_nothing_counts_the_mean_is_zero() -> None:
    nothing = torch.zeros(4, dtype=torch.bool)
    assert reduce_loss(LOSS, "mean", nothing) == 0
    assert reduce_loss(LOSS, "mean", nothing, WEIGHTS) == 0
    assert reduce_loss(WEIGHTS, "mean", None, torch.zeros(4)) == 0


def test_an_unknown_reduction_is_refused_when_it_is_used() -> None:
    loss = LossModule()
    loss.reduction = "median"
    with pytest.raises(NotImplementedError, match="median"):
        loss._reduce_loss(WEIGHTS)


@pytest.mark.parametrize(
    ("loss", "kwargs"),
    [
        (LOSS, {}),
        (LOSS, {"weights": WEIGHTS}),
        (LOSS, {"weights": WEIGHTS[:, None]}),
        (LOSS[:, None], {}),
        (LOSS[:, None].expand(4, 2), {}),
        (LOSS, {"mask": torch.tensor([True, True, False, False])}),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mask", [MASK, MASK[:, None]])
def test_masked_losses_reduce_as_in_torchrl(loss: Tensor, kwargs: dict[str, Any], reduction: str, mask: Tensor) -> None:
    if "mask" in kwargs:
        # TorchRL applies only the explicit mask there; ours is the and of both, so give both the same data.
        kwargs = {"mask": kwargs["mask"] & MASK}
    data = masked(mask)
    expected = TorchRLLossModule()._reduce_loss(loss, data, reduction=reduction, **kwargs)
    torch.testing.assert_close(LossModule()._reduce_loss(loss, data, reduction=reduction, **kwargs), expected)


@pytest.mark.parametrize(
    ("loss", "data", "kwargs"),
    [
        (WEIGHTS, None, {"weights": WEIGHTS[:, None]}),
        (WEIGHTS, masked(MASK.float()), {}),
        (WEIGHTS[0], masked(), {}),
    ],
)
def test_what_does_not_fit_fails_as_in_torchrl(loss: Tensor, data: TensorDict | None, kwargs: dict[str, Any]) -> None:
    with pytest.raises((ValueError, RuntimeError)) as expected:
        TorchRLLossModule()._reduce_loss(loss, data, reduction="mean", **kwargs)
    with pytest.raises(expected.type):
        LossModule()._reduce_loss(loss, data, reduction="mean", **kwargs)


@pytest.mark.parametrize("shape", [(3,), (4,), (2, 4), (4, 3), (4, 3, 2)])
def test_a_mask_of_another_batch_names_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"(4, 2) cannot be applied to a loss of shape {shape}")):
        expand_validity_mask(torch.ones(4, 2, dtype=torch.bool), torch.zeros(shape))


@pytest.mark.parametrize(
    ("mask", "loss", "expected"),
    [((5, 1), (5,), (5,)), ((5,), (5, 1), (5, 1)), ((5,), (5, 3), (5, 3)), ((1,), (1,), (1,)), ((1, 1), (1,), (1,))],
)
def test_a_mask_is_brought_to_the_shape_of_the_loss(
    mask: tuple[int, ...], loss: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    flags = torch.arange(torch.Size(mask).numel()).reshape(mask) % 2 == 0
    expanded = expand_validity_mask(flags, torch.zeros(loss))
    assert expanded.shape == expected
    assert torch.equal(expanded.reshape(len(flags), -1)[:, 0], flags.reshape(len(flags), -1)[:, 0])


def test_every_mask_found_counts() -> None:
    data = masked().update({"shifted_valid": torch.tensor([True, False, True, True])})
    assert LossModule()._reduce_loss(LOSS, data, reduction="none").tolist() == [1.0, 0.0, 0.0, 4.0]


def test_the_mask_key_can_be_chosen_or_switched_off() -> None:
    loss = LossModule()
    assert loss.loss_mask_key == "auto"
    loss.loss_mask_key = ("my", "mask")
    assert loss._loss_mask_keys() == (("my", "mask"),)
    data = TensorDict({"my": {"mask": MASK}, "shifted_valid": torch.zeros(4, dtype=torch.bool)}, [4])
    assert loss._reduce_loss(LOSS, data, reduction="sum") == 7.0
    loss.loss_mask_key = None
    assert loss._reduce_loss(LOSS, data, reduction="sum").isnan()


@pytest.mark.parametrize("key", [3.5, (), ["a"], ("a", 1), True])
def test_a_mask_key_that_is_no_key_is_refused_and_the_old_one_kept(key: Any) -> None:
    loss = LossModule()
    with pytest.raises(ValueError, match="loss_mask_key"):
        loss.loss_mask_key = key
    assert loss.loss_mask_key == "auto"
    with pytest.raises(ValueError, match="loss_mask_key"):
        loss_mask_keys(key)


def test_the_reduction_compiles_without_a_graph_break() -> None:
    loss = LossModule()
    loss.reduction = "mean"
    compiled = torch.compile(loss._reduce_loss, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(
            compiled(LOSS, masked(), weights=WEIGHTS), loss._reduce_loss(LOSS, masked(), weights=WEIGHTS)
        )
