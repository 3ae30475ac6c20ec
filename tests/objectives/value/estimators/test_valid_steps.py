"""``valid_key``: padded rows give what the rows without padding give, and nothing in the padding is ever seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from tritonrl.objectives import ClipPPOLoss
from tritonrl.objectives.value import GAE, MultiAgentGAE, TD0Estimator, TD1Estimator, TDLambdaEstimator, VTrace

Rollouts = Callable[..., TensorDict]
CLASSES = (GAE, MultiAgentGAE, TD0Estimator, TD1Estimator, TDLambdaEstimator, VTrace)
EVERY = pytest.mark.parametrize("cls", CLASSES)
LENGTHS = (7, 1, 4, 6)


def make_actor() -> Any:
    torch.manual_seed(0)
    net = TensorDictModule(nn.Sequential(nn.Linear(3, 4), NormalParamExtractor()), ["obs"], ["loc", "scale"])
    draw = ProbabilisticTensorDictModule(
        ["loc", "scale"],
        ["action"],
        distribution_class=lambda loc, scale: Independent(Normal(loc, scale), 1),
        return_log_prob=True,
    )
    return ProbabilisticTensorDictSequential(net, draw)


def build(cls: Any, critic: Any, **options: Any) -> Any:
    own: dict[str, Any] = {"actor_network": make_actor()} if cls is VTrace else {}
    if cls in (GAE, MultiAgentGAE, TDLambdaEstimator):
        own["lmbda"] = 0.9
    return cls(gamma=0.95, value_network=critic, **own, **options)


@pytest.fixture
def make_padded(make_rollout: Rollouts) -> Callable[[], TensorDict]:
    """Four rows of seven steps, of which ``LENGTHS`` are real; what can hold a NaN in the padding does."""

    def make(padding: float = float("nan")) -> TensorDict:
        td = make_rollout(4, 7, seed=2)
        td["action"], td["action_log_prob"] = torch.randn(4, 7, 2), torch.randn(4, 7)
        valid = torch.arange(7) < torch.tensor(LENGTHS).unsqueeze(-1)
        for key in ("obs", "action", "action_log_prob", ("next", "obs"), ("next", "reward")):
            entry = td[key]
            td[key] = torch.where(valid.view(4, 7, *[1] * (entry.ndim - 2)), entry, padding)
        td["mask"] = valid
        return td

    torch.manual_seed(1)
    return make


@EVERY
@pytest.mark.parametrize("options", [{}, {"shifted": True, "shifted_budget": 8}, {"deactivate_vmap": True}])
def test_padded_rows_give_what_the_rows_alone_give_and_zero_behind(
    cls: Any, options: dict[str, Any], critic: TensorDictModule, make_padded: Any
) -> None:
    td = make_padded()
    out = build(cls, critic, valid_key="mask", **options)(td.clone())
    alone = build(cls, critic)
    for row, length in enumerate(LENGTHS):
        expected = alone(td[row : row + 1, :length].clone())
        for key in ("advantage", "value_target"):
            torch.testing.assert_close(out[key][row, :length], expected[key][0], rtol=1e-5, atol=1e-5)
            assert not out[key][row, length:].any()
    assert torch.equal(out["next", "reward"].isnan(), td["next", "reward"].isnan())  # the data are left alone


@EVERY
def test_nothing_in_the_padding_reaches_a_gradient(cls: Any, critic: TensorDictModule, make_padded: Any) -> None:
    grads = []
    for padding in (float("nan"), 0.0):
        torch.manual_seed(1)
        td = make_padded(padding)
        leaves = [td["obs"].requires_grad_(), td["next", "reward"].requires_grad_()]
        out = build(cls, critic, valid_key="mask", differentiable=True)(td)
        total = out["advantage"].square().sum() + out["value_target"].square().sum()
        grads.append(torch.autograd.grad(total, leaves))
    for with_nan, without in zip(*grads, strict=True):
        assert torch.equal(with_nan, without)
        assert not with_nan[~td["mask"]].any()
        assert with_nan[td["mask"]].any()


@EVERY
def test_a_mask_that_is_true_everywhere_changes_nothing(cls: Any, critic: TensorDictModule, make_padded: Any) -> None:
    td = make_padded(0.0)
    td["mask"] = torch.ones(4, 7, 1, dtype=torch.bool)
    out, expected = build(cls, critic, valid_key="mask")(td.clone()), build(cls, critic)(td.clone())
    assert set(out.keys(True, True)) == set(expected.keys(True, True))
    for key in ("advantage", "value_target", "state_value", ("next", "state_value")):
        assert torch.equal(out[key], expected[key])


@pytest.mark.parametrize("cls", [GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator])
@pytest.mark.parametrize("next_value", [False, True])
def test_the_value_estimate_is_that_of_forward(
    cls: Any, next_value: bool, critic: TensorDictModule, make_padded: Any
) -> None:
    td = make_padded()
    estimator = build(cls, critic, valid_key="mask")
    out = estimator(td.clone())
    given = {"next_value": out["next", "state_value"]} if next_value else {}
    torch.testing.assert_close(estimator.value_estimate(td.clone(), **given), out["value_target"])


@pytest.mark.parametrize(("cls", "option"), [(GAE, "average_gae"), (VTrace, "average_adv")])
@pytest.mark.parametrize("shifted", [False, True])
def test_padding_is_left_out_of_the_statistics_of_the_advantage(
    cls: Any, option: str, shifted: bool, critic: TensorDictModule, make_padded: Any
) -> None:
    td = make_padded()
    plain = build(cls, critic, valid_key="mask", shifted=shifted)(td.clone())["advantage"]
    out = build(cls, critic, valid_key="mask", shifted=shifted, **{option: True})(td.clone())
    counted = (td["mask"] & out.get("shifted_valid", td["mask"])).unsqueeze(-1)
    kept = plain[counted]
    torch.testing.assert_close(out["advantage"][counted], (kept - kept.mean()) / kept.std(unbiased=False))
    assert not out["advantage"][~counted].any()


@pytest.mark.parametrize("cls", [TD0Estimator, TD1Estimator, TDLambdaEstimator])
@pytest.mark.parametrize("grouped", [False, True])
def test_padding_is_left_out_of_the_statistics_of_the_rewards(
    cls: Any, grouped: bool, critic: TensorDictModule, make_padded: Any
) -> None:
    td = make_padded()
    td["task"] = torch.arange(7).expand(4, 7) % 2
    groups = {"group_key": "task"} if grouped else {}
    out = build(cls, critic, valid_key="mask", average_rewards=True, **groups)(td.clone())
    assert out["next", "reward"].isfinite().all()
    for task in (0, 1) if grouped else (None,):
        chosen = td["mask"] if task is None else td["mask"] & (td["task"] == task)
        kept = td["next", "reward"][chosen]
        expected = (kept - kept.mean()) / kept.std(unbiased=grouped)
        torch.testing.assert_close(out["next", "reward"][chosen], expected)
    assert not out["next", "reward"][~td["mask"]].any()


def test_a_gap_inside_a_row_separates_what_is_before_and_behind(
    critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    td = make_rollout(4, 7, seed=2)
    td["mask"] = torch.ones(4, 7, dtype=torch.bool)
    td["mask"][:, :1] = td["mask"][:, 3:5] = False
    for options in ({}, {"shifted": True, "shifted_budget": 8}):
        out = build(GAE, critic, valid_key="mask", **options)(td.clone())["advantage"]
        for piece in (slice(1, 3), slice(5, 7)):
            expected = build(GAE, critic)(td[:, piece].clone())["advantage"]
            torch.testing.assert_close(out[:, piece], expected, rtol=1e-5, atol=1e-5)
        assert not out[~td["mask"]].any()


def test_rows_of_padding_only_are_zero(critic: TensorDictModule, make_padded: Any) -> None:
    td = make_padded(float("inf"))
    td["mask"] = torch.zeros(4, 7, dtype=torch.bool)
    out = build(GAE, critic, valid_key="mask", average_gae=True)(td)
    assert not out["advantage"].any()
    assert not out["value_target"].any()


def test_shifted_valid_leaves_the_padding_out_too(critic: TensorDictModule, make_padded: Any) -> None:
    td = make_padded()
    out = build(GAE, critic, valid_key="mask", shifted=True, shifted_budget=8)(td)
    assert torch.equal(out["shifted_valid"], td["mask"])


def test_steps_of_several_environment_steps_may_be_anything_in_the_padding(
    critic: TensorDictModule, make_padded: Any
) -> None:
    td = make_padded()
    td["steps_to_next_obs"] = torch.where(td["mask"], 2.0, float("nan"))
    gamma = torch.tensor(0.95, requires_grad=True)
    estimator = GAE(gamma=gamma, lmbda=0.9, value_network=critic, valid_key="mask", differentiable=True)
    out = estimator(td.clone())
    squared = GAE(gamma=0.95**2, lmbda=0.9, value_network=critic, valid_key="mask")(td.exclude("steps_to_next_obs"))
    torch.testing.assert_close(out["advantage"], squared["advantage"])


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (None, KeyError, "mask of valid steps 'mask' is missing"),
        (torch.ones(4, 7), TypeError, "'mask' must be a bool mask .*float32"),
        (torch.ones(4, 7, 2, dtype=torch.bool), RuntimeError, r"'mask' of shape \(4, 7, 2\).*\(4, 7, 1\)"),
    ],
)
@EVERY
def test_a_mask_that_does_not_fit_is_refused_and_nothing_is_written(
    cls: Any, mask: Tensor | None, error: type[Exception], message: str, critic: TensorDictModule, make_padded: Any
) -> None:
    td = make_padded(0.0).exclude("mask") if mask is None else make_padded(0.0).set("mask", mask)
    before = set(td.keys(True, True))
    with pytest.raises(error, match=message):
        build(cls, critic, valid_key="mask")(td)
    assert set(td.keys(True, True)) == before


def test_the_mask_is_an_input(critic: TensorDictModule, make_padded: Any) -> None:
    estimator = build(GAE, critic, valid_key=("collector", "mask"))
    assert estimator.valid_key == ("collector", "mask")
    assert estimator.in_keys[-1] == ("collector", "mask")


def test_in_a_loss_padding_reaches_neither_the_loss_nor_a_gradient(critic: TensorDictModule, make_padded: Any) -> None:
    actor = make_actor()
    outcomes = []
    for padding in (float("nan"), 0.0):
        torch.manual_seed(1)
        data = make_padded(padding)
        data["collector", "mask"] = data["mask"]
        loss = ClipPPOLoss(actor, critic)
        loss.make_value_estimator("gae", valid_key=("collector", "mask"))
        loss.zero_grad()
        out = loss(data)
        loss.total(out).backward()
        outcomes.append([*(parameter.grad.clone() for parameter in loss.parameters()), out["loss_critic"].detach()])
    for with_nan, without in zip(*outcomes, strict=True):
        assert with_nan.isfinite().all()
        torch.testing.assert_close(with_nan, without)


def test_forward_compiles_whole_and_once(critic: TensorDictModule, make_padded: Any, no_recompile: None) -> None:
    estimator = build(VTrace, critic, valid_key="mask", average_adv=True)
    whole = torch.compile(estimator, fullgraph=True, backend="eager")
    for _ in range(2):
        td = make_padded()
        torch.testing.assert_close(whole(td.clone())["advantage"], estimator(td.clone())["advantage"])
