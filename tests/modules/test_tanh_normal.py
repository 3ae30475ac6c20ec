"""The squashed Gaussian: its density, its own samples, saturation, and what torch and TorchRL make of the same."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torchrl.modules as theirs
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)

from tritonrl.modules import TanhNormal
from tritonrl.modules.tanh_transform import SquashTransform, tanh_log_derivative
from tritonrl.objectives.divergence import kl_between
from tritonrl.objectives.entropy_bonus import has_closed_form_entropy

OPTIONS = [
    {},
    {"low": -2.0, "high": 3.0},
    {"low": torch.tensor([-2.0, 0.0, 1.0]), "high": torch.tensor([3.0, 1.0, 1.5])},
    {"tanh_loc": True, "upscale": 2.0},
    {"event_dims": 0},
    {"event_dims": 2},
]


def parameters(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return 2 * torch.randn(shape, dtype=dtype), torch.rand(shape, dtype=dtype) + 0.1


def log_density(x: np.ndarray, loc: np.ndarray, scale: np.ndarray, low: float, high: float) -> np.ndarray:
    """Log-density of the squashed x in float64, by log cosh: another form than the code has."""
    normal = -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    log_cosh = np.abs(x) + np.log1p(np.exp(-2 * np.abs(x))) - np.log(2)
    return normal + 2 * log_cosh - np.log((high - low) / 2)


def test_the_log_derivative_of_tanh_is_finite_where_tanh_has_long_been_flat() -> None:
    x = torch.tensor([-200.0, -9.5, -0.1, 0.0, 3.0, 50.0, 1e4], dtype=torch.float64)
    expected = -2 * (x.abs() + torch.log1p(torch.exp(-2 * x.abs())) - np.log(2))
    torch.testing.assert_close(tanh_log_derivative(x), expected)
    torch.testing.assert_close(tanh_log_derivative(x.float()), expected.float(), rtol=1e-6, atol=2e-6)


def test_the_log_derivative_of_tanh_passes_gradcheck() -> None:
    x = torch.tensor([-20.0, -1.0, 0.0, 2.0, 30.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(tanh_log_derivative, x)


@pytest.mark.parametrize("loc", [-30.0, -3.0, 0.0, 8.0, 25.0])
def test_a_sample_and_its_log_prob_agree_with_the_oracle_however_saturated(loc: float) -> None:
    distribution = TanhNormal(torch.full((7, 1), loc), torch.full((7, 1), 0.3), low=-2.0, high=5.0)
    torch.manual_seed(11)
    x = Normal(torch.full((7, 1), loc), 0.3).rsample()
    torch.manual_seed(11)
    action, log_prob = distribution.rsample_and_log_prob()
    expected = log_density(x.double().numpy(), np.float64(loc), np.float64(np.float32(0.3)), -2.0, 5.0)[:, 0]
    np.testing.assert_allclose(log_prob.numpy(), expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(action.numpy(), 3.5 * np.tanh(x.double().numpy()) + 1.5, atol=1e-5)


def test_the_density_integrates_to_one() -> None:
    loc, scale = torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.8], dtype=torch.float64)
    action = torch.linspace(-2 + 1e-6, 3 - 1e-6, 200_001, dtype=torch.float64)
    density = TanhNormal(loc, scale, low=-2.0, high=3.0).log_prob(action.unsqueeze(-1)).exp()
    assert torch.trapezoid(density, action).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_transformed_distribution_of_torch_where_that_is_accurate(dtype: torch.dtype) -> None:
    loc, scale = parameters(5, 3, dtype=dtype)
    distribution = TanhNormal(loc / 4, scale / 4, low=-1.0, high=3.0)
    transforms = [TanhTransform(), AffineTransform(1.0, 2.0)]
    reference = TransformedDistribution(Independent(Normal(loc / 4, scale / 4), 1), transforms)
    action = reference.sample((4,))
    torch.testing.assert_close(distribution.log_prob(action), reference.log_prob(action), rtol=1e-4, atol=1e-4)
    assert distribution.log_prob(action).dtype == dtype


@pytest.mark.parametrize("options", OPTIONS)
def test_values_and_gradients_are_those_of_torchrl(options: dict[str, Any]) -> None:
    results = []
    for cls in (TanhNormal, theirs.TanhNormal):
        torch.manual_seed(3)
        loc, scale = (value.requires_grad_() for value in parameters(5, 3))
        distribution = cls(loc, scale, **options)
        torch.manual_seed(4)
        action, log_prob = distribution.rsample_and_log_prob((2,))
        stored = distribution.log_prob(action.detach())
        (action.sum() + log_prob.sum() + stored.sum()).backward()
        shapes = distribution.batch_shape, distribution.event_shape
        results.append((shapes, action, log_prob, stored, distribution.deterministic_sample, loc.grad, scale.grad))
    assert results[0][0] == results[1][0]
    for ours, expected in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(ours, expected, rtol=2e-5, atol=2e-5)


def test_a_location_that_is_limited_stays_where_it_is_on_another_interval() -> None:
    loc, scale = parameters(5, 3)
    distribution = TanhNormal(loc, scale, tanh_loc=True, upscale=2.0, low=0.0, high=1.0)
    torch.testing.assert_close(distribution.loc, 2 * torch.tanh(loc / 2))


def test_its_own_differentiable_sample_is_scored_where_it_was_drawn() -> None:
    loc = torch.tensor([20.0, -20.0], requires_grad=True)
    distribution = TanhNormal(loc, 0.1)
    torch.manual_seed(0)
    action = distribution.rsample()
    torch.manual_seed(0)
    _, expected = distribution.rsample_and_log_prob()
    torch.testing.assert_close(distribution.log_prob(action), expected)
    (gradient,) = torch.autograd.grad(distribution.log_prob(action), loc)
    torch.testing.assert_close(gradient, torch.tensor([2.0, -2.0]), rtol=1e-4, atol=1e-4)


def test_a_stored_action_has_one_log_prob_when_it_is_collected_and_when_it_is_trained_on() -> None:
    loc, scale = torch.tensor([[20.0], [9.0], [0.5]]), torch.full((3, 1), 0.1)
    with torch.no_grad():
        collected = TanhNormal(loc, scale)
        action = collected.rsample()
        stored = collected.log_prob(action)
    trained = TanhNormal(loc.clone().requires_grad_(), scale).log_prob(action)
    torch.testing.assert_close(trained, stored, rtol=0, atol=0)


def test_samples_are_strictly_inside_and_come_back_to_where_they_were_moved_to() -> None:
    distribution = TanhNormal(torch.tensor([50.0, -50.0]), 1.0, low=-2.0, high=3.0)
    action = distribution.sample((100,))
    assert bool((action > -2).all()) and bool((action < 3).all())
    assert bool(distribution.log_prob(action).isfinite().all())


@pytest.mark.parametrize("safe_tanh", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_action_at_or_beyond_the_bound_has_a_finite_log_prob_and_gradient(
    safe_tanh: bool, dtype: torch.dtype
) -> None:
    loc = torch.zeros(4, 1, dtype=dtype, requires_grad=True)
    action = torch.tensor([[1.0], [-1.0], [1.5], [-7.0]], dtype=dtype)
    log_prob = TanhNormal(loc, 0.5, safe_tanh=safe_tanh).log_prob(action)
    log_prob.sum().backward()
    assert loc.grad is not None
    assert bool(log_prob.isfinite().all()) and bool(loc.grad.isfinite().all())


def test_samples_drawn_without_gradient_keep_the_score_function() -> None:
    loc = torch.zeros(3, 2, requires_grad=True)
    action, log_prob = TanhNormal(loc, 1.0).sample_and_log_prob((5,))
    assert not action.requires_grad and log_prob.requires_grad
    assert action.shape == (5, 3, 2) and log_prob.shape == (5, 3)


def test_seeded_samples_are_those_of_torchrl() -> None:
    loc, scale = parameters(7, 5)
    for draw in ("rsample", "sample", "rsample_and_log_prob", "sample_and_log_prob"):
        drawn = []
        for cls in (TanhNormal, theirs.TanhNormal):
            torch.manual_seed(6)
            out = getattr(cls(loc, scale), draw)((3,))
            drawn.append(out[0] if isinstance(out, tuple) else out)
        torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-6, atol=1e-6)


def test_the_log_prob_of_a_sample_passes_gradcheck() -> None:
    def joint(loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(5)
        return TanhNormal(loc, scale, low=-1.0, high=2.0).rsample_and_log_prob()

    loc, scale = (value.requires_grad_() for value in parameters(2, 3, dtype=torch.float64))
    assert torch.autograd.gradcheck(joint, (loc, scale))


def test_what_has_no_closed_form_says_so() -> None:
    distribution = TanhNormal(*parameters(3, 2))
    assert not has_closed_form_entropy(distribution)
    for name in ("mean", "mode", "variance"):
        with pytest.raises(NotImplementedError):
            getattr(distribution, name)
    with pytest.raises(NotImplementedError):
        distribution.entropy()


def test_the_divergence_of_two_is_that_of_their_normals() -> None:
    p, q = parameters(5, 3), parameters(5, 3)
    expected = kl_divergence(Independent(Normal(*p), 1), Independent(Normal(*q), 1))
    bounds = {"low": torch.tensor([-2.0, 0.0, 1.0]), "high": 4.0}
    torch.testing.assert_close(kl_divergence(TanhNormal(*p, **bounds), TanhNormal(*q, **bounds)), expected)
    torch.testing.assert_close(kl_between(TanhNormal(*p), TanhNormal(*q)), expected)


def test_there_is_no_closed_form_of_the_divergence_between_two_intervals() -> None:
    p, q = TanhNormal(*parameters(5, 3)), TanhNormal(*parameters(5, 3), low=-2.0)
    with pytest.raises(NotImplementedError):
        kl_divergence(p, q)
    assert kl_between(p, q).shape == (5,)


def test_equal_tensor_bounds_are_the_same_interval() -> None:
    bounds = torch.tensor([1.0, 2.0])
    assert SquashTransform(-1.0, bounds) == SquashTransform(-1.0, bounds.clone())
    assert SquashTransform(-1.0, bounds) != SquashTransform(-1.0, bounds + 1)
    assert SquashTransform(-1.0, 1.0) != SquashTransform(-1.0, bounds)


def test_it_can_be_expanded_updated_copied_and_pickled() -> None:
    loc, scale = parameters(3, 2)
    distribution = TanhNormal(loc, scale, low=-2.0)
    action = distribution.sample()
    expected = distribution.log_prob(action)
    torch.testing.assert_close(distribution.expand((5, 3)).log_prob(action), expected.expand(5, 3))
    for twin in (copy.deepcopy(distribution), pickle.loads(pickle.dumps(distribution))):
        torch.testing.assert_close(twin.log_prob(action), expected)
    distribution.update(loc + 1, scale)
    torch.testing.assert_close(distribution.log_prob(action), TanhNormal(loc + 1, scale, low=-2.0).log_prob(action))


@pytest.mark.parametrize("scale", [0.5, torch.nn.functional.softplus, torch.tensor([0.5, 0.5])])
def test_the_scale_may_be_a_number_a_function_or_of_fewer_dimensions(scale: Any) -> None:
    loc = torch.zeros(3, 2)
    expected = scale(loc) if callable(scale) else torch.full((3, 2), 0.5)
    distribution = TanhNormal(loc, scale)
    torch.testing.assert_close(distribution.scale.expand(3, 2), expected)
    assert distribution.batch_shape == (3,) and distribution.sample().shape == (3, 2)


def test_bad_arguments_are_named() -> None:
    loc, scale = parameters(3, 2)
    with pytest.raises(RuntimeError, match="high must be strictly greater than low"):
        TanhNormal(loc, scale, low=1.0, high=1.0)
    with pytest.raises(RuntimeError, match="high must be strictly greater than low"):
        TanhNormal(loc, scale, low=torch.tensor([0.0, 2.0]))
    with pytest.raises(ValueError, match=r"high of shape \(3,\).*\(3, 2\)"):
        TanhNormal(loc, scale, high=torch.ones(3))
    with pytest.raises(ValueError, match=r"scale of shape \(4,\).*loc of shape \(3, 2\)"):
        TanhNormal(loc, torch.ones(4))
    with pytest.raises(ValueError, match="event_dims must be between 0 and 2"):
        TanhNormal(loc, scale, event_dims=3)


def test_vmap_gives_each_members_own_numbers() -> None:
    loc, scale = parameters(4, 3, 2)
    action = torch.rand(4, 3, 2) - 0.5
    mapped = torch.vmap(lambda m, s, a: TanhNormal(m, s, low=-2.0).log_prob(a))(loc, scale, action)
    torch.testing.assert_close(mapped, TanhNormal(loc, scale, low=-2.0).log_prob(action))

    def joint(m: Tensor, s: Tensor) -> Tensor:
        distribution = TanhNormal(m, s)
        return distribution.log_prob(distribution.rsample())

    assert torch.vmap(joint, randomness="different")(loc, scale).shape == (4, 3)


def test_it_compiles_whole() -> None:
    def everything(loc: Tensor, scale: Tensor, action: Tensor) -> Tensor:
        distribution = TanhNormal(loc, scale, low=-2.0, high=torch.tensor([1.0, 3.0]), tanh_loc=True)
        own = distribution.rsample()
        drawn, log_prob = distribution.rsample_and_log_prob()
        other = TanhNormal(loc + 1, scale, low=-2.0)
        scores = distribution.log_prob(own) + distribution.log_prob(action) + log_prob
        return scores + drawn.sum(-1) + kl_between(TanhNormal(loc, scale, low=-2.0), other)

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    loc, scale = parameters(5, 2)
    results = []
    for function in (everything, compiled):
        leaf = loc.clone().requires_grad_()
        torch.manual_seed(2)
        out = function(leaf, scale, torch.zeros(5, 2))
        out.sum().backward()
        results.append((out.detach(), leaf.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
