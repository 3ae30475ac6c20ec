"""The one-hot categorical, the squashed point and the independent normal."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchrl.modules as theirs
from torch.distributions import Categorical, Independent, Normal, kl_divergence

import tritonrl.modules as ours
from tritonrl.modules import Delta, IndependentNormal, OneHotCategorical, ReparamGradientStrategy, TanhDelta
from tritonrl.objectives.divergence import kl_between
from tritonrl.objectives.entropy_bonus import entropy_of

BOTH = pytest.mark.parametrize("modules", [ours, theirs], ids=["ours", "theirs"])


def test_one_hot_outcomes_have_the_numbers_of_a_categorical() -> None:
    logits = torch.randn(5, 7)
    mine, reference = OneHotCategorical(logits=logits), Categorical(logits=logits)
    index = reference.sample()
    one_hot = torch.nn.functional.one_hot(index, 7)
    for value in (one_hot, one_hot.bool(), one_hot.float()):
        torch.testing.assert_close(
            mine.log_prob(value.long() if value.dtype is torch.bool else value), reference.log_prob(index)
        )
    torch.testing.assert_close(entropy_of(mine), reference.entropy())
    torch.testing.assert_close(mine.probs, reference.probs)
    torch.testing.assert_close(mine.logits, reference.logits)
    torch.testing.assert_close(mine.mode.argmax(-1), reference.mode)
    other = torch.randn(5, 7)
    expected = kl_divergence(reference, Categorical(logits=other))
    torch.testing.assert_close(kl_between(mine, OneHotCategorical(logits=other)), expected)


def test_one_hot_samples_and_scores_are_those_of_torchrl() -> None:
    logits = torch.randn(5, 7)
    outs = []
    for modules in (ours, theirs):
        distribution = modules.OneHotCategorical(logits=logits)
        torch.manual_seed(3)
        sample = distribution.sample((4,))
        outs.append((sample, distribution.log_prob(sample), distribution.mode, distribution.deterministic_sample))
    for mine, expected in zip(*outs, strict=True):
        torch.testing.assert_close(mine, expected)


@BOTH
def test_a_straight_through_sample_has_the_gradient_of_the_probabilities(modules: Any) -> None:
    logits = torch.randn(5, 7, requires_grad=True)
    weights = torch.arange(7.0)
    sample = modules.OneHotCategorical(logits=logits).rsample()
    (gradient,) = torch.autograd.grad((sample * weights).sum(), logits)
    (expected,) = torch.autograd.grad((logits.softmax(-1) * weights).sum(), logits)
    if modules is ours:
        torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(sample.sum(-1), torch.ones(5))


def test_a_relaxed_sample_lies_on_the_simplex_and_carries_gradient() -> None:
    logits = torch.randn(5, 7, requires_grad=True)
    distribution = OneHotCategorical(logits=logits, grad_method=ReparamGradientStrategy.RelaxedOneHot)
    sample = distribution.rsample((3,))
    assert sample.shape == (3, 5, 7)
    torch.testing.assert_close(sample.sum(-1), torch.ones(3, 5))
    sample[..., 0].sum().backward()
    assert logits.grad is not None and logits.grad.abs().max() > 0


def test_a_one_hot_distribution_expands_and_wants_logits_or_probs() -> None:
    distribution = OneHotCategorical(probs=torch.tensor([0.2, 0.8]))
    assert distribution.expand((3,)).sample().shape == (3, 2)
    with pytest.raises(ValueError, match="probs"):
        OneHotCategorical()


def test_an_outcome_of_probability_zero_adds_nothing_to_the_entropy() -> None:
    distribution = OneHotCategorical(logits=torch.tensor([0.0, 0.0, -float("inf")]))
    torch.testing.assert_close(distribution.entropy(), torch.tensor(2.0).log())


@pytest.mark.parametrize("options", [{}, {"low": -2.0, "high": 2.0}, {"high": torch.tensor([1.0, 3.0])}])
def test_the_squashed_point_is_that_of_torchrl_around_zero(options: dict[str, Any]) -> None:
    param = torch.randn(5, 2)
    mine, reference = TanhDelta(param, **options), theirs.TanhDelta(param, **options)
    assert (mine.batch_shape, mine.event_shape) == (reference.batch_shape, reference.event_shape)
    around_zero = [0] if "low" not in options and options else [0, 1]  # TorchRL shifts param where the middle is not 0.
    for name in ("mode", "deterministic_sample"):
        torch.testing.assert_close(getattr(mine, name)[:, around_zero], getattr(reference, name)[:, around_zero])
    assert mine.rsample((3,)).shape == reference.rsample((3,)).shape
    torch.testing.assert_close(mine.mean, mine.mode)
    assert bool((mine.log_prob(mine.sample()) == float("inf")).all())
    assert bool((mine.log_prob(mine.sample() + 0.1) == -float("inf")).all())


def test_the_squashed_point_of_zero_is_the_middle_of_any_interval() -> None:
    point = TanhDelta(torch.zeros(5, 2), low=torch.tensor([-3.0, 0.0]), high=1.0, event_dims=0)
    torch.testing.assert_close(point.mode, torch.tensor([-1.0, 0.5]).expand(5, 2))
    assert (point.batch_shape, point.event_shape) == ((5, 2), ())


def test_the_squashed_point_carries_gradient_and_moves() -> None:
    param = torch.zeros(3, 2, requires_grad=True)
    point = TanhDelta(param, low=0.0, high=4.0)
    point.rsample().sum().backward()
    torch.testing.assert_close(param.grad, torch.full((3, 2), 2.0))
    assert isinstance(point, Delta)
    point.update(torch.full((3, 2), 100.0))
    assert bool((point.mode > 3.99).all()) and bool((point.mode < 4).all())
    with pytest.raises(RuntimeError, match="high must be strictly greater"):
        TanhDelta(param, low=2.0)
    with pytest.raises(ValueError, match="event_dims"):
        TanhDelta(param, event_dims=3)


@pytest.mark.parametrize("options", [{}, {"event_dim": 0}, {"event_dim": 2}])
def test_the_independent_normal_is_that_of_torchrl(options: dict[str, Any]) -> None:
    loc, scale = torch.randn(5, 3), torch.rand(5, 3) + 0.1
    mine, reference = IndependentNormal(loc, scale, **options), theirs.IndependentNormal(loc, scale, **options)
    action = torch.randn(5, 3)
    torch.testing.assert_close(mine.log_prob(action), reference.log_prob(action))
    torch.testing.assert_close(mine.deterministic_sample, reference.deterministic_sample)
    assert (mine.batch_shape, mine.event_shape) == (reference.batch_shape, reference.event_shape)


def test_the_location_of_an_independent_normal_can_be_limited() -> None:
    loc = 9 * torch.randn(5, 3)
    distribution = IndependentNormal(loc, 1.0, tanh_loc=True, upscale=2.0)
    torch.testing.assert_close(distribution.mean, 2 * torch.tanh(loc / 2))


def test_the_independent_normal_is_the_one_of_torch() -> None:
    loc, scale = torch.randn(5, 3), torch.rand(5, 3) + 0.1
    mine, reference = IndependentNormal(loc, scale), Independent(Normal(loc, scale), 1)
    other = IndependentNormal(loc + 1, scale)
    torch.testing.assert_close(
        kl_between(mine, other), kl_divergence(reference, Independent(Normal(loc + 1, scale), 1))
    )
    torch.testing.assert_close(entropy_of(mine), reference.entropy())
    assert mine.expand((4, 5)).sample().shape == (4, 5, 3)
    torch.testing.assert_close(copy.deepcopy(mine).mean, loc)
    with pytest.raises(ValueError, match="event_dim"):
        IndependentNormal(loc, scale, event_dim=3)


def test_they_compile_whole() -> None:
    def scores(logits: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        categorical = OneHotCategorical(logits=logits)
        normal = IndependentNormal(logits, 0.5)
        point = TanhDelta(logits, low=-2.0)
        return categorical.log_prob(action) + categorical.entropy() + normal.log_prob(logits) + point.rsample().sum(-1)

    logits = torch.randn(5, 3)
    action = OneHotCategorical(logits=logits).sample()
    compiled = torch.compile(scores, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, action), scores(logits, action))
