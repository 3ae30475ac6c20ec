"""TD(0), TD(1) and TD(lambda) estimators: parity with TorchRL, identities, and what value_estimate promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, set_skip_existing
from torch import Tensor

from tritonrl.objectives.value import TD0Estimator, TD1Estimator, TDLambdaEstimator

Rollouts = Callable[..., TensorDict]
EVERY = pytest.mark.parametrize("cls", [TD0Estimator, TD1Estimator, TDLambdaEstimator])


def build(cls: Any, critic: TensorDictModule | None, **options: Any) -> Any:
    lmbda = {"lmbda": 0.8} if cls.__name__ == "TDLambdaEstimator" else {}
    return cls(**{"gamma": 0.95, "value_network": critic, **lmbda, **options})


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "average_rewards": {"average_rewards": True},
    "groups": {"average_rewards": True, "group_key": "task"},
    "steps_to_next_obs": {"steps": True},
    "chunks": {"num_chunks": 2},
    "deactivate_vmap": {"deactivate_vmap": True},
    "shifted": {"shifted": True, "shifted_budget": 9},
    "time first": {"time_dim": 0},
    "no network": {"network": False},
}


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("name", list(OPTIONS))
@EVERY
def test_values_gradients_and_keys_are_those_of_torchrl(
    cls: Any, name: str, differentiable: bool, critic: TensorDictModule, make_rollout: Rollouts, quiet_torchrl: Any
) -> None:
    options = dict(OPTIONS[name])
    steps, with_network = options.pop("steps", False), options.pop("network", True)
    if cls is TD0Estimator:  # It has no time_dim: time plays no part.
        options.pop("time_dim", None)

    def run(estimator: Any) -> tuple[TensorDict, list[Tensor]]:
        td = make_rollout(4, 9, seed=3)
        td["task"] = torch.tensor([[4, 4, 4, 7, 7, 7, 7, 2, 4]]).expand(4, 9).clone()
        if steps:
            td["steps_to_next_obs"] = torch.randint(1, 4, (4, 9, 1), generator=torch.Generator().manual_seed(0))
        if not with_network:
            td["state_value"], td["next", "state_value"] = td["obs"][..., :1] * 2, td["next", "obs"][..., :1]
        leaves = [td["obs"], td["next", "obs"], td["next", "reward"]]
        for leaf in leaves:
            leaf.requires_grad_()
        network = critic if with_network else None
        out = build(estimator, network, differentiable=differentiable, **options)(td)
        loss = (out["advantage"] * torch.arange(36.0).view(4, 9, 1)).sum() + out["value_target"].square().sum()
        if not differentiable:
            assert not loss.requires_grad
            return out.detach(), []
        grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return out.detach(), list(grads)

    ours, our_grads = run(cls)
    theirs, their_grads = run(getattr(quiet_torchrl, cls.__name__))
    assert set(ours.keys(True, True)) == set(theirs.keys(True, True))
    for key in theirs.keys(True, True):
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")
    for our, their in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("average_rewards", [False, True])
@EVERY
def test_value_estimate_is_torchrls(
    cls: Any, average_rewards: bool, critic: TensorDictModule, make_rollout: Rollouts, quiet_torchrl: Any
) -> None:
    results = []
    for estimator in (cls, getattr(quiet_torchrl, cls.__name__)):
        td = make_rollout(4, 9)
        td["next", "obs"].requires_grad_()
        target = build(estimator, critic, average_rewards=average_rewards).value_estimate(td)
        grad = torch.autograd.grad(target.square().sum(), td["next", "obs"])[0]
        results.append((target, grad, td["next", "reward"], set(td.keys(True, True))))
    (ours, our_grad, our_reward, our_keys), (theirs, their_grad, their_reward, their_keys) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(our_grad, their_grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(our_reward, their_reward, rtol=1e-4, atol=1e-5)
    assert our_keys == their_keys


@EVERY
def test_value_estimate_takes_params_or_a_next_value_or_the_data(
    cls: Any, critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    td = make_rollout(3, 7)
    params = TensorDict.from_module(critic).detach().apply(lambda p: p * 2)
    with torch.no_grad(), params.to_module(critic, preserve_module_state=False):
        doubled = critic.module(td["next", "obs"])
    given = build(cls, critic).value_estimate(td, next_value=doubled)
    torch.testing.assert_close(build(cls, critic).value_estimate(td, target_params=params), given)
    td["next", "state_value"] = doubled
    torch.testing.assert_close(build(cls, None).value_estimate(td), given)
    fresh = build(cls, critic).value_estimate(td)
    assert not torch.allclose(fresh, given)
    torch.testing.assert_close(build(cls, critic, skip_existing=True).value_estimate(td), fresh)
    with set_skip_existing(True):
        torch.testing.assert_close(build(cls, critic).value_estimate(td), given)


@EVERY
def test_value_estimate_refuses_what_does_not_fit(cls: Any, critic: TensorDictModule, make_rollout: Rollouts) -> None:
    td = make_rollout(3, 7)
    with pytest.raises(RuntimeError, match=r"reward.*\(3, 7, 1\).*state_value.*\(3, 7\)"):
        build(cls, critic, average_rewards=True).value_estimate(td, next_value=torch.zeros(3, 7))
    with pytest.raises(ValueError, match="state_value"):
        build(cls, None).value_estimate(td)


def test_a_second_call_standardises_the_rewards_that_the_first_one_wrote(
    critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    td = make_rollout(3, 7)
    build(TD1Estimator, critic, average_rewards=True)(td)
    reward = td["next", "reward"]
    assert reward.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert reward.std().item() == pytest.approx(1.0, abs=1e-5)


def test_td_zero_does_not_look_at_time(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    td = make_rollout(12)
    shuffled = td[torch.randperm(12)]
    out, other = build(TD0Estimator, critic)(td), build(TD0Estimator, critic)(shuffled)
    torch.testing.assert_close(out["value_target"].sort(0).values, other["value_target"].sort(0).values)
    unbatched = build(TD0Estimator, critic).value_estimate(td[0])
    torch.testing.assert_close(unbatched, out["value_target"][0])


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (TD0Estimator, {"average_rewards": True}),
        (TD1Estimator, {"differentiable": True}),
        (TDLambdaEstimator, {"shifted": True, "differentiable": True}),
    ],
)
def test_forward_compiles_whole_and_once(
    cls: Any, options: dict[str, Any], critic: TensorDictModule, make_rollout: Rollouts, no_recompile: None
) -> None:
    estimator = build(cls, critic, **options)
    whole = torch.compile(estimator, fullgraph=True, backend="eager")
    for gamma in (0.95, 0.5):
        estimator.gamma = gamma
        expected, out = estimator(make_rollout(3, 6)), whole(make_rollout(3, 6))
        torch.testing.assert_close(out["value_target"], expected["value_target"])
        torch.testing.assert_close(out["advantage"], expected["advantage"])
