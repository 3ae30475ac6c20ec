"""Cross entropy against the log-probabilities picked by hand, and against TorchRL."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchrl.objectives.functional import cross_entropy_loss as torchrl_cross_entropy_loss

from tritonrl.objectives.functional import cross_entropy_loss

ONE_HOT_DTYPES = [torch.bool, torch.long, torch.uint8]


def policy(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).log_softmax(-1).to(dtype)


def actions(*shape: int, among: int = 4) -> Tensor:
    return torch.randint(among, shape)


def one_hot(index: Tensor, dtype: torch.dtype = torch.long, among: int = 4) -> Tensor:
    return torch.nn.functional.one_hot(index, among).to(dtype)


@pytest.mark.parametrize("batch", [(), (3,), (2, 5), (0,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.uint8])
def test_an_index_picks_its_log_probability(batch: tuple[int, ...], dtype: torch.dtype) -> None:
    log_policy, action = policy(*batch, 4), actions(*batch)
    got = cross_entropy_loss(log_policy, action.to(dtype))
    rows = zip(log_policy.reshape(-1, 4).tolist(), action.reshape(-1).tolist(), strict=True)
    assert got.shape == batch
    assert got.reshape(-1).tolist() == [row[a] for row, a in rows]


@pytest.mark.parametrize("batch", [(), (3,), (2, 5), (0,)], ids=str)
@pytest.mark.parametrize("dtype", ONE_HOT_DTYPES)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_one_hot_action_is_as_good_as_an_index(batch: tuple[int, ...], dtype: torch.dtype, inplace: bool) -> None:
    log_policy, action = policy(*batch, 4), actions(*batch)
    wanted = cross_entropy_loss(log_policy, action)
    assert torch.equal(cross_entropy_loss(log_policy, one_hot(action, dtype), inplace), wanted)


def test_nothing_is_overwritten_unless_asked_for() -> None:
    log_policy, action = policy(3, 4), actions(3)
    before = log_policy.clone()
    for form in (action, one_hot(action)):
        cross_entropy_loss(log_policy, form)
        assert torch.equal(log_policy, before)
    cross_entropy_loss(log_policy, one_hot(action), inplace=True)
    assert torch.equal(log_policy, before * one_hot(action))


@pytest.mark.parametrize("inplace", [False, True])
def test_an_impossible_action_beside_the_one_taken_does_no_harm(inplace: bool) -> None:
    logits = torch.tensor([[0.0, -math.inf, 1.0], [0.5, 0.25, -math.inf]], requires_grad=True)
    action = torch.tensor([[True, False, False], [False, True, False]])
    got = cross_entropy_loss(logits * 1.0, action, inplace)
    assert got.tolist() == [0.0, 0.25]
    got.sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


@pytest.mark.parametrize("form", ["index", "one-hot", "one-hot in place"])
def test_gradients_are_right(form: str) -> None:
    action = actions(3) if form == "index" else one_hot(actions(3))
    leaf = policy(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_entropy_loss(x * 1.0, action, form.endswith("place")), leaf)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_result_has_the_dtype_of_the_policy(dtype: torch.dtype) -> None:
    log_policy, action = policy(3, 4, dtype=dtype), actions(3)
    assert cross_entropy_loss(log_policy, action).dtype is dtype
    assert cross_entropy_loss(log_policy, one_hot(action)).dtype is dtype


@pytest.mark.parametrize("batch", [(2,), (3, 1), (3, 5), (1, 3)], ids=str)
def test_a_shape_that_fits_neither_form_is_an_error(batch: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match=r"action has shape .* but log_policy has shape \(3, 4\)"):
        cross_entropy_loss(policy(3, 4), actions(*batch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.float64])
def test_a_one_hot_action_of_another_dtype_is_an_error(dtype: torch.dtype) -> None:
    for function in (cross_entropy_loss, torchrl_cross_entropy_loss):
        with pytest.raises(TypeError, match=str(dtype)):
            function(policy(3, 4), one_hot(actions(3), dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_an_index_that_is_no_integer_is_an_error(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="action indices must be integers"):
        cross_entropy_loss(policy(3, 4), actions(3).to(dtype))


@pytest.mark.parametrize("row", [[0, 0, 0, 0], [1, 0, 1, 0], [2, 0, 0, 0], [2, 0, 0, -1]], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_row_that_is_not_one_hot_is_an_error_before_anything_changes(row: list[int], inplace: bool) -> None:
    log_policy, action = policy(2, 4), torch.tensor([[0, 1, 0, 0], row])
    before = log_policy.clone()
    with pytest.raises(RuntimeError, match="one-hot"):
        cross_entropy_loss(log_policy, action, inplace)
    assert torch.equal(log_policy, before)


@pytest.mark.parametrize("form", ["index", "one-hot"])
def test_compiles_without_a_graph_break(form: str) -> None:
    log_policy, index = policy(3, 4), actions(3)
    action = index if form == "index" else one_hot(index)
    compiled = torch.compile(cross_entropy_loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(log_policy, action), cross_entropy_loss(log_policy, action))


def test_the_check_of_the_rows_survives_compilation() -> None:
    compiled = torch.compile(cross_entropy_loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="one-hot"):
        compiled(policy(3, 4), torch.zeros(3, 4, dtype=torch.long))


@pytest.mark.parametrize("form", ["index", "one-hot"])
def test_vmap_equals_a_batch(form: str) -> None:
    log_policy, index = policy(5, 3, 4), actions(5, 3)
    action = index if form == "index" else one_hot(index)
    assert torch.equal(torch.vmap(cross_entropy_loss)(log_policy, action), cross_entropy_loss(log_policy, action))
    nested = torch.vmap(torch.vmap(cross_entropy_loss))(log_policy, action)
    assert torch.equal(nested, cross_entropy_loss(log_policy, action))
    if form == "one-hot":
        with pytest.raises(RuntimeError, match="one-hot"):
            torch.vmap(cross_entropy_loss)(log_policy, action * 0)


@pytest.mark.parametrize("dtype", [None, *ONE_HOT_DTYPES], ids=str)
def test_values_and_gradients_are_those_of_torchrl(dtype: torch.dtype | None) -> None:
    index = actions(5)
    action = index if dtype is None else one_hot(index, dtype)
    outcomes = []
    for function in (cross_entropy_loss, torchrl_cross_entropy_loss):
        torch.manual_seed(1)
        leaf = policy(5, 4).requires_grad_()
        got = function(leaf, action)
        (gradient,) = torch.autograd.grad(got.square().sum(), leaf)
        outcomes.append((got, gradient))
    torch.testing.assert_close(*outcomes)


@pytest.mark.parametrize("row", [[0, 0, 0, 0], [1, 0, 1, 0], [2, 0, 0, 0]], ids=str)
def test_torchrl_refuses_the_same_rows(row: list[int]) -> None:
    with pytest.raises(RuntimeError):
        torchrl_cross_entropy_loss(policy(2, 4), torch.tensor([[0, 1, 0, 0], row]))


def test_torchrl_lets_an_impossible_action_spoil_the_one_taken() -> None:
    log_policy = torch.tensor([[0.0, -math.inf]])
    action = torch.tensor([[1, 0]])
    assert torchrl_cross_entropy_loss(log_policy, action).isnan().all()
    assert cross_entropy_loss(log_policy, action).tolist() == [0.0]


def test_torchrl_sums_the_actions_not_taken_when_in_place() -> None:
    log_policy = torch.tensor([[-1.0, -2.0, -4.0]])
    action = torch.tensor([[True, False, False]])
    assert torchrl_cross_entropy_loss(log_policy.clone(), action, inplace=True).tolist() == [-6.0]
    assert cross_entropy_loss(log_policy.clone(), action, inplace=True).tolist() == [-1.0]
    with pytest.raises(RuntimeError):
        torchrl_cross_entropy_loss(log_policy.clone(), action.long(), inplace=True)


def test_torchrl_does_not_take_a_uint8_index() -> None:
    log_policy, action = policy(3, 4), actions(3).to(torch.uint8)
    with pytest.raises(RuntimeError):
        torchrl_cross_entropy_loss(log_policy, action)
    assert torch.equal(cross_entropy_loss(log_policy, action), cross_entropy_loss(log_policy, action.long()))
