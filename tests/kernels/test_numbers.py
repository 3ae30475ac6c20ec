"""Discounts that are Python numbers: kept as tensors between calls, which nobody may notice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tritonrl import kernels
from tritonrl.kernels import number as numbers

X, DONE = torch.ones(2, 5), torch.zeros(2, 5, dtype=torch.bool)


@pytest.fixture(autouse=True)
def _forget() -> None:
    numbers._kept.clear()


def returns(gamma: float, reward: Tensor = X) -> Tensor:
    return kernels.reward_to_go(reward, DONE, gamma=gamma, time_dim=-1)


def test_a_number_is_made_once() -> None:
    returns(0.5)
    kept = numbers._kept[0.5]
    returns(0.5)
    assert numbers.number(0.5) is kept
    assert len(numbers._kept) == 1


def test_a_number_first_met_in_inference_mode_serves_autograd_too() -> None:
    with torch.inference_mode():
        returns(0.5)
    reward = X.clone().requires_grad_()
    returns(0.5, reward).sum().backward()
    assert reward.grad is not None


def test_a_number_first_met_under_a_transform_or_a_mode_outlives_it() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    wanted = returns(0.5)
    for gamma in (0.5, 0.25):
        numbers._kept.clear()
        torch.func.grad(lambda x, gamma=gamma: returns(gamma, x).sum())(X)
        torch.func.vmap(lambda x, gamma=gamma: kernels.reward_to_go(x, DONE[0], gamma=gamma, time_dim=-1))(X)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            returns(gamma, mode.from_tensor(X))
        assert not numbers._kept
    assert torch.equal(returns(0.5), wanted)
    assert torch.equal(torch.func.vmap(lambda x: kernels.reward_to_go(x, DONE[0], gamma=0.5, time_dim=-1))(X), wanted)


def test_a_number_stays_on_the_host_whatever_the_default_device() -> None:
    with torch.device("meta"):
        assert numbers.number(0.5).device.type == "cpu"


def test_numbers_without_end_do_not_eat_the_memory() -> None:
    for i in range(1000):
        numbers.number(i / 1000)
    assert len(numbers._kept) <= 256
    assert numbers.number(0.999).item() == 0.999
