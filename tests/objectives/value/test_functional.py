"""The value functionals against a float64 scalar oracle: layouts, discounts, dtypes, flags, gradients, transforms."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tritonrl.objectives.value import _fixed_discount, functional

from .functional_oracle import (
    FIXED_DISCOUNT,
    FUNCTIONALS,
    RETURNS_PAIR,
    WITH_TIME,
    assert_equal_to_oracle,
    call,
    discount_like,
    oracle,
    results,
    sample,
)

every_functional = pytest.mark.parametrize("name", FUNCTIONALS)
every_functional_over_time = pytest.mark.parametrize("name", WITH_TIME)
every_fixed_discount = pytest.mark.parametrize("name", FIXED_DISCOUNT)
PER_STEP = [name for name in FUNCTIONALS if name != "reward2go"]
"""The functionals that take a discount per step."""


def taking(argument: str) -> list[str]:
    """The functionals that take an argument of this name."""
    # The done of td0_return_estimate is a stand-in for terminated, and not looked at beside it.
    return [
        name
        for name, function in FUNCTIONALS.items()
        if argument in inspect.signature(function).parameters and (name, argument) != ("td0_return_estimate", "done")
    ]


def pairs(*arguments: str, without: Sequence[tuple[str, str]] = ()) -> list[tuple[str, str]]:
    """Every functional with each of these arguments that it takes."""
    found = [(name, argument) for argument in arguments for name in taking(argument)]
    return [pair for pair in found if pair not in without]


def test_the_facade_has_all_names_of_the_specification() -> None:
    assert len(FUNCTIONALS) == 14
    assert FUNCTIONALS["reward2go"] is functional.reward2go


# --- values ---------------------------------------------------------------------------------------------------------


@every_functional
@pytest.mark.parametrize("shape", [(3, 5, 2), (1, 1), (2, 2, 1), (127, 1), (3, 129, 1), (2, 1, 3, 2), (1, 7, 3)])
def test_odd_shapes_equal_the_oracle(name: str, shape: tuple[int, ...]) -> None:
    assert_equal_to_oracle(name, sample(*shape), gamma=0.97, lmbda=0.9, rho_thresh=0.9, c_thresh=0.8)


@every_functional_over_time
def test_a_thousand_steps_equal_the_oracle(name: str) -> None:
    assert_equal_to_oracle(name, sample(3, 1000, 1, done_rate=0.01), gamma=0.99, lmbda=0.95)


@every_functional
@pytest.mark.parametrize("done_rate", [0.0, 1.1], ids=["no step is done", "every step is done"])
def test_no_end_and_only_ends_equal_the_oracle(name: str, done_rate: float) -> None:
    assert_equal_to_oracle(name, sample(2, 6, 2, done_rate=done_rate), gamma=0.97, lmbda=0.9)


@every_functional_over_time
@pytest.mark.parametrize("time_dim", [0, 1, 2, 3, -1, -2, -3, -4])
def test_any_dimension_can_be_time(name: str, time_dim: int) -> None:
    data = sample(4, 3, 5, 2)
    assert_equal_to_oracle(name, data, gamma=0.97, lmbda=0.9, time_dim=time_dim)
    if name in PER_STEP:
        assert_equal_to_oracle(name, data, gamma=discount_like(4, 3, 5, 2), lmbda=0.9, time_dim=time_dim)


@every_functional_over_time
@pytest.mark.parametrize("time_dim", [0, -1])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_single_row_gives_a_single_row(name: str, time_dim: int, steps: int) -> None:
    assert_equal_to_oracle(name, sample(steps), gamma=0.97, lmbda=0.9, time_dim=time_dim)


@every_functional
def test_a_two_dimensional_tensor_is_time_by_feature(name: str) -> None:
    data = sample(5, 3)
    assert_equal_to_oracle(name, data, gamma=0.9, lmbda=0.8)
    if name in WITH_TIME:
        rows = results(call(name, data, gamma=0.9, lmbda=0.8, time_dim=-1))
        assert not torch.allclose(rows[0], results(call(name, data, gamma=0.9, lmbda=0.8))[0])


@every_functional
@pytest.mark.parametrize("shape", [(3, 0, 2), (0, 5, 1), (0, 1), (2, 4, 0)])
def test_empty_data_give_empty_results(name: str, shape: tuple[int, ...]) -> None:
    data = {key: x.requires_grad_(x.is_floating_point()) for key, x in sample(*shape).items()}
    got = results(call(name, data, gamma=0.9, lmbda=0.8))
    assert [x.shape for x in got] == [shape] * len(got)
    sum(x.sum() for x in got).backward()
    assert data["reward"].grad is not None
    assert data["reward"].grad.shape == shape


@every_fixed_discount
@pytest.mark.parametrize("shape", [(3, 0, 2), (0, 5, 1)])
def test_empty_data_give_empty_results_with_a_fixed_discount(name: str, shape: tuple[int, ...]) -> None:
    result = call(name, sample(*shape), gamma=torch.ones(shape), lmbda=0.8, rolling_gamma=False)
    assert result.shape == shape


@every_functional_over_time
def test_views_with_any_strides_are_read_in_place(name: str) -> None:
    plain = sample(3, 6, 2)
    permuted = {key: x.permute(2, 1, 0).contiguous().permute(2, 1, 0) for key, x in plain.items()}
    strided = {key: torch.stack([x, ~x if x.dtype is torch.bool else x + 9], -1)[..., 0] for key, x in plain.items()}
    wanted = results(call(name, plain, gamma=0.9, lmbda=0.8))
    for view in (permuted, strided):
        assert not view["reward"].is_contiguous()
        torch.testing.assert_close(results(call(name, view, gamma=0.9, lmbda=0.8)), wanted)


@every_functional_over_time
def test_stride_zero_expands_are_as_good_as_copies(name: str) -> None:
    expanded = {key: x.expand(4, 6, 2) for key, x in sample(1, 6, 1).items()}
    copied = {key: x.contiguous() for key, x in expanded.items()}
    discounts: dict[str, Any] = {"gamma": 0.9, "lmbda": 0.8}
    if name in PER_STEP:
        discounts = {"gamma": torch.tensor([[0.9]]).expand(4, 6, 2), "lmbda": torch.tensor(0.8).expand(6, 2)}
    wanted = results(call(name, copied, gamma=0.9, lmbda=0.8))
    torch.testing.assert_close(results(call(name, expanded, **discounts)), wanted, rtol=1e-6, atol=1e-6)


@every_functional
def test_inputs_are_left_as_they_were(name: str) -> None:
    data = sample(3, 6, 2)
    before = {key: x.clone() for key, x in data.items()}
    gamma = discount_like(3, 6, 2) if name in PER_STEP else discount_like(1)
    call(name, data, gamma=gamma, lmbda=discount_like(6, 1))
    assert all(torch.equal(data[key], before[key]) for key in data)
    assert torch.equal(gamma, discount_like(*gamma.shape))


@every_functional
def test_without_terminated_every_done_step_is_terminated(name: str) -> None:
    data = sample(3, 6, 2)
    together = {**data, "terminated": data["done"]}
    alone = {key: x for key, x in data.items() if key != "terminated"}
    if name == "td0_return_estimate":
        alone["terminated"] = data["done"]
    torch.testing.assert_close(
        results(call(name, alone, gamma=0.9, lmbda=0.8)), results(call(name, together, gamma=0.9, lmbda=0.8))
    )


@pytest.mark.parametrize("name", taking("next_state_value"))
def test_a_truncated_step_still_bootstraps(name: str) -> None:
    data = sample(4, 1, done_rate=0.0)
    data["done"][2] = True
    higher = {**data, "next_state_value": data["next_state_value"].clone()}
    higher["next_state_value"][2] += 1.0
    change = results(call(name, higher, gamma=0.9, lmbda=0.8))[0] - results(call(name, data, gamma=0.9, lmbda=0.8))[0]
    weight = 0.9
    if name == "vtrace_advantage_estimate":
        weight *= min(1.0, math.exp(data["log_pi"][2] - data["log_mu"][2]))
    assert change[2].item() == pytest.approx(weight)


@every_fixed_discount
@pytest.mark.parametrize("discount", ["a number", "a tensor per step"])
def test_the_last_step_is_an_end_that_bootstraps(name: str, discount: str) -> None:
    gamma = 0.5 if discount == "a number" else torch.full((3, 1), 0.5)
    data = sample(3, 1, done_rate=0.0)
    closed = {**data, "done": torch.tensor([[False], [False], [True]])}
    torch.testing.assert_close(call(name, data, gamma=gamma, lmbda=0.8), call(name, closed, gamma=gamma, lmbda=0.8))


# --- discounts ------------------------------------------------------------------------------------------------------

DISCOUNT_SHAPES = [(), (1,), (1, 1, 1, 1), (3, 5, 2), (5, 2), (5, 1), (1, 5, 1), (3, 1, 1), (3, 5, 1), (2,), (1, 1, 2)]


@pytest.mark.parametrize("name", PER_STEP)
@pytest.mark.parametrize("shape", DISCOUNT_SHAPES, ids=str)
def test_every_form_of_discount_equals_the_oracle(name: str, shape: tuple[int, ...]) -> None:
    data = sample(3, 5, 2)
    gamma, lmbda, rho, c = (discount_like(*shape, seed=seed) for seed in range(4))
    forms: dict[str, Any] = {"gamma": gamma, "lmbda": lmbda, "rho_thresh": rho, "c_thresh": c}
    got = results(call(name, data, **forms))
    plain = {key: x.reshape(()) if x.numel() == 1 else x for key, x in forms.items()}
    torch.testing.assert_close(got, oracle(name, data, **plain), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PER_STEP)
def test_one_discount_may_be_a_number_and_the_other_a_tensor(name: str) -> None:
    data = sample(3, 5, 2)
    assert_equal_to_oracle(name, data, gamma=0.9, lmbda=discount_like(3, 5, 2), rho_thresh=discount_like(5, 1))
    assert_equal_to_oracle(name, data, gamma=discount_like(5, 1), lmbda=0.8, c_thresh=discount_like(3, 1, 1))


@every_functional
@pytest.mark.parametrize(
    "gamma", [0.9, torch.tensor(0.9), torch.tensor([0.9]), torch.tensor(1), np.float32(0.5), 1, True]
)
def test_one_discount_for_all_steps_can_be_any_kind_of_number(name: str, gamma: Any) -> None:
    data = sample(2, 5, 1)
    wanted = oracle(name, data, gamma=float(gamma), lmbda=1.0)
    torch.testing.assert_close(
        results(call(name, data, gamma=gamma, lmbda=gamma / gamma)), wanted, rtol=1e-6, atol=1e-6
    )


@every_functional
@pytest.mark.parametrize(
    ("gamma", "lmbda"), [(0.0, 0.9), (0.9, 0.0), (1e-5, 1e-4), (1e-4, 1.0), (0.9, -0.5), (-0.9, 0.5), (1.1, 1.0)]
)
def test_zero_tiny_negative_and_large_discounts_are_the_exact_recursion(name: str, gamma: float, lmbda: float) -> None:
    data = sample(2, 9, 2)
    assert_equal_to_oracle(name, data, gamma=gamma, lmbda=lmbda)
    assert_equal_to_oracle(name, data, gamma=torch.tensor(gamma, dtype=torch.float64), lmbda=lmbda)


@pytest.mark.parametrize("name", [name for name in WITH_TIME if name in PER_STEP])
def test_a_shorter_discount_counts_a_non_negative_time_dim_in_its_own_dimensions(name: str) -> None:
    data = sample(5, 3, 2)  # [T, B, F]
    gamma = discount_like(5)
    wanted = oracle(name, data, gamma=gamma.reshape(5, 1, 1), lmbda=0.8, time_dim=0)
    for form in (gamma, gamma.reshape(5, 1), gamma.reshape(5, 1, 1)):
        torch.testing.assert_close(results(call(name, data, gamma=form, lmbda=0.8, time_dim=0)), wanted)
    per_feature = discount_like(5, 2)
    wanted = oracle(name, data, gamma=per_feature.reshape(5, 1, 2), lmbda=0.8, time_dim=0)
    torch.testing.assert_close(results(call(name, data, gamma=per_feature, lmbda=0.8, time_dim=0)), wanted)


@pytest.mark.parametrize("name", [name for name in WITH_TIME if name in PER_STEP])
def test_a_row_of_discounts_serves_every_row_when_time_is_last(name: str) -> None:
    assert_equal_to_oracle(name, sample(4, 3, 5), gamma=discount_like(5), lmbda=discount_like(3, 5), time_dim=-1)


def test_v_trace_broadcasts_what_need_not_have_the_shape_of_the_reward() -> None:
    data = sample(3, 5, 2)
    smaller = {**data, "log_pi": data["log_pi"][0, :, :1], "log_mu": data["log_mu"][:1, :, :1]}
    smaller["terminated"] = torch.zeros(5, 1, dtype=torch.bool)
    assert_equal_to_oracle("vtrace_advantage_estimate", smaller, gamma=0.9, rho_thresh=torch.tensor(0.7), c_thresh=0.6)
    of_one_element = {**data, "log_pi": torch.tensor([[[0.3]]]), "log_mu": torch.tensor(0.5)}
    got = call("vtrace_advantage_estimate", of_one_element, gamma=0.9)
    torch.testing.assert_close(got, oracle("vtrace_advantage_estimate", of_one_element, gamma=0.9))


# --- rolling_gamma=False --------------------------------------------------------------------------------------------


@every_fixed_discount
@pytest.mark.parametrize("time_dim", [-2, 0, -1])
@pytest.mark.parametrize("shape", [(2, 9, 1), (3, 1, 2), (1, 33, 3)])
def test_a_fixed_discount_equals_the_oracle(name: str, shape: tuple[int, ...], time_dim: int) -> None:
    gamma, lmbda = discount_like(*shape), discount_like(*shape, seed=8)
    arguments = {"rolling_gamma": False, "time_dim": time_dim}
    assert_equal_to_oracle(name, sample(*shape), gamma=gamma, lmbda=lmbda if "lambda" in name else 1.0, **arguments)
    if "lambda" in name:
        assert_equal_to_oracle(name, sample(*shape), gamma=0.9, lmbda=lmbda, **arguments)
        assert_equal_to_oracle(name, sample(*shape), gamma=gamma, lmbda=0.7, **arguments)
        assert_equal_to_oracle(name, sample(*shape), gamma=gamma, lmbda=lmbda[:1, :1], **arguments)


@every_fixed_discount
@pytest.mark.parametrize("elements", [1, 20, 100])
def test_a_fixed_discount_does_not_depend_on_how_the_starts_are_blocked(
    name: str, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fixed_discount, "_TABLE_ELEMENTS", elements)
    shape = (2, 11, 1)
    assert_equal_to_oracle(name, sample(*shape), gamma=discount_like(*shape), lmbda=0.8, rolling_gamma=False)


@every_fixed_discount
def test_a_fixed_discount_that_is_the_same_everywhere_is_a_rolling_one(name: str) -> None:
    data = sample(2, 7, 1)
    data["done"][:, -1] = True  # TD(1) leaves an open end without bootstrap.
    gamma = torch.full((2, 7, 1), 0.9, dtype=torch.float64)
    fixed = call(name, data, gamma=gamma, lmbda=0.8, rolling_gamma=False)
    torch.testing.assert_close(fixed, call(name, data, gamma=0.9, lmbda=0.8))


@pytest.mark.parametrize("prefix", ["", "vec_"])
def test_td1_with_a_fixed_discount_does_not_bootstrap_an_open_end(prefix: str) -> None:
    data = sample(4, 1, done_rate=0.0)
    gamma = torch.full((4, 1), 0.9, dtype=torch.float64)
    returns = call(f"{prefix}td1_return_estimate", data, gamma=gamma, rolling_gamma=False)
    torch.testing.assert_close(returns[-1], data["reward"][-1])
    mixed = call(f"{prefix}td_lambda_return_estimate", data, gamma=gamma, lmbda=1.0, rolling_gamma=False)
    torch.testing.assert_close(mixed[-1], data["reward"][-1] + 0.9 * data["next_state_value"][-1])


@every_fixed_discount
def test_a_constant_discount_cannot_be_fixed_except_under_the_vec_names(name: str) -> None:
    data = sample(3, 5, 2)
    for gamma in (0.9, torch.tensor(0.9), torch.tensor([0.9])):
        if name.startswith("vec_"):
            fixed = call(name, data, gamma=gamma, lmbda=0.8, rolling_gamma=False)
            torch.testing.assert_close(fixed, call(name, data, gamma=gamma, lmbda=0.8))
        else:
            with pytest.raises(RuntimeError, match=r"rolling_gamma=False needs a discount per step.*\(3, 5, 2\)"):
                call(name, data, gamma=gamma, lmbda=0.8, rolling_gamma=False)


@every_fixed_discount
@pytest.mark.parametrize("shape", [(5, 1), (1, 5, 1), (3, 1, 1)], ids=str)
def test_a_fixed_discount_must_have_the_shape_of_the_data(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="rolling_gamma=False needs a discount per step"):
        call(name, sample(3, 5, 2), gamma=discount_like(*shape), lmbda=0.8, rolling_gamma=False)


@every_fixed_discount
def test_a_nan_before_a_start_does_not_reach_it_or_its_gradient(name: str) -> None:
    data = sample(6, 1, done_rate=0.0)
    data["reward"][1] = data["next_state_value"][1] = math.nan
    gamma = discount_like(6, 1).requires_grad_()
    returns = call(name, data, gamma=gamma, lmbda=0.8, rolling_gamma=False)
    assert returns[2:].isfinite().all()
    returns[2:].sum().backward()
    assert gamma.grad is not None
    assert gamma.grad[2:].isfinite().all()


# --- dtypes ---------------------------------------------------------------------------------------------------------


@every_functional
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)]
)
@pytest.mark.parametrize("form", ["a number", "a float32 tensor"])
def test_the_result_has_the_dtype_of_the_data(name: str, dtype: torch.dtype, tolerance: float, form: str) -> None:
    data = sample(3, 33, 2, dtype=dtype)
    gamma = 0.97 if form == "a number" else torch.tensor(0.97)
    for got, wanted in zip(
        results(call(name, data, gamma=gamma, lmbda=0.9)), oracle(name, data, gamma=gamma, lmbda=0.9), strict=True
    ):
        assert got.dtype is dtype
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


@every_functional
def test_half_precision_is_summed_in_single_precision(name: str) -> None:
    # 3000 + 0.25 is 3000 in bfloat16: a running sum kept in it would stand still. The result is rounded once.
    steps = 400
    ones = torch.full((steps, 1), 0.25, dtype=torch.bfloat16)
    flags = torch.zeros(steps, 1, dtype=torch.bool)
    values = torch.zeros_like(ones)
    data = {"reward": ones, "state_value": values, "next_state_value": values, "log_pi": values, "log_mu": values}
    data |= {"done": flags, "terminated": flags}
    data["reward"][-1] = 3000.0
    for got, wanted in zip(
        results(call(name, data, gamma=1.0, lmbda=1.0)), oracle(name, data, gamma=1.0, lmbda=1.0), strict=True
    ):
        assert torch.equal(got, wanted.to(torch.bfloat16))


@pytest.mark.parametrize("name", taking("state_value"))
def test_an_advantage_in_half_precision_is_rounded_once(name: str) -> None:
    # Return 1000.7 and value 1000 differ by less than a bfloat16 step at 1000, and still the advantage is 0.7.
    value = torch.full((1, 1), 1000.0, dtype=torch.bfloat16)
    small = torch.full((1, 1), 0.703125, dtype=torch.bfloat16)
    flag = torch.zeros(1, 1, dtype=torch.bool)
    data = {"reward": small, "state_value": value, "next_state_value": value, "log_pi": small, "log_mu": small}
    advantage = results(call(name, {**data, "done": flag, "terminated": flag}, gamma=1.0, lmbda=1.0))[0]
    assert advantage.item() == 0.703125


@every_functional
def test_double_precision_keeps_a_python_discount_exact(name: str) -> None:
    data = {key: x.abs() if x.is_floating_point() else x for key, x in sample(2000, 1, done_rate=0.0).items()}
    assert_equal_to_oracle(name, data, gamma=0.999, lmbda=0.99, rtol=1e-12, atol=1e-12)


@every_functional
def test_mixed_dtypes_are_promoted_as_in_ordinary_arithmetic(name: str) -> None:
    data = sample(3, 5, 2, dtype=torch.float32)
    wide = {**data, "reward": data["reward"].double()}
    for result in results(call(name, wide, gamma=0.9, lmbda=0.8)):
        assert result.dtype is torch.float64
    assert_equal_to_oracle(name, wide, gamma=0.9, lmbda=0.8)


@every_functional
def test_integer_rewards_are_taken_as_numbers(name: str) -> None:
    data = {**sample(3, 5, 2, dtype=torch.float32), "reward": torch.arange(30).reshape(3, 5, 2)}
    for result in results(call(name, data, gamma=0.9, lmbda=0.8)):
        assert result.dtype is torch.float32
    assert_equal_to_oracle(name, data, gamma=0.9, lmbda=0.8, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PER_STEP)
def test_the_dtype_of_a_discount_does_not_count(name: str) -> None:
    data = sample(3, 5, 2, dtype=torch.float32)
    for result in results(call(name, data, gamma=discount_like(3, 5, 2), lmbda=discount_like(5, 1))):
        assert result.dtype is torch.float32


# --- flags ----------------------------------------------------------------------------------------------------------


@every_functional
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_an_integer_flag_means_not_zero(name: str, dtype: torch.dtype) -> None:
    data = sample(3, 6, 2)
    integers = {**data, "done": data["done"].to(dtype) * 3, "terminated": data["terminated"].to(dtype)}
    torch.testing.assert_close(
        results(call(name, integers, gamma=0.9, lmbda=0.8)), results(call(name, data, gamma=0.9, lmbda=0.8))
    )


FLOAT_DONE = ["vec_generalized_advantage_estimate", "reward2go"]
"""The functions that take a float ``done``, as TorchRL's do."""


@pytest.mark.parametrize(("name", "flag"), pairs("done", "terminated", without=[(name, "done") for name in FLOAT_DONE]))
def test_a_float_flag_is_refused(name: str, flag: str) -> None:
    data = sample(3, 6, 2)
    with pytest.raises(TypeError, match=rf"{flag} must be a boolean.*torch\.float32"):
        call(name, {**data, flag: data[flag].float()}, gamma=0.9, lmbda=0.8)


@pytest.mark.parametrize("name", FLOAT_DONE)
def test_a_float_done_is_taken_where_it_leaves_no_doubt(name: str) -> None:
    data = sample(3, 6, 2)
    floats = {**data, "done": data["done"].float()}
    torch.testing.assert_close(
        results(call(name, floats, gamma=0.9, lmbda=0.8)), results(call(name, data, gamma=0.9, lmbda=0.8))
    )


def test_a_float_done_cannot_stand_for_terminated() -> None:
    data = sample(3, 6, 2)
    floats = {**data, "done": data["done"].float(), "terminated": None}
    with pytest.raises(TypeError, match="done must be a boolean"):
        call("vec_generalized_advantage_estimate", floats, gamma=0.9, lmbda=0.8)


POISON = pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])


@every_functional
@POISON
def test_what_is_behind_terminated_reaches_no_result_and_no_gradient(name: str, poison: float) -> None:
    data = sample(2, 7, 1)
    data["done"][:, 3] = data["terminated"][:, 3] = True
    poisoned = {**data, "next_state_value": torch.where(data["terminated"], poison, data["next_state_value"])}
    _assert_same_values_and_gradients(name, data, poisoned)


@every_functional_over_time
@POISON
def test_what_is_behind_a_done_reaches_no_result_and_no_gradient(name: str, poison: float) -> None:
    data = sample(2, 7, 1, done_rate=0.0)
    data["done"][:, 3] = True
    behind = torch.arange(7).reshape(7, 1) > 3
    floats = ("reward", "state_value", "next_state_value")
    poisoned = {key: torch.where(behind, poison, x) if key in floats else x for key, x in data.items()}
    _assert_same_values_and_gradients(name, data, poisoned, steps=4)


def _assert_same_values_and_gradients(
    name: str, data: dict[str, Tensor], poisoned: dict[str, Tensor], steps: int = 7
) -> None:
    """The first ``steps`` results of both, and the gradients of them to every input, agree and are finite."""
    clean, other = (_values_and_gradients(name, x, steps) for x in (data, poisoned))
    assert clean.keys() == other.keys()
    for key in clean:
        assert clean[key].isfinite().all(), key
        torch.testing.assert_close(clean[key], other[key], msg=lambda text, key=key: f"{key}: {text}")


def _values_and_gradients(name: str, data: dict[str, Tensor], steps: int) -> dict[str, Tensor]:
    leaves = {key: x.clone().requires_grad_(x.is_floating_point()) for key, x in data.items()}
    if name in PER_STEP:
        leaves |= {"gamma": discount_like(2, 7, 1).requires_grad_(), "lmbda": discount_like(2, 7, 1).requires_grad_()}
    else:
        leaves["gamma"] = torch.tensor(0.9, dtype=torch.float64)
    values = [x[:, :steps] for x in results(call(name, leaves))]
    floats = {key: x for key, x in leaves.items() if x.requires_grad}
    gradients = torch.autograd.grad(sum(x.sum() for x in values), list(floats.values()), allow_unused=True)
    # A factor of a poisoned step has that step's poison times zero for a gradient, as everywhere in torch.
    factors = ("gamma", "lmbda", "log_pi", "log_mu")
    return {
        **{f"result {i}": x for i, x in enumerate(values)},
        **{
            f"gradient of {key}": x[:, :steps] if key in factors else x
            for key, x in zip(floats, gradients, strict=True)
            if x is not None
        },
    }


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "argument"),
    pairs(
        *("reward", "done", "terminated", "state_value", "next_state_value"),
        without=[("vtrace_advantage_estimate", "terminated")],
    ),
)
def test_a_shape_that_differs_is_named(name: str, argument: str) -> None:
    data = sample(3, 5, 2)
    data[argument] = data[argument][:1]
    error = ValueError if name == "reward2go" else RuntimeError
    with pytest.raises(error, match=r"\(\d, 5, 2\).*reward has shape \(\d, 5, 2\)") as caught:
        call(name, data, gamma=0.9, lmbda=0.8)
    assert argument == "reward" or str(caught.value).startswith(argument)


@pytest.mark.parametrize("argument", ["log_pi", "log_mu", "terminated"])
def test_v_trace_names_what_does_not_broadcast(argument: str) -> None:
    data = sample(3, 5, 2)
    data[argument] = data[argument][:2]
    with pytest.raises(RuntimeError, match=rf"{argument} of shape \(2, 5, 2\).*\(3, 5, 2\)"):
        call("vtrace_advantage_estimate", data, gamma=0.9)


@every_functional_over_time
@pytest.mark.parametrize("time_dim", [3, -4, 7])
def test_a_time_dim_out_of_range_is_an_error(name: str, time_dim: int) -> None:
    with pytest.raises(RuntimeError, match=rf"time_dim={time_dim} is out of range.*\(3, 5, 2\)"):
        call(name, sample(3, 5, 2), gamma=0.9, lmbda=0.8, time_dim=time_dim)


@every_functional_over_time
def test_a_single_row_needs_its_time_dim(name: str) -> None:
    with pytest.raises(ValueError, match="pass time_dim=-1"):
        call(name, sample(5), gamma=0.9, lmbda=0.8)


@pytest.mark.parametrize(
    ("name", "argument"), pairs("gamma", "lmbda", "rho_thresh", "c_thresh", without=[("reward2go", "gamma")])
)
@pytest.mark.parametrize("shape", [(4,), (5,), (3, 4, 2), (2, 3, 5, 2)], ids=str)
def test_a_discount_that_does_not_broadcast_is_named(name: str, argument: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match=rf"{argument} of shape .* does not broadcast .*\(3, 5, 2\)"):
        call(name, sample(3, 5, 2), **{"gamma": 0.9, "lmbda": 0.8, argument: torch.ones(shape)})


@pytest.mark.parametrize("name", [name for name in WITH_TIME if name in PER_STEP])
@pytest.mark.parametrize(("shape", "time_dim"), [((5, 1), -3), ((5, 1), 2), ((5,), 1)])
def test_a_discount_without_the_time_dimension_is_an_error(name: str, shape: tuple[int, ...], time_dim: int) -> None:
    with pytest.raises(RuntimeError, match=f"has no dimension time_dim={time_dim}"):
        call(name, sample(5, 5, 5), gamma=torch.ones(shape), lmbda=0.8, time_dim=time_dim)


def test_rewards_to_go_take_one_discount_only() -> None:
    with pytest.raises(RuntimeError, match=r"one element, got .*\(5, 1\)"):
        call("reward2go", sample(5, 1), gamma=torch.ones(5, 1))


@every_functional
@pytest.mark.parametrize("gamma", [None, "high", [0.9, 0.9]])
def test_a_discount_that_is_no_number_is_an_error(name: str, gamma: Any) -> None:
    with pytest.raises(TypeError, match="gamma must be a number or a torch"):
        call(name, sample(5, 1), gamma=gamma, lmbda=0.8)


@pytest.mark.parametrize(("name", "argument"), pairs("reward", "next_state_value", "state_value", "log_pi"))
def test_a_missing_tensor_is_named(name: str, argument: str) -> None:
    with pytest.raises(TypeError, match=rf"{argument} must be a torch\.Tensor, got NoneType"):
        call(name, {**sample(5, 1), argument: None}, gamma=0.9, lmbda=0.8)


# --- TD(0) ----------------------------------------------------------------------------------------------------------


def test_td0_takes_done_for_terminated_with_a_warning() -> None:
    data = sample(5, 1)
    with pytest.warns(UserWarning, match="not terminated"):
        got = functional.td0_return_estimate(0.9, data["next_state_value"], data["reward"], done=data["done"])
    torch.testing.assert_close(got, oracle("td0_return_estimate", {**data, "terminated": data["done"]}, gamma=0.9)[0])


def test_td0_prefers_terminated_to_done_without_a_word() -> None:
    data = sample(5, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = functional.td0_return_estimate(
            0.9, data["next_state_value"], data["reward"], data["terminated"], done=data["done"]
        )
    torch.testing.assert_close(got, oracle("td0_return_estimate", data, gamma=0.9)[0])


def test_td0_needs_one_of_them() -> None:
    data = sample(5, 1)
    with pytest.raises(TypeError, match="needs terminated"):
        functional.td0_return_estimate(0.9, data["next_state_value"], data["reward"])


@pytest.mark.parametrize("name", ["td0_return_estimate", "td0_advantage_estimate"])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4, 5)], ids=str)
def test_td0_takes_any_shape(name: str, shape: tuple[int, ...]) -> None:
    data = {key: x.reshape(shape) for key, x in sample(math.prod(shape), 1).items()}
    flat = {key: x.reshape(-1, 1) for key, x in data.items()}
    torch.testing.assert_close(call(name, data, gamma=0.9).reshape(-1, 1), oracle(name, flat, gamma=0.9)[0])


# --- gradients ------------------------------------------------------------------------------------------------------


@every_functional
@pytest.mark.parametrize("form", ["one", "per step"])
def test_gradients_are_right_for_every_floating_input(name: str, form: str) -> None:
    shape = (2, 4, 1) if form == "per step" and name in PER_STEP else ()
    data = sample(2, 4, 1)
    forms = {"gamma": discount_like(*shape, seed=1), "lmbda": discount_like(*shape, seed=2)}
    # Far from any ratio: min() has no derivative where its arguments meet.
    forms |= {"rho_thresh": discount_like(*shape, seed=3) * 0.7, "c_thresh": discount_like(*shape, seed=4) * 1.3}
    _gradcheck(name, {**data, **forms})


@every_functional_over_time
@pytest.mark.parametrize("time_dim", [0, -1])
def test_gradients_are_right_in_any_layout(name: str, time_dim: int) -> None:
    data = {key: x.permute(2, 0, 1) for key, x in sample(2, 1, 4).items()}
    shape = (4, 2, 1) if name in PER_STEP else ()
    _gradcheck(name, {**data, "gamma": discount_like(*shape), "lmbda": discount_like()}, time_dim=time_dim)


@every_fixed_discount
def test_gradients_are_right_with_a_fixed_discount(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fixed_discount, "_TABLE_ELEMENTS", 20)
    shape = (2, 4, 1)
    _gradcheck(
        name,
        {**sample(*shape), "gamma": discount_like(*shape), "lmbda": discount_like(*shape, seed=2)},
        rolling_gamma=False,
    )


def _gradcheck(name: str, arguments: dict[str, Tensor], **options: Any) -> None:
    accepted = inspect.signature(FUNCTIONALS[name]).parameters
    floats = [key for key, x in arguments.items() if key in accepted and x.is_floating_point()]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return results(call(name, {**arguments, **dict(zip(floats, tensors, strict=True))}, **options))

    leaves = [arguments[key].clone().requires_grad_() for key in floats]
    assert len(leaves) >= 2
    assert torch.autograd.gradcheck(function, leaves)


# --- transforms -----------------------------------------------------------------------------------------------------


@every_functional
@pytest.mark.parametrize("form", ["one", "per step"])
def test_vmap_equals_a_loop(name: str, form: str) -> None:
    shape = (3, 6, 2) if form == "per step" and name in PER_STEP else (3,)
    data = sample(3, 6, 2)
    tensors = {**data, "gamma": discount_like(*shape), "lmbda": discount_like(*shape, seed=2)}
    _assert_vmap_equals_a_loop(name, tensors)
    # Only one of them batched, and along another dimension.
    moved = {key: x[0] for key, x in tensors.items()} | {"reward": data["reward"].movedim(0, 1)}
    in_dims = {key: 1 if key == "reward" else None for key in moved}
    mapped = torch.vmap(lambda x: results(call(name, x)), in_dims=(in_dims,))(moved)
    looped = [results(call(name, {**moved, "reward": data["reward"][i]})) for i in range(3)]
    torch.testing.assert_close(mapped, tuple(torch.stack(x) for x in zip(*looped, strict=True)))


@every_fixed_discount
def test_vmap_equals_a_loop_with_a_fixed_discount(name: str) -> None:
    tensors = {**sample(3, 6, 2), "gamma": discount_like(3, 6, 2), "lmbda": discount_like(3, 6, 2, seed=2)}
    _assert_vmap_equals_a_loop(name, tensors, rolling_gamma=False)


def _assert_vmap_equals_a_loop(name: str, tensors: dict[str, Tensor], **options: Any) -> None:
    mapped = torch.vmap(lambda x: results(call(name, x, **options)))(tensors)
    looped = [results(call(name, {key: x[i] for key, x in tensors.items()}, **options)) for i in range(3)]
    torch.testing.assert_close(mapped, tuple(torch.stack(x) for x in zip(*looped, strict=True)))


@every_functional
def test_gradients_flow_through_vmap(name: str) -> None:
    data = sample(3, 6, 1)
    shared = {key: data.pop(key)[0] for key in ("done", "terminated")}
    gradients = []
    for mapped in (True, False):
        leaves = {key: x.clone().requires_grad_() for key, x in {**data, "gamma": discount_like(3)}.items()}
        if mapped:
            total = torch.vmap(lambda x: results(call(name, {**x, **shared}, lmbda=0.8))[0].sum())(leaves).sum()
        else:
            rows = [{key: x[i] for key, x in leaves.items()} for i in range(3)]
            total = sum(results(call(name, {**row, **shared}, lmbda=0.8))[0].sum() for row in rows)
        gradients.append(torch.autograd.grad(total, list(leaves.values()), allow_unused=True))
    torch.testing.assert_close(*gradients)


@every_functional
@pytest.mark.parametrize("form", ["a number", "a tensor"])
def test_compiles_without_a_graph_break(name: str, form: str) -> None:
    data = sample(2, 5, 1)
    shape = (2, 5, 1) if name in PER_STEP else ()
    gamma: float | Tensor = 0.9 if form == "a number" else discount_like(*shape)
    _assert_compiled_equals_eager(name, data, gamma=gamma, lmbda=0.8)


@pytest.mark.parametrize("name", [name for name in FIXED_DISCOUNT if "return" in name])
def test_compiles_without_a_graph_break_with_a_fixed_discount(name: str) -> None:
    _assert_compiled_equals_eager(
        name, sample(2, 5, 1), gamma=discount_like(2, 5, 1), lmbda=0.8, rolling_gamma=False, time_dim=-2
    )


@pytest.mark.parametrize("name", [name for name in FUNCTIONALS if not name.startswith("vec_")])
def test_new_discounts_and_new_sizes_do_not_recompile(name: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(FUNCTIONALS[name], fullgraph=True, dynamic=True, backend="eager")
    shape = (2, 1, 1) if name in PER_STEP else ()
    call(name, sample(2, 5, 3), compiled, gamma=discount_like(*shape), lmbda=discount_like(*shape, seed=2))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows, steps in ((2, 5), (4, 9), (7, 30)):
            data = sample(rows, steps, 3)
            forms = [discount_like(*(rows if size == 2 else size for size in shape), seed=seed) for seed in (3, 4)]
            got = call(name, data, compiled, gamma=forms[0], lmbda=forms[1])
            torch.testing.assert_close(results(got), oracle(name, data, gamma=forms[0], lmbda=forms[1]))


def test_td0_with_done_alone_compiles_without_a_graph_break() -> None:
    data = sample(5, 1)
    arguments = (0.9, data["next_state_value"], data["reward"])
    compiled = torch.compile(functional.td0_return_estimate, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        got, wanted = (f(*arguments, done=data["done"]) for f in (compiled, functional.td0_return_estimate))
    torch.testing.assert_close(got, wanted)


def _assert_compiled_equals_eager(name: str, data: dict[str, Tensor], **arguments: Any) -> None:
    torch.compiler.reset()
    compiled = torch.compile(FUNCTIONALS[name], fullgraph=True, backend="aot_eager")
    outcomes = []
    for function in (compiled, FUNCTIONALS[name]):
        leaves = {key: x.clone().requires_grad_(x.is_floating_point()) for key, x in data.items()}
        got = results(call(name, leaves, function, **arguments))
        sum(x.sum() for x in got).backward()
        outcomes.append((got, [leaves[key].grad for key in ("reward", "next_state_value", "state_value", "log_pi")]))
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0])
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1])


def _named_like(name: str, compiled: Any) -> Any:
    """A compiled function that still shows the signature of the original."""
    compiled.__signature__ = inspect.signature(FUNCTIONALS[name])
    return compiled


@every_functional
def test_no_value_is_read_on_the_way(name: str) -> None:
    # Fake tensors have no values: an .item(), a boolean mask or a branch on data would raise.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        data = {key: mode.from_tensor(x) for key, x in sample(3, 6, 2).items()}
        for gamma in (0.9, mode.from_tensor(torch.tensor(0.9))):
            for result in results(call(name, data, gamma=gamma, lmbda=0.8)):
                assert result.shape == (3, 6, 2)
        if name in FIXED_DISCOUNT:
            gamma = mode.from_tensor(discount_like(3, 6, 2))
            assert call(name, data, gamma=gamma, lmbda=0.8, rolling_gamma=False).shape == (3, 6, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_functional
def test_on_a_gpu_the_results_are_those_of_the_cpu_and_nothing_waits(name: str) -> None:
    cpu = sample(3, 130, 2, dtype=torch.float32)
    data = {key: x.cuda() for key, x in cpu.items()}
    forms: dict[str, Any] = {
        "a number": 0.9,
        "on the host": torch.tensor(0.9),
        "on the device": torch.tensor(0.9).cuda(),
    }
    wanted = results(call(name, cpu, gamma=0.9, lmbda=0.8))
    for gamma in forms.values():
        call(name, data, gamma=gamma, lmbda=0.8)  # The first call compiles.
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = results(call(name, data, gamma=gamma, lmbda=0.8))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(tuple(x.cpu() for x in got), wanted, rtol=1e-4, atol=1e-4)


# --- anything else --------------------------------------------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=2, max_size=4)))
    ndim = len(shape)
    time_dim = draw(st.integers(-ndim, ndim - 1))
    broadcast = tuple(size if draw(st.booleans()) else 1 for size in shape)
    low = draw(st.sampled_from([-1.0, 0.0, 0.9]))
    return {
        "data": sample(*shape, done_rate=draw(st.sampled_from([0.0, 0.3, 1.1])), seed=draw(st.integers(0, 99))),
        "time_dim": time_dim,
        "gamma": draw(st.sampled_from([0.0, 0.9, 1.0])) if draw(st.booleans()) else discount_like(*broadcast, low=low),
        "lmbda": draw(st.sampled_from([0.0, 0.9, 1.0])) if draw(st.booleans()) else discount_like(*shape, low=low),
        "rho_thresh": draw(st.sampled_from([0.5, 1.0, 2.0])),
    }


@settings(max_examples=60)
@given(problem=problems(), name=st.sampled_from(WITH_TIME))
def test_any_problem_equals_the_oracle(problem: dict[str, Any], name: str) -> None:
    if name == "reward2go" and isinstance(problem["gamma"], Tensor):
        problem = {**problem, "gamma": 0.9}
    assert_equal_to_oracle(name, **problem)


@pytest.mark.parametrize("name", RETURNS_PAIR)
def test_an_advantage_and_its_target_come_as_a_pair(name: str) -> None:
    output = call(name, sample(3, 5, 2), gamma=0.9, lmbda=0.8)
    assert isinstance(output, tuple)
    assert len(output) == 2
