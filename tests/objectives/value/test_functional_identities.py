"""What must hold between the value functionals, whatever formula they are written from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tritonrl.objectives.value import functional as F

from .functional_oracle import WITH_TIME, call, discount_like, results, sample

SHAPES = [(3, 17, 2), (2, 1, 1), (1, 2, 3), (4, 129, 1)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
both_names = pytest.mark.parametrize("prefix", ["", "vec_"])
every_functional_over_time = pytest.mark.parametrize("name", WITH_TIME)


def on_one_trajectory(*shape: int, **options: Any) -> dict[str, Tensor]:
    """Data in which the next value is the value of the next step, except where a trajectory ends."""
    data = sample(*shape, **options)
    inside = ~data["done"][:, :-1]
    data["next_state_value"][:, :-1] = torch.where(inside, data["state_value"][:, 1:], data["next_state_value"][:, :-1])
    return data


def close(got: Any, wanted: Any) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@every_shape
@both_names
@pytest.mark.parametrize("gamma", [0.97, "per step"])
def test_gae_at_lambda_one_is_the_td1_return_minus_the_value(shape: tuple[int, ...], prefix: str, gamma: Any) -> None:
    gamma = discount_like(*shape) if gamma == "per step" else gamma
    data = on_one_trajectory(*shape)
    advantage, target = call(f"{prefix}generalized_advantage_estimate", data, gamma=gamma, lmbda=1.0)
    returns = call(f"{prefix}td1_return_estimate", data, gamma=gamma)
    close(target, returns)
    close(advantage, returns - data["state_value"])
    close(advantage, call(f"{prefix}td1_advantage_estimate", data, gamma=gamma))


@every_shape
@both_names
def test_gae_at_lambda_zero_is_the_td0_error(shape: tuple[int, ...], prefix: str) -> None:
    data = sample(*shape)
    for gamma in (0.97, discount_like(*shape)):
        advantage, target = call(f"{prefix}generalized_advantage_estimate", data, gamma=gamma, lmbda=0.0)
        close(advantage, call("td0_advantage_estimate", data, gamma=gamma))
        close(target, call("td0_return_estimate", data, gamma=gamma))


@every_shape
@both_names
def test_gae_is_the_td_lambda_advantage_on_one_trajectory(shape: tuple[int, ...], prefix: str) -> None:
    data = on_one_trajectory(*shape)
    discounts = {"gamma": discount_like(*shape), "lmbda": 0.9}
    advantage, target = call(f"{prefix}generalized_advantage_estimate", data, **discounts)
    close(advantage, call(f"{prefix}td_lambda_advantage_estimate", data, **discounts))
    close(target, call(f"{prefix}td_lambda_return_estimate", data, **discounts))


@every_shape
@both_names
def test_td_lambda_lies_between_td0_and_td1(shape: tuple[int, ...], prefix: str) -> None:
    data = sample(*shape)
    gamma = discount_like(*shape)
    name = f"{prefix}td_lambda_return_estimate"
    close(call(name, data, gamma=gamma, lmbda=0.0), call("td0_return_estimate", data, gamma=gamma))
    close(call(name, data, gamma=gamma, lmbda=1.0), call(f"{prefix}td1_return_estimate", data, gamma=gamma))


@every_shape
def test_v_trace_on_policy_is_the_td1_return(shape: tuple[int, ...]) -> None:
    data = on_one_trajectory(*shape)
    data["log_mu"] = data["log_pi"]
    advantage, target = call("vtrace_advantage_estimate", data, gamma=0.97, rho_thresh=1.0, c_thresh=1.0)
    returns = call("td1_return_estimate", data, gamma=0.97)
    close(target, returns)
    close(advantage, returns - data["state_value"])


@every_shape
def test_v_trace_without_weight_leaves_the_value(shape: tuple[int, ...]) -> None:
    data = sample(*shape)
    advantage, target = call("vtrace_advantage_estimate", data, gamma=0.97, rho_thresh=0.0)
    close(target, data["state_value"])
    close(advantage, torch.zeros(shape, dtype=torch.float64))


@every_shape
def test_without_discount_everything_is_a_reverse_cumulative_sum(shape: tuple[int, ...]) -> None:
    data = sample(*shape, done_rate=0.0)
    for value in ("state_value", "next_state_value"):
        data[value] = torch.zeros_like(data[value])
    wanted = data["reward"].flip(1).cumsum(1).flip(1)
    data["log_mu"] = data["log_pi"]
    for name in WITH_TIME:
        close(results(call(name, data, gamma=1.0, lmbda=1.0))[0], wanted)


@pytest.mark.parametrize("lmbda", [0.0, 0.5, 1.0])
def test_the_value_of_an_endless_constant_reward_is_its_own_return(lmbda: float) -> None:
    # 1 + 0.75 * 4 = 4: the value is a fixed point, whatever the mix of n-step returns.
    ones, flags = torch.ones(50, 1, dtype=torch.float64), torch.zeros(50, 1, dtype=torch.bool)
    returns = F.td_lambda_return_estimate(0.75, lmbda, 4 * ones, ones, flags)
    close(returns, 4 * ones)


@every_shape
def test_rewards_to_go_are_td1_returns_of_trajectories_that_terminate(shape: tuple[int, ...]) -> None:
    data = sample(*shape)
    data["done"][:, -1] = True
    data["terminated"] = data["done"]
    close(call("reward2go", data, gamma=0.9), call("td1_return_estimate", data, gamma=0.9))


@every_functional_over_time
@pytest.mark.parametrize("closed", ["terminated", "truncated"])
def test_trajectories_in_one_row_are_as_good_as_apart(name: str, closed: str) -> None:
    first, second = sample(2, 9, 3, seed=1), sample(2, 14, 3, seed=2)
    first["done"][:, -1] = True
    first["terminated"][:, -1] = closed == "terminated"
    together = {key: torch.cat([first[key], second[key]], 1) for key in first}
    apart = [results(call(name, part, gamma=0.97, lmbda=0.9)) for part in (first, second)]
    for i, whole in enumerate(results(call(name, together, gamma=0.97, lmbda=0.9))):
        close(whole, torch.cat([apart[0][i], apart[1][i]], 1))


@every_functional_over_time
def test_what_a_row_is_padded_with_does_not_matter(name: str) -> None:
    data = sample(2, 12, 1, done_rate=0.0)
    data["done"][:, 6] = True
    other = sample(2, 12, 1, seed=5)
    padded = {key: torch.cat([data[key][:, :7], other[key][:, 7:]], 1) for key in data}
    for got, wanted in zip(
        results(call(name, padded, gamma=0.97, lmbda=0.9)),
        results(call(name, data, gamma=0.97, lmbda=0.9)),
        strict=True,
    ):
        close(got[:, :7], wanted[:, :7])


@both_names
@pytest.mark.parametrize("cut", [1, 7, 16])
def test_a_trajectory_that_is_split_and_carried_over_is_whole(prefix: str, cut: int) -> None:
    gamma, lmbda = 0.97, 0.9
    data = sample(2, 17, 1)
    data["done"][:, cut - 1] = data["terminated"][:, cut - 1] = False
    first, second = ({key: x[:, part] for key, x in data.items()} for part in (slice(0, cut), slice(cut, None)))
    value = first["next_state_value"][:, -1].clone()

    def carried(following: Tensor) -> dict[str, Tensor]:
        joined = {key: x.clone() for key, x in first.items()}
        joined["next_state_value"][:, -1] = following
        return joined

    names = {f"{prefix}td_lambda_return_estimate": lambda y: (1 - lmbda) * value + lmbda * y}
    names[f"{prefix}td1_return_estimate"] = lambda y: y
    names[f"{prefix}generalized_advantage_estimate"] = lambda y: value + lmbda * y
    for name, carry in names.items():
        whole = results(call(name, data, gamma=gamma, lmbda=lmbda))[0]
        tail = results(call(name, second, gamma=gamma, lmbda=lmbda))[0]
        head = results(call(name, carried(carry(tail[:, 0])), gamma=gamma, lmbda=lmbda))[0]
        close(torch.cat([head, tail], 1), whole)


@both_names
@pytest.mark.parametrize("name", ["td1_return_estimate", "td_lambda_return_estimate"])
def test_a_fixed_discount_is_a_constant_one_seen_from_its_start(prefix: str, name: str) -> None:
    data = sample(2, 9, 1)
    data["done"][:, -1] = True  # TD(1) with a fixed discount leaves an open end without bootstrap.
    gamma = discount_like(9, 1).expand(2, 9, 1)
    fixed = call(prefix + name, data, gamma=gamma, lmbda=0.8, rolling_gamma=False)
    for k in range(9):
        close(fixed[:, k], call(prefix + name, data, gamma=gamma[0, k, 0], lmbda=0.8)[:, k])


@every_functional_over_time
def test_the_layout_does_not_matter(name: str) -> None:
    data = sample(3, 8, 2)
    wanted = results(call(name, data, gamma=0.97, lmbda=0.9))
    for order, time_dim in (((1, 0, 2), 0), ((0, 2, 1), 2), ((2, 0, 1), -1), ((2, 1, 0), -2)):
        permuted = {key: x.permute(order) for key, x in data.items()}
        got = results(call(name, permuted, gamma=0.97, lmbda=0.9, time_dim=time_dim))
        for g, w in zip(got, wanted, strict=True):
            close(g, w.permute(order))


@pytest.mark.parametrize("name", [name for name in WITH_TIME if name.startswith("vec_")])
def test_both_names_are_one_function(name: str) -> None:
    data = sample(3, 8, 2)
    discounts = {"gamma": discount_like(3, 8, 2), "lmbda": discount_like(3, 8, 2, seed=2)}
    pairs = zip(
        results(call(name, data, **discounts)), results(call(name.removeprefix("vec_"), data, **discounts)), strict=True
    )
    assert all(torch.equal(x, y) for x, y in pairs)
