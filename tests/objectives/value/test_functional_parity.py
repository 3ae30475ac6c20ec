"""The value functionals next to those of TorchRL 0.14.1: the same where it is right, and each place where we differ."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrl.objectives.value import functional as torchrl_functional

from .functional_oracle import (
    FIXED_DISCOUNT,
    FUNCTIONALS,
    WITH_TIME,
    assert_equal_to_oracle,
    call,
    discount_like,
    oracle,
    results,
    sample,
)

TORCHRL: dict[str, Callable[..., Any]] = {name: getattr(torchrl_functional, name) for name in FUNCTIONALS}
LOOP = [name for name in FUNCTIONALS if not name.startswith("vec_") and name != "reward2go"]
VEC = [name for name in FUNCTIONALS if name.startswith("vec_")]
VEC_TD = [name for name in VEC if "td" in name]

SINGLE = {"rtol": 1e-4, "atol": 1e-5}
"""How close float32 must come to the float64 oracle."""

every_functional = pytest.mark.parametrize("name", FUNCTIONALS)
every_functional_over_time = pytest.mark.parametrize("name", WITH_TIME)

NUMBERS: list[tuple[int, ...] | None] = [None, (), (1,)]
PER_STEP = [(3, 5, 2), (5, 1), (1, 5, 1)]
FORMS: list[tuple[str, tuple[int, ...] | None, tuple[int, ...] | None]] = [
    # A shape of None is a Python number.
    *((name, gamma, None) for name in FUNCTIONALS for gamma in NUMBERS),
    *((name, None, lmbda) for name in FUNCTIONALS if "lambda" in name or "generalized" in name for lmbda in NUMBERS),
    *((name, gamma, None) for name in LOOP + VEC for gamma in PER_STEP),
    *((name, gamma, None) for name in [*LOOP, "vec_generalized_advantage_estimate"] for gamma in [(3, 1, 1), (2,)]),
    *(
        (name, gamma, lmbda)
        for name in [*LOOP, "vec_generalized_advantage_estimate"]
        if "lambda" in name or "generalized" in name
        for gamma in [None, *PER_STEP, (3, 1, 1)]
        for lmbda in [*PER_STEP, (3, 1, 1)]
    ),
]


def theirs(name: str, data: dict[str, Tensor], **arguments: Any) -> Any:
    return call(name, data, TORCHRL[name], **arguments)


def floats(*shape: int, **options: Any) -> dict[str, Tensor]:
    return sample(*shape, dtype=torch.float32, **options)


def form(shape: tuple[int, ...] | None, seed: int) -> float | Tensor:
    return 0.9 - 0.1 * seed if shape is None else discount_like(*shape, seed=seed, dtype=torch.float32)


def close(got: Any, wanted: Any, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(results(got), results(wanted), rtol=tolerance, atol=tolerance)


# --- where TorchRL is right -----------------------------------------------------------------------------------------


@every_functional
def test_parameters_have_the_same_names_order_kinds_and_defaults(name: str) -> None:
    def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        return [(x.name, x.kind, x.default) for x in inspect.signature(function).parameters.values()]

    assert parameters(FUNCTIONALS[name]) == parameters(TORCHRL[name])


def test_every_public_name_is_there() -> None:
    assert set(torchrl_functional.__all__) <= set(FUNCTIONALS)


@pytest.mark.parametrize(("name", "gamma", "lmbda"), FORMS, ids=str)
def test_values_agree_in_every_form_of_discount(
    name: str, gamma: tuple[int, ...] | None, lmbda: tuple[int, ...] | None
) -> None:
    data = floats(3, 5, 2)
    discounts = {"gamma": form(gamma, 0), "lmbda": form(lmbda, 1)}
    if "vec_td" in name and isinstance(discounts["gamma"], Tensor) and discounts["gamma"].numel() > 1:
        discounts["lmbda"] = torch.tensor(0.8)  # TorchRL wants both as tensors or none.
    close(call(name, data, **discounts), theirs(name, data, **discounts))


@every_functional
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (7, 3), (2, 40, 1), (2, 3, 9, 2)], ids=str)
@pytest.mark.parametrize("done_rate", [0.0, 0.2, 1.1])
def test_values_agree_in_every_shape(name: str, shape: tuple[int, ...], done_rate: float) -> None:
    data = floats(*shape, done_rate=done_rate)
    close(call(name, data, gamma=0.97, lmbda=0.9), theirs(name, data, gamma=0.97, lmbda=0.9))


@every_functional_over_time
@pytest.mark.parametrize("time_dim", [0, 1, 2, -1, -2, -3])
def test_values_agree_in_every_layout(name: str, time_dim: int) -> None:
    data = floats(4, 3, 5)
    arguments = {"gamma": 0.97, "lmbda": 0.9, "time_dim": time_dim}
    close(call(name, data, **arguments), theirs(name, data, **arguments))
    if name in LOOP:
        arguments["gamma"] = discount_like(4, 3, 5, dtype=torch.float32)
        close(call(name, data, **arguments), theirs(name, data, **arguments))


@pytest.mark.parametrize("name", [name for name in LOOP if name in WITH_TIME])
@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 5), (4, 1, 1), (4, 3, 5)], ids=str)
def test_a_shorter_discount_is_read_alike_when_time_comes_first(name: str, shape: tuple[int, ...]) -> None:
    data = floats(4, 3, 5)
    arguments = {"gamma": discount_like(*shape, dtype=torch.float32), "lmbda": 0.9, "time_dim": 0}
    close(call(name, data, **arguments), theirs(name, data, **arguments))


@every_functional_over_time
def test_a_single_row_agrees_when_time_is_its_last_dimension(name: str) -> None:
    data = floats(6)
    arguments = {"gamma": 0.97, "lmbda": 0.9, "time_dim": -1}
    close(call(name, data, **arguments), theirs(name, data, **arguments))


@pytest.mark.parametrize("name", [name for name in FIXED_DISCOUNT if name in LOOP])
@pytest.mark.parametrize("time_dim", [-2, -1, 0])
def test_values_agree_with_a_fixed_discount(name: str, time_dim: int) -> None:
    data = floats(4, 7, 3)
    gamma, lmbda = (discount_like(4, 7, 3, seed=seed, dtype=torch.float32) for seed in (1, 2))
    forms = [(gamma, 0.8)] if "td1" in name else [(gamma, 0.8), (gamma, lmbda), (0.9, lmbda)]
    for g, x in forms:
        arguments = {"gamma": g, "lmbda": x, "rolling_gamma": False, "time_dim": time_dim}
        close(call(name, data, **arguments), theirs(name, data, **arguments))


@pytest.mark.parametrize("name", [name for name in FIXED_DISCOUNT if name in VEC])
def test_a_constant_discount_cannot_be_fixed_under_the_vec_names_either_way(name: str) -> None:
    data = floats(4, 7, 3)
    arguments = {"gamma": 0.9, "lmbda": 0.8, "rolling_gamma": False}
    close(call(name, data, **arguments), theirs(name, data, **arguments))


@pytest.mark.parametrize("rho_thresh", [0.5, torch.tensor(0.7), discount_like(3, 5, 2, dtype=torch.float32)], ids=str)
def test_v_trace_agrees_with_any_threshold(rho_thresh: Any) -> None:
    data = floats(3, 5, 2)
    arguments = {"gamma": 0.97, "rho_thresh": rho_thresh, "c_thresh": 1.3}
    name = "vtrace_advantage_estimate"
    close(call(name, data, **arguments), theirs(name, data, **arguments))


@every_functional
def test_without_terminated_the_values_agree(name: str) -> None:
    data = floats(3, 5, 2)
    data = {key: x for key, x in data.items() if key != "terminated"}
    if name == "td0_return_estimate":
        data["terminated"] = data["done"]
    close(call(name, data, gamma=0.97, lmbda=0.9), theirs(name, data, gamma=0.97, lmbda=0.9))


@every_functional
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_has_the_same_dtype(name: str, dtype: torch.dtype) -> None:
    data = sample(3, 5, 2, dtype=dtype)
    ours, other = results(call(name, data, gamma=0.9, lmbda=0.8)), results(theirs(name, data, gamma=0.9, lmbda=0.8))
    assert [x.dtype for x in ours] == [x.dtype for x in other] == [dtype] * len(ours)


@every_functional
def test_gradients_with_respect_to_the_data_agree(name: str) -> None:
    close(
        *(
            _gradients(name, function, sample(3, 6, 2), gamma=0.9, lmbda=0.8)
            for function in (FUNCTIONALS[name], TORCHRL[name])
        )
    )


@pytest.mark.parametrize("name", LOOP)
@pytest.mark.parametrize("shape", [(), (6, 1), (3, 6, 2)], ids=str)
def test_gradients_with_respect_to_discounts_agree_with_the_loops(name: str, shape: tuple[int, ...]) -> None:
    data = {**sample(3, 6, 2), "gamma": discount_like(*shape, seed=1), "lmbda": discount_like(*shape, seed=2)}
    close(*(_gradients(name, function, data) for function in (FUNCTIONALS[name], TORCHRL[name])))


def _gradients(
    name: str, function: Callable[..., Any], data: dict[str, Tensor], **arguments: Any
) -> tuple[Tensor, ...]:
    accepted = inspect.signature(function).parameters
    leaves = {key: x.clone().requires_grad_(x.is_floating_point()) for key, x in data.items() if key in accepted}
    inputs = [x for x in leaves.values() if x.requires_grad]
    total = sum(x.square().sum() for x in results(call(name, leaves, function, **arguments)))
    return torch.autograd.grad(total, inputs)


@every_functional
def test_a_shape_that_differs_raises_the_same_error(name: str) -> None:
    data = floats(3, 5, 2)
    data["reward"] = data["reward"][:1]
    _both_raise(ValueError if name == "reward2go" else RuntimeError, name, data)


@every_functional_over_time
@pytest.mark.parametrize("time_dim", [3, -4])
def test_a_bad_time_dim_raises_the_same_error(name: str, time_dim: int) -> None:
    _both_raise(RuntimeError, name, floats(3, 5, 2), time_dim=time_dim)


@pytest.mark.parametrize("name", [name for name in FIXED_DISCOUNT if name in LOOP])
@pytest.mark.parametrize("gamma", [0.9, torch.tensor(0.9), torch.full((5, 1), 0.9)], ids=str)
def test_a_constant_discount_that_should_be_fixed_raises_the_same_error(name: str, gamma: Any) -> None:
    _both_raise(RuntimeError, name, floats(3, 5, 2), gamma=gamma, rolling_gamma=False)


def test_rewards_to_go_with_a_discount_per_step_raise_the_same_error() -> None:
    _both_raise(RuntimeError, "reward2go", floats(3, 5, 2), gamma=torch.ones(3, 5, 2))


@pytest.mark.parametrize("name", [name for name in LOOP if "td_lambda" not in name])
@pytest.mark.parametrize("flag", ["done", "terminated"])
def test_a_float_flag_raises_the_same_error(name: str, flag: str) -> None:
    data = floats(3, 5, 2)
    data[flag] = data[flag].float()
    if name.startswith("td0") and flag == "done":
        data["terminated"] = data[flag]
    _both_raise(TypeError, name, data)


@pytest.mark.parametrize("name", ["vec_generalized_advantage_estimate", "reward2go"])
def test_a_float_done_is_taken_alike(name: str) -> None:
    data = floats(3, 5, 2)
    data["done"] = data["done"].float()
    close(call(name, data, gamma=0.9, lmbda=0.8), theirs(name, data, gamma=0.9, lmbda=0.8))


def test_td0_with_done_alone_warns_alike() -> None:
    data = floats(5, 1)
    arguments = {"gamma": 0.9, "next_state_value": data["next_state_value"], "reward": data["reward"]}
    found = []
    for function in (FUNCTIONALS["td0_return_estimate"], TORCHRL["td0_return_estimate"]):
        with pytest.warns(UserWarning):
            found.append(function(**arguments, done=data["done"]))
    close(*found)


def _both_raise(error: type[Exception], name: str, data: dict[str, Tensor], **arguments: Any) -> None:
    for function in (FUNCTIONALS[name], TORCHRL[name]):
        with pytest.raises(error):
            call(name, data, function, **{"gamma": 0.9, "lmbda": 0.8, **arguments})


# --- where we differ ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*VEC, "reward2go"])
def test_torchrl_fails_on_a_zero_discount(name: str) -> None:
    data = floats(3, 5, 2)
    with pytest.raises(IndexError):
        theirs(name, data, gamma=0.0, lmbda=0.9)
    assert_equal_to_oracle(name, data, gamma=0.0, lmbda=0.9, **SINGLE)


@pytest.mark.parametrize("name", [*VEC, "reward2go"])
def test_torchrl_drops_terms_that_count_when_the_discount_is_tiny(name: str) -> None:
    data = floats(1, 40, 1, done_rate=0.0)
    data["reward"] += 5.0
    wanted = oracle(name, data, gamma=1e-4, lmbda=1.0)
    assert (results(theirs(name, data, gamma=1e-4, lmbda=1.0))[0] - wanted[0]).abs().max() > 1e-4
    assert (results(call(name, data, gamma=1e-4, lmbda=1.0))[0] - wanted[0]).abs().max() < 1e-6


@pytest.mark.parametrize("name", [*VEC, "reward2go"])
def test_torchrl_fails_on_a_negative_discount(name: str) -> None:
    data = floats(3, 5, 2)
    with pytest.raises(ValueError, match="math domain"):
        theirs(name, data, gamma=-0.9, lmbda=0.9)
    assert_equal_to_oracle(name, data, gamma=-0.9, lmbda=0.9, **SINGLE)


@pytest.mark.parametrize(
    "name", ["generalized_advantage_estimate", "td0_return_estimate", "vtrace_advantage_estimate", *VEC]
)
def test_torchrl_rounds_a_python_discount_to_single_precision(name: str) -> None:
    data = sample(2000, 1, done_rate=0.0)
    data = {key: x.abs() if x.is_floating_point() else x for key, x in data.items()}
    wanted = oracle(name, data, gamma=0.999, lmbda=1.0)[0]
    assert (results(theirs(name, data, gamma=0.999, lmbda=1.0))[0] - wanted).abs().max() > 1e-9
    assert (results(call(name, data, gamma=0.999, lmbda=1.0))[0] - wanted).abs().max() < 1e-9


@pytest.mark.parametrize(
    "name", ["vec_generalized_advantage_estimate", "td0_return_estimate", "vtrace_advantage_estimate", *VEC_TD]
)
def test_torchrl_widens_half_precision(name: str) -> None:
    data = sample(3, 5, 2, dtype=torch.bfloat16)
    assert results(theirs(name, data, gamma=0.9, lmbda=0.8))[0].dtype is torch.float32
    assert results(call(name, data, gamma=0.9, lmbda=0.8))[0].dtype is torch.bfloat16


@pytest.mark.parametrize("name", ["td1_return_estimate", "td_lambda_return_estimate"])
def test_torchrl_sums_half_precision_in_half_precision(name: str) -> None:
    data = sample(300, 1, dtype=torch.bfloat16, done_rate=0.0)
    data["reward"] = data["reward"].abs()
    wanted = oracle(name, data, gamma=1.0, lmbda=1.0)[0].squeeze(-1)
    error = [
        ((results(f(name, data, gamma=1.0, lmbda=1.0))[0].squeeze(-1) - wanted) / wanted).abs().max()
        for f in (theirs, call)
    ]
    assert error[0] > 0.02
    assert error[1] < 0.005


@pytest.mark.parametrize("name", [name for name in FUNCTIONALS if name != "reward2go"])
def test_torchrl_misreads_integer_flags(name: str) -> None:
    data = floats(3, 9, 2)
    integers = {**data, "terminated": data["terminated"].to(torch.int32)}
    wanted = results(oracle(name, data, gamma=0.9, lmbda=0.8))[0]
    assert (results(theirs(name, integers, gamma=0.9, lmbda=0.8))[0] - wanted).abs().max() > 0.01
    close(results(call(name, integers, gamma=0.9, lmbda=0.8))[0].double(), wanted)


@pytest.mark.parametrize("name", [name for name in VEC_TD if "lambda" in name])
def test_torchrl_has_no_lambda_per_step_in_the_vec_names(name: str) -> None:
    data = floats(3, 9, 2)
    gamma = torch.full((3, 9, 2), 0.9)
    full, column = (discount_like(*shape, dtype=torch.float32) for shape in ((3, 9, 2), (9, 1)))
    with pytest.raises(RuntimeError):
        theirs(name, data, gamma=gamma, lmbda=full)
    with pytest.raises(AttributeError):
        theirs(name, data, gamma=0.9, lmbda=column)
    wanted = oracle(name, data, gamma=0.9, lmbda=column)[0]
    assert (theirs(name, data, gamma=gamma, lmbda=column) - wanted).abs().max() > 0.01
    for g in (0.9, gamma):
        assert_equal_to_oracle(name, data, gamma=g, lmbda=column, **SINGLE)
        assert_equal_to_oracle(name, data, gamma=g, lmbda=full, **SINGLE)


@pytest.mark.parametrize("name", VEC_TD)
def test_torchrl_has_no_discount_per_row_in_the_vec_td_names(name: str) -> None:
    data = floats(3, 5, 2)
    gamma = discount_like(3, 1, 1, dtype=torch.float32)
    with pytest.raises(RuntimeError):
        theirs(name, data, gamma=gamma, lmbda=torch.tensor(0.8))
    assert_equal_to_oracle(name, data, gamma=gamma, lmbda=0.8, **SINGLE)


@pytest.mark.parametrize("name", [name for name in FIXED_DISCOUNT if name in VEC])
def test_torchrl_has_no_fixed_discount_in_the_vec_names(name: str) -> None:
    data = floats(3, 5, 2)
    arguments = {
        "gamma": discount_like(3, 5, 2, dtype=torch.float32),
        "lmbda": torch.tensor(0.8),
        "rolling_gamma": False,
    }
    with pytest.raises(NotImplementedError):
        theirs(name, data, **arguments)
    close(call(name, data, **arguments), theirs(name.removeprefix("vec_"), data, **arguments))


@every_functional_over_time
def test_torchrl_gives_a_single_row_back_as_a_column_when_time_is_dimension_zero(name: str) -> None:
    data = floats(6)
    wrong = results(theirs(name, data, gamma=0.9, lmbda=0.8, time_dim=0))[0].shape
    # The state value is subtracted from the column as a row, which makes a square of it.
    assert wrong == ((6, 6) if name in FIXED_DISCOUNT and "advantage" in name else (6, 1))
    assert_equal_to_oracle(name, data, gamma=0.9, lmbda=0.8, time_dim=0, **SINGLE)


@every_functional_over_time
def test_torchrl_fails_on_a_single_row_of_one_step(name: str) -> None:
    data = floats(1)
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        theirs(name, data, gamma=0.9, lmbda=0.8, time_dim=-1)
    assert results(call(name, data, gamma=0.9, lmbda=0.8, time_dim=-1))[0].shape == (1,)


@pytest.mark.parametrize("name", [*VEC, "reward2go"])
@pytest.mark.parametrize("shape", [(3, 0, 2), (0, 5, 1)], ids=str)
def test_torchrl_fails_on_empty_data(name: str, shape: tuple[int, ...]) -> None:
    data = floats(*shape)
    with pytest.raises((IndexError, RuntimeError)):
        theirs(name, data, gamma=0.9, lmbda=0.8)
    assert results(call(name, data, gamma=0.9, lmbda=0.8))[0].shape == shape


def test_torchrl_does_not_say_what_td0_needs() -> None:
    data = floats(5, 1)
    arguments = {"gamma": 0.9, "next_state_value": data["next_state_value"], "reward": data["reward"]}
    with pytest.raises(AttributeError):
        TORCHRL["td0_return_estimate"](**arguments)
    with pytest.raises(TypeError, match="needs terminated"):
        FUNCTIONALS["td0_return_estimate"](**arguments)


def test_torchrl_truncates_the_discount_of_integer_rewards_to_go() -> None:
    data = {"reward": torch.arange(1, 6).reshape(5, 1), "done": torch.zeros(5, 1, dtype=torch.bool)}
    with pytest.raises(IndexError):
        theirs("reward2go", data, gamma=0.0)
    assert theirs("reward2go", data, gamma=0.9).tolist() == data["reward"].tolist()
    assert_equal_to_oracle("reward2go", data, gamma=0.9, **SINGLE)


@pytest.mark.parametrize("name", ["generalized_advantage_estimate", "td1_return_estimate", "td_lambda_return_estimate"])
def test_torchrl_narrows_mixed_dtypes_in_the_loops(name: str) -> None:
    data = floats(5, 1)
    data["reward"] = data["reward"].double()
    assert results(theirs(name, data, gamma=0.9, lmbda=0.8))[0].dtype is torch.float32
    assert results(call(name, data, gamma=0.9, lmbda=0.8))[0].dtype is torch.float64


@pytest.mark.parametrize("name", [*VEC, "vtrace_advantage_estimate"])
def test_torchrl_lets_the_dtype_of_the_discount_through(name: str) -> None:
    data = floats(5, 1)
    arguments = {"gamma": discount_like(5, 1), "lmbda": torch.tensor(0.8)}
    assert results(theirs(name, data, **arguments))[0].dtype is torch.float64
    assert results(call(name, data, **arguments))[0].dtype is torch.float32


@pytest.mark.parametrize("name", [name for name in FUNCTIONALS if name != "reward2go"])
def test_torchrl_lets_a_nan_behind_terminated_through(name: str) -> None:
    data = floats(1, 5, 1, done_rate=0.0)
    data["done"][:, 2] = data["terminated"][:, 2] = True
    poisoned = {**data, "next_state_value": torch.where(data["terminated"], math.nan, data["next_state_value"])}
    assert results(theirs(name, poisoned, gamma=0.9, lmbda=0.8))[0].isnan().any()
    close(call(name, poisoned, gamma=0.9, lmbda=0.8), call(name, data, gamma=0.9, lmbda=0.8))


@pytest.mark.parametrize("name", VEC)
def test_torchrl_loses_gradients_of_one_element_discounts_in_the_vec_names(name: str) -> None:
    gradients = []
    for function in (TORCHRL[name], TORCHRL[name.removeprefix("vec_")], FUNCTIONALS[name]):
        gamma = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
        output = results(call(name, sample(3, 6, 2), function, gamma=gamma, lmbda=torch.tensor(0.8).double()))[0]
        total = output.sum()
        gradients.append(torch.autograd.grad(total, gamma, allow_unused=True)[0] if total.requires_grad else None)
    incomplete, loop, ours = gradients
    assert incomplete is None or (incomplete - loop).abs() > 0.01
    close(ours, loop)


def test_torchrl_cannot_vmap_the_gae_loop() -> None:
    name = "generalized_advantage_estimate"
    data = floats(3, 6, 2)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.vmap(lambda x: theirs(name, x, gamma=0.9, lmbda=0.8))(data)
    mapped = torch.vmap(lambda x: call(name, x, gamma=0.9, lmbda=0.8))(data)
    close(mapped, theirs(name, data, gamma=0.9, lmbda=0.8))


@pytest.mark.parametrize("name", ["td1_return_estimate", "td1_advantage_estimate", "reward2go"])
def test_torchrl_raises_an_index_error_for_a_single_row_without_time_dim(name: str) -> None:
    with pytest.raises(IndexError):
        theirs(name, floats(5), gamma=0.9)
    with pytest.raises(ValueError, match="time_dim=-1"):
        call(name, floats(5), gamma=0.9)


@pytest.mark.parametrize("name", ["td_lambda_return_estimate", "td_lambda_advantage_estimate"])
def test_torchrl_takes_a_float_done_in_the_td_lambda_loop_alone(name: str) -> None:
    data = floats(3, 5, 2)
    data["done"] = data["done"].float()
    assert theirs(name, data, gamma=0.9, lmbda=0.8).shape == (3, 5, 2)
    with pytest.raises(TypeError, match="done must be a boolean"):
        call(name, data, gamma=0.9, lmbda=0.8)


@pytest.mark.parametrize("name", ["td1_return_estimate", "td_lambda_return_estimate", "td0_return_estimate"])
def test_torchrl_does_not_read_one_element_of_many_dimensions_as_a_number(name: str) -> None:
    data = floats(3, 5, 2)
    gamma = torch.full((1, 1, 1, 1), 0.9)
    if name == "td0_return_estimate":
        assert theirs(name, data, gamma=gamma).shape == (1, 3, 5, 2)
    else:
        with pytest.raises(RuntimeError):
            theirs(name, data, gamma=gamma, lmbda=0.8)
    close(call(name, data, gamma=gamma, lmbda=0.8), theirs(name, data, gamma=0.9, lmbda=0.8))


def test_torchrl_says_nothing_about_a_missing_next_value() -> None:
    data: dict[str, Any] = {**floats(5, 1), "next_state_value": None}
    with pytest.raises(AttributeError):
        theirs("generalized_advantage_estimate", data, gamma=0.9, lmbda=0.8)
    with pytest.raises(TypeError, match="next_state_value must be a torch"):
        call("generalized_advantage_estimate", data, gamma=0.9, lmbda=0.8)
