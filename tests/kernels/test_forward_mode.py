"""Forward-mode derivatives are right in every op, and never dropped without a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck

from tritonrl import kernels

from .arguments import ALL, convert, draw, floating, run


def small(op: str) -> tuple[tuple[Tensor, ...], Callable[..., tuple[Tensor, ...]]]:
    """The floating inputs of an op in float64, and the op as a function of them."""
    args = convert(draw(op, (2, 5), -1, discounts="step"), torch.float64)
    names = floating(op)
    return tuple(args[name] for name in names), lambda *xs: run(op, args | dict(zip(names, xs, strict=True)), -1)


@pytest.mark.parametrize("op", ALL)
def test_tangents_are_those_of_finite_differences(op: str) -> None:
    inputs, function = small(op)
    leaves = tuple(x.clone().requires_grad_() for x in inputs)
    assert gradcheck(function, leaves, check_forward_ad=True, check_backward_ad=True)


def gae_with(**more: Any) -> tuple[Callable[[Tensor, Tensor], Tensor], tuple[Tensor, Tensor]]:
    """The advantage as a function of reward and value, and somewhere to take derivatives."""
    generator = torch.Generator().manual_seed(1)
    reward, value = (torch.randn(12, dtype=torch.float64, generator=generator) for _ in range(2))
    done = torch.rand(12, generator=generator) < 0.2
    given: dict[str, Any] = {"next_value": value.roll(-1), "gamma": 0.9, "lmbda": 0.8, "time_dim": 0} | more

    def advantage(reward: Tensor, value: Tensor) -> Tensor:
        return kernels.gae(reward, value, done=done, **given)[0]

    return advantage, (reward, value)


MORE: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked": {"valid": torch.arange(12) % 5 != 3, "skip": torch.arange(12) % 4 == 1},
    "packed": {"cu_seqlens": torch.tensor([0, 5, 5, 12])},
    "derived": {"next_value": None, "bootstrap_value": torch.tensor(0.3, dtype=torch.float64)},
    "derived past masks": {
        **{"next_value": None, "bootstrap_value": torch.tensor(0.3, dtype=torch.float64)},
        "skip": torch.arange(12) % 4 == 1,
    },
    "derived and packed": {
        **{"next_value": None, "bootstrap_value": torch.tensor([0.3, 0.1, -0.7], dtype=torch.float64)},
        "cu_seqlens": torch.tensor([0, 5, 5, 12]),
    },
    "with moments": {"moments": True},
}


@pytest.mark.parametrize("which", MORE)
def test_both_ways_forwards_agree_with_the_way_backwards(which: str) -> None:
    advantage, at = gae_with(**MORE[which])
    generator = torch.Generator().manual_seed(2)
    tangents = tuple(torch.randn(12, dtype=torch.float64, generator=generator) for _ in at)
    jacobians = torch.autograd.functional.jacobian(advantage, at)
    wanted = sum(jacobian @ tangent for jacobian, tangent in zip(jacobians, tangents, strict=True))
    result, tangent = torch.func.jvp(advantage, at, tangents)
    torch.testing.assert_close(tangent, wanted)
    torch.testing.assert_close(result, advantage(*at))
    with forward_ad.dual_level():
        dual = advantage(*(forward_ad.make_dual(x, t) for x, t in zip(at, tangents, strict=True)))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, wanted)


@pytest.mark.parametrize("which", MORE)
def test_tangents_of_a_batch_are_those_of_each_example(which: str) -> None:
    """Of data that are batched, beside some that are not."""
    advantage, (reward, value) = gae_with(**MORE[which])
    rewards = torch.stack([reward, reward.flip(0), -reward])

    def tangent(reward: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(lambda x: advantage(x, value), (reward,), (torch.ones_like(reward),))[1]
        return found

    torch.testing.assert_close(torch.func.vmap(tangent)(rewards), torch.stack([tangent(x) for x in rewards]))


def test_jacobians_forwards_are_those_backwards_and_hessians_come_of_both() -> None:
    advantage, at = gae_with()
    forwards, backwards = torch.func.jacfwd(advantage)(*at), torch.func.jacrev(advantage)(*at)
    torch.testing.assert_close(forwards, backwards)

    done, next_value = torch.arange(12) % 5 == 4, at[1].roll(-1)

    def loss(gamma: Tensor) -> Tensor:
        return kernels.gae(*at, next_value, done, gamma=gamma, lmbda=0.8, time_dim=0)[0].square().sum()

    gamma = torch.tensor(0.9, dtype=torch.float64)
    slope = torch.func.grad(loss)
    numeric = (slope(gamma + 1e-6) - slope(gamma - 1e-6)) / 2e-6
    torch.testing.assert_close(torch.func.hessian(loss)(gamma), numeric, rtol=1e-6, atol=1e-6)


def test_calls_that_were_repeated_before_do_not_lose_tangents() -> None:
    advantage, at = gae_with()
    for _ in range(4):
        advantage(*at)
    with forward_ad.dual_level():
        dual = advantage(forward_ad.make_dual(at[0], torch.ones(12, dtype=torch.float64)), at[1])
        tangent = forward_ad.unpack_dual(dual).tangent
        assert tangent is not None and bool((tangent >= 1).all())
        # What has no tangent goes the usual way.
        assert forward_ad.unpack_dual(advantage(*at)).tangent is None


def test_a_compiled_function_has_tangents_too() -> None:
    advantage, at = gae_with(**MORE["masked"])
    ones = tuple(torch.ones(12, dtype=torch.float64) for _ in at)
    wanted = torch.func.jvp(advantage, at, ones)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *at: torch.func.jvp(advantage, at, ones), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*at), wanted)
    torch._dynamo.reset()
