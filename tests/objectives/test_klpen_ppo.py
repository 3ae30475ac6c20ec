"""KLPENPPOLoss: the penalty, how its weight adapts, and TorchRL's numbers."""

from __future__ import annotations

import inspect
import math
from typing import Any, ClassVar

import pytest
import torch
import torchrl.objectives as peer
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence
from torchrl.modules import TanhNormal, TruncatedNormal

from tritonrl.objectives.divergence import kl_between
from tritonrl.objectives.klpen_ppo import KLPENPPOLoss
from tritonrl.objectives.ppo import PPOLoss

from .ppo_cases import BATCH, composite_actor, gradients, make_critic, normal_actor, rollout

pytestmark = pytest.mark.filterwarnings("ignore")
FIXED = {"increment": 1.0, "decrement": 1.0}


def build(cls: Any = KLPENPPOLoss, **kwargs: Any) -> Any:
    return cls(normal_actor(), make_critic(), **kwargs)


def normal_kl(loc_p: float, scale_p: float, loc_q: float, scale_q: float) -> float:
    return math.log(scale_q / scale_p) + (scale_p**2 + (loc_p - loc_q) ** 2) / (2 * scale_q**2) - 0.5


def test_the_divergence_of_normals_is_known_and_points_from_old_to_new() -> None:
    data = rollout()
    out = build()(data)
    new = normal_actor()[0](data.select("observation"))
    assert out["kl"].shape == (*BATCH, 1)
    at = (2, 3)
    expected = sum(
        normal_kl(*numbers)
        for numbers in zip(
            data["loc"][at].tolist(),
            data["scale"][at].tolist(),
            new["loc"][at].tolist(),
            new["scale"][at].tolist(),
            strict=True,
        )
    )
    assert out["kl"][at].item() == pytest.approx(expected, rel=1e-4)


def test_the_objective_is_the_plain_one_plus_the_penalty() -> None:
    out, plain = build(beta=3.0)(rollout()), build(PPOLoss)(rollout())
    torch.testing.assert_close(out["loss_objective"], plain["loss_objective"] + 3.0 * out["kl"].mean())


def test_the_gradient_uses_the_same_beta_as_the_value() -> None:
    results = []
    for kwargs in ({}, FIXED):
        actor = normal_actor()
        KLPENPPOLoss(actor, make_critic(), beta=3.0, **kwargs)(rollout())["loss_objective"].backward()
        results.append(gradients(actor))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(("dtarg", "expected"), [(0.01, 6.0), (100.0, 1.5)])
def test_beta_follows_the_divergence_in_training_and_stays_in_evaluation(dtarg: float, expected: float) -> None:
    loss = build(beta=3.0, dtarg=dtarg)
    loss.eval()
    loss(rollout())
    assert loss.beta == 3.0
    loss.train()
    buffer = loss.beta
    loss(rollout())
    assert loss.beta == expected
    assert loss.beta is buffer
    loss.reset()
    assert loss.beta == 3.0


def test_beta_stays_where_the_divergence_is_near_the_target() -> None:
    mean_kl = build()(rollout())["kl"].mean().item()
    for factor in (1.4, 1 / 1.4):
        loss = build(dtarg=mean_kl * factor)
        loss(rollout())
        assert loss.beta == 1.0


def test_beta_follows_the_divergence_of_valid_steps_only() -> None:
    data = rollout(batch=(6,))
    mask = torch.tensor([True, True, True, False, False, True])
    kl = build()(data)["kl"][mask].mean().item()
    data["loc"][~mask] = 1e3
    data["shifted_valid"] = mask
    loss = build(dtarg=kl)
    loss(data)
    assert loss.beta == 1.0


def test_rubbish_behind_the_mask_reaches_neither_loss_nor_gradient() -> None:
    data = rollout(batch=(6,))
    mask = torch.tensor([True, True, True, False, False, True])
    dirty = data.apply(
        lambda x: x.masked_fill(~mask.view(-1, *[1] * (x.ndim - 1)), math.nan) if x.is_floating_point() else x
    )
    results = []
    for candidate in (data, dirty):
        actor, critic = normal_actor(), make_critic()
        loss = KLPENPPOLoss(actor, critic)
        out = loss(candidate.clone().set("shifted_valid", mask))
        loss.total(out).backward()
        kl = out.pop("kl")
        results.append((out.to_dict(), kl[mask], loss.beta, gradients(actor, critic)))
    torch.testing.assert_close(results[1], results[0])


def test_data_without_the_old_distribution_is_a_key_error() -> None:
    with pytest.raises(KeyError, match=r"loc.*scale"):
        build()(rollout().exclude("scale"))


def test_with_a_delayed_actor_the_divergence_is_that_of_the_proximal_policy() -> None:
    data = rollout().exclude("loc", "scale")
    loss = build(delay_actor=True)
    assert loss(data)["kl"].abs().max() < 1e-6
    with torch.no_grad():
        for parameter in loss.target_actor_network_params.values(True, True):
            parameter.add_(0.05)
    assert loss(data)["kl"].min() > 1e-4


def test_nothing_is_written_into_the_callers_tensordict() -> None:
    data = rollout(composite_actor, advantage=False)
    before = {key: (id(value), value._version) for key, value in data.items(True, True)}
    KLPENPPOLoss(composite_actor(), make_critic())(data)
    assert {key: (id(value), value._version) for key, value in data.items(True, True)} == before


@pytest.mark.parametrize(
    "kwargs",
    [
        {"dtarg": -0.1},
        {"beta": -1.0},
        {"beta": True},
        {"increment": 0.5},
        {"decrement": 2.0},
        {"samples_mc_kl": 0},
        {"clip_value": True},
    ],
)
def test_an_option_out_of_range_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        build(**kwargs)


def test_two_probabilistic_modules_are_refused() -> None:
    second = ProbabilisticTensorDictModule(
        in_keys={"loc": "loc", "scale": "scale"}, out_keys=["other"], distribution_class=Normal
    )
    with pytest.raises(RuntimeError, match=r"exactly one.*2"):
        KLPENPPOLoss(ProbabilisticTensorDictSequential(*normal_actor(), second), make_critic())


# -- the divergence -----------------------------------------------------------------------------------------------


class Opaque(Distribution):
    """A normal without a registered divergence: what Monte Carlo should find is known."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base: Normal) -> None:
        self.base = base
        super().__init__(base.batch_shape, validate_args=False)

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        return self.base.sample(sample_shape)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return self.base.log_prob(value)


def test_sampling_finds_the_divergence_and_its_gradient() -> None:
    loc = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    p = Normal(torch.zeros(2, dtype=torch.float64), 1.0)
    q = Normal(loc, torch.tensor(2.0, dtype=torch.float64))
    estimate, exact = kl_between(Opaque(p), Opaque(q), 40000), kl_divergence(p, q)
    torch.testing.assert_close(estimate, exact, atol=0.02, rtol=0)
    gradients_ = [torch.autograd.grad(value.sum(), loc)[0] for value in (estimate, exact)]
    torch.testing.assert_close(gradients_[0], gradients_[1], atol=0.02, rtol=0)


def test_the_divergence_of_composite_policies_is_the_sum_over_their_heads() -> None:
    data = rollout(composite_actor)
    out = KLPENPPOLoss(composite_actor(), make_critic())(data)
    old = data["params"]
    new = composite_actor()[:-1](data.select("observation"))["params"]
    move = kl_divergence(Independent(Normal(**old["move"]), 1), Independent(Normal(**new["move"]), 1))
    gear = kl_divergence(Categorical(**old["gear"]), Categorical(**new["gear"]))
    torch.testing.assert_close(out["kl"].squeeze(-1), (move + gear).detach())


# -- TorchRL ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"beta": 3.0, "dtarg": 0.4},
        {"delay_actor": True},
        {"max_importance_ratio": 1.1},
        {"reduction": "none", "clip_value": 0.1},
        {"functional": False, "normalize_advantage": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("distribution", [None, TanhNormal, TruncatedNormal])
def test_every_option_gives_the_numbers_of_torchrl(kwargs: dict[str, Any], distribution: Any) -> None:
    def make(seed: int = 0) -> Any:
        return normal_actor(seed) if distribution is None else normal_actor(seed, distribution)

    data, results = rollout(make), []
    for cls in (peer.KLPENPPOLoss, KLPENPPOLoss):
        actor, critic = make(), make_critic()
        loss = cls(actor, critic, samples_mc_kl=3, **FIXED, **kwargs)
        torch.manual_seed(9)
        out = loss(data)
        sum(value.sum() for key, value in out.items() if key.startswith("loss_")).backward()
        results.append(
            (dict(out.items()), gradients(actor, critic), list(out.keys()), loss.out_keys, set(loss.in_keys))
        )
    torch.testing.assert_close(results[1][:2], results[0][:2], rtol=1e-4, atol=1e-6)
    assert results[1][2:] == results[0][2:]


def test_beta_moves_as_in_torchrl() -> None:
    for dtarg in (0.01, 0.7, 100.0):
        ours, theirs = build(dtarg=dtarg), build(peer.KLPENPPOLoss, dtarg=dtarg)
        for seed in (3, 4):
            ours(rollout(seed=seed))
            theirs(rollout(seed=seed))
            assert ours.beta == theirs.beta


def test_differently_the_gradient_does_not_use_the_next_beta() -> None:
    """TorchRL changes beta in place behind autograd's back: its gradient has the penalty of the next call."""

    def gradient(cls: Any, **kwargs: Any) -> list[Any]:
        actor = normal_actor()
        cls(actor, make_critic(), **kwargs)(rollout())["loss_objective"].backward()
        return gradients(actor)

    torch.testing.assert_close(gradient(KLPENPPOLoss), gradient(peer.KLPENPPOLoss, **FIXED))
    torch.testing.assert_close(gradient(KLPENPPOLoss, beta=2.0, **FIXED), gradient(peer.KLPENPPOLoss))


def test_the_parameters_of_the_constructor_are_those_of_torchrl() -> None:
    theirs = dict(inspect.signature(peer.PPOLoss).parameters)
    theirs |= inspect.signature(peer.KLPENPPOLoss).parameters
    theirs.pop("kwargs")
    ours = inspect.signature(KLPENPPOLoss).parameters
    assert {k: p.default for k, p in ours.items()} == {k: p.default for k, p in theirs.items()}


# -- compile ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [normal_actor, composite_actor])
def test_one_graph_and_never_another(make: Any) -> None:
    torch._dynamo.reset()
    loss = KLPENPPOLoss(make(), make_critic(), dtarg=0.3)
    call = torch.compile(loss, fullgraph=True, backend="aot_eager")
    data, betas, outs = rollout(make, advantage=False), [], []
    for function in (call, loss):
        loss.reset()
        loss.zero_grad()
        out = function(data)
        loss.total(out).backward()
        betas.append(loss.beta.item())
        outs.append((out.to_dict(), [parameter.grad for parameter in loss.parameters()]))
    torch.testing.assert_close(outs[0], outs[1])
    assert betas[0] == betas[1] != 1.0
    with torch.compiler.set_stance("fail_on_recompile"):
        loss.beta = 0.3
        call(data)
    torch._dynamo.reset()
