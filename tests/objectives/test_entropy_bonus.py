"""Entropies, in closed form and by sampling, and their weighting by head."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import CompositeDistribution
from torch.distributions import Categorical, Independent, Normal, TanhTransform, TransformedDistribution

from tritonrl.objectives.entropy_bonus import (
    entropy_key,
    entropy_of,
    has_closed_form_entropy,
    head_entropies,
    sum_heads,
    weigh_heads,
)


class OpaqueCategorical(Categorical):
    """A categorical distribution that hides its closed-form entropy: what sampling should find is known."""

    entropy = torch.distributions.Distribution.entropy


def tanh_normal(loc: torch.Tensor, scale: torch.Tensor) -> TransformedDistribution:
    return TransformedDistribution(Normal(loc, scale), [TanhTransform()])


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (Normal(torch.zeros(3), 1.0), True),
        (Categorical(logits=torch.zeros(3)), True),
        (Independent(Normal(torch.zeros(3), 1.0), 1), True),
        (tanh_normal(torch.zeros(3), torch.ones(3)), False),
        (Independent(tanh_normal(torch.zeros(3), torch.ones(3)), 1), False),
    ],
)
def test_the_class_decides_whether_there_is_a_closed_form(distribution: Normal, expected: bool) -> None:
    assert has_closed_form_entropy(distribution) is expected


def test_the_entropy_of_a_normal_is_known() -> None:
    scale = torch.rand(5, dtype=torch.float64) + 0.5
    expected = [0.5 * math.log(2 * math.pi * math.e * s * s) for s in scale.tolist()]
    result = entropy_of(Normal(torch.zeros(5, dtype=torch.float64), scale))
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))


def test_sampling_finds_the_entropy_and_its_gradient_where_samples_are_reparameterised() -> None:
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    # No transform at all: the class has no closed form, the numbers do.
    sampled = TransformedDistribution(Normal(torch.zeros(2, dtype=torch.float64), scale), [])
    estimate = entropy_of(sampled, 20000)
    exact = Normal(torch.zeros(2, dtype=torch.float64), scale).entropy()
    torch.testing.assert_close(estimate, exact, atol=0.05, rtol=0)
    (gradient,) = torch.autograd.grad(estimate.sum(), scale)
    torch.testing.assert_close(gradient, 1 / scale.detach(), atol=0.05, rtol=0)


def test_sampling_has_the_right_gradient_where_samples_carry_none() -> None:
    logits = torch.tensor([0.3, -1.0, 1.2], dtype=torch.float64, requires_grad=True)
    estimate = entropy_of(OpaqueCategorical(logits=logits), 40000)
    exact = Categorical(logits=logits).entropy()
    torch.testing.assert_close(estimate, exact, atol=0.02, rtol=0)
    (gradient,) = torch.autograd.grad(estimate, logits)
    (expected,) = torch.autograd.grad(exact, logits)
    torch.testing.assert_close(gradient, expected, atol=0.02, rtol=0)
    assert expected.abs().max() > 0.1  # so that a zero gradient could not pass


def two_heads() -> CompositeDistribution:
    params = TensorDict(
        {"move": {"loc": torch.zeros(5, 3), "scale": torch.rand(5, 3) + 0.5}, "gear": {"logits": torch.randn(5, 4)}},
        [5],
    )
    return CompositeDistribution(
        params, {"move": Normal, "gear": Categorical}, name_map={"move": ("agent", "move"), "gear": "gear"}
    )


def test_each_head_has_its_entropy_under_its_own_name() -> None:
    distribution = two_heads()
    entropies = head_entropies(distribution, torch.Size([5]))
    torch.testing.assert_close(entropies["agent", "move_entropy"], distribution.dists["agent", "move"].entropy())
    torch.testing.assert_close(entropies["gear_entropy"], distribution.dists["gear"].entropy())


def test_heads_and_their_features_are_summed() -> None:
    distribution = two_heads()
    entropies = head_entropies(distribution, torch.Size([5]))
    expected = distribution.dists["agent", "move"].entropy().sum(-1) + distribution.dists["gear"].entropy()
    torch.testing.assert_close(sum_heads(entropies), expected)


@pytest.mark.parametrize("by", ["action", "entropy"])
def test_one_coefficient_for_all_heads_is_the_same_by_number_and_by_head(by: str) -> None:
    entropies = head_entropies(two_heads(), torch.Size([5]))
    heads = [("agent", "move"), "gear"]
    keys = heads if by == "action" else [entropy_key(head) for head in heads]
    weighted = weigh_heads(entropies, dict.fromkeys(keys, torch.tensor(0.3)))
    torch.testing.assert_close(weighted, 0.3 * sum_heads(entropies))


def test_a_head_without_coefficient_is_named() -> None:
    entropies = head_entropies(two_heads(), torch.Size([5]))
    with pytest.raises(KeyError, match="'gear'"):
        weigh_heads(entropies, {("agent", "move"): torch.tensor(1.0)})
