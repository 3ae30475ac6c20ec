"""``shifted=True``: one pass over T + budget steps gives what two passes over T give, as far as there is room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from tritonrl.objectives.value import GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator

Rollouts = Callable[..., TensorDict]


def gae(critic: TensorDictModule, **options: Any) -> GAE:
    return GAE(**{"gamma": 0.95, "lmbda": 0.9, "value_network": critic, **options})


def needed_budget(td: TensorDict) -> int:
    reset = (td["next", "done"] & ~td["next", "terminated"]).squeeze(-1)
    return 1 + int(reset[..., :-1].sum(-1).max())


@pytest.mark.parametrize("cls", [GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator])
@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (4, 2), (3, 13), (2, 64)])
def test_with_enough_budget_it_is_the_same_as_two_passes(
    cls: Any, rows: int, steps: int, critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    td = make_rollout(rows, steps)
    options = {"gamma": 0.95, "value_network": critic} | ({"lmbda": 0.9} if cls in (GAE, TDLambdaEstimator) else {})
    out = cls(shifted=True, shifted_budget=needed_budget(td), **options)(td.clone())
    expected = cls(**options)(td.clone())
    assert out["shifted_valid"].shape == (rows, steps)
    assert out["shifted_valid"].all()
    for key in ("advantage", "value_target", "state_value"):
        torch.testing.assert_close(out[key], expected[key], rtol=1e-4, atol=1e-5)
    alive = ~td["next", "terminated"]
    torch.testing.assert_close(
        torch.where(alive, out["next", "state_value"], 0.0), torch.where(alive, expected["next", "state_value"], 0.0)
    )


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_a_row_without_room_keeps_a_prefix_and_is_zero_behind_it(
    budget: int, critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    td = make_rollout(16, 12, seed=5)
    out = gae(critic, shifted=True, shifted_budget=budget)(td.clone())
    valid = out["shifted_valid"]
    assert not valid.all()
    for row in range(16):
        kept = int(valid[row].sum())
        assert valid[row, :kept].all()
        expected = gae(critic)(td[row : row + 1, :kept].clone())
        for key in ("advantage", "value_target"):
            torch.testing.assert_close(out[key][row, :kept], expected[key][0], rtol=1e-4, atol=1e-5)
            assert not out[key][row, kept:].any()


def test_each_internal_truncation_takes_one_slot(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    td = make_rollout(1, 6)
    td["next", "done"][:] = td["next", "terminated"][:] = False
    td["next", "done"][0, [2, 4]] = True
    # Slots: o0 o1 o2 n2 o3 o4 n4 o5 n5. The last step needs the ninth, the one before it the seventh.
    for budget, kept in ((1, 5), (2, 5), (3, 6)):
        assert int(gae(critic, shifted=True, shifted_budget=budget)(td.clone())["shifted_valid"].sum()) == kept


def test_a_terminated_last_valid_step_does_not_bootstrap(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    # TorchRL takes it for truncated and adds the value of the next trajectory.
    td = make_rollout(1, 5)
    td["next", "done"][:] = td["next", "terminated"][:] = False
    td["next", "done"][0, [1, 3]] = True
    td["next", "terminated"][0, 3] = True
    out = gae(critic, shifted=True)(td.clone())
    assert out["shifted_valid"].tolist() == [[True, True, True, True, False]]
    torch.testing.assert_close(out["value_target"][0, 3], td["next", "reward"][0, 3])


@pytest.mark.parametrize("how", ["constructor", "call", "name"])
def test_time_may_be_the_first_dimension(how: str, critic: TensorDictModule, make_rollout: Rollouts) -> None:
    td = make_rollout(5, 12)
    expected = gae(critic, shifted=True, shifted_budget=2)(td.clone())
    time_first = td.transpose(0, 1).clone()
    if how == "name":
        time_first.names = ["time", None]
    estimator = gae(critic, shifted=True, shifted_budget=2, time_dim=0 if how == "constructor" else None)
    out = estimator(time_first, time_dim=0 if how == "call" else None)
    for key in ("advantage", "value_target", "shifted_valid"):
        torch.testing.assert_close(out[key], expected[key].transpose(0, 1))
    unshifted = gae(critic)(td.clone())["advantage"].transpose(0, 1)
    valid = out["shifted_valid"].unsqueeze(-1)
    agreeing = (out["advantage"] - unshifted).abs() < 1e-4
    cut = ~out["shifted_valid"].all(0).view(1, -1, 1)  # A cut row bootstraps at its edge, and so differs inside it too.
    assert (agreeing | ~valid | cut).all()


def test_the_network_is_called_once_on_t_plus_budget_steps(make_rollout: Rollouts) -> None:
    shapes = []

    def value(obs: Tensor) -> Tensor:
        shapes.append(tuple(obs.shape))
        return obs.sum(-1, keepdim=True)

    network = TensorDictModule(value, in_keys=["obs"], out_keys=["state_value"])
    gae(network, shifted=True, shifted_budget=3)(make_rollout(2, 6))
    assert shapes == [(2, 9, 3)]


def test_params_are_allowed_if_they_are_one_set(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    params = TensorDict.from_module(critic)
    blank = TensorDictModule(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), ["obs"], ["state_value"])
    expected = gae(critic, shifted=True)(make_rollout(3, 6))["advantage"]
    for target_params in (None, params):
        out = gae(blank, shifted=True)(make_rollout(3, 6), params=params, target_params=target_params)
        torch.testing.assert_close(out["advantage"], expected)
    td = make_rollout(3, 6)
    with pytest.raises(ValueError, match="one set of parameters"):
        gae(blank, shifted=True)(td, params=params, target_params=params.clone())
    assert td.get("advantage", None) is None


def test_gradients_reach_the_observations_as_in_two_passes(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    grads = []
    for shifted in (False, True):
        td = make_rollout(3, 8)
        td["obs"].requires_grad_()
        estimator = gae(critic, shifted=shifted, shifted_budget=8, differentiable=True)
        grads.append(torch.autograd.grad(estimator(td)["advantage"].square().sum(), td["obs"])[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


def test_an_inserted_next_step_continues_its_sequence(make_rollout: Rollouts) -> None:
    seen: list[Tensor] = []

    def value(obs: Tensor, is_init: Tensor) -> Tensor:
        seen.append(is_init)
        return obs.sum(-1, keepdim=True)

    network = TensorDictModule(value, in_keys=["obs", "is_init"], out_keys=["state_value"])
    td = make_rollout(1, 3)
    td["next", "done"][:] = td["next", "terminated"][:] = False
    td["next", "done"][0, 0] = True
    td["is_init"] = torch.tensor([[[True], [True], [False]]])
    gae(network, shifted=True, shifted_budget=2)(td)
    # o0, next o0 (of the one-step trajectory), o1, o2, next o2
    assert seen[0].flatten().tolist() == [True, False, True, False, False]


def test_average_gae_takes_the_valid_steps_only(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    td = make_rollout(6, 12, seed=5)
    plain = gae(critic, shifted=True)(td.clone())
    out = gae(critic, shifted=True, average_gae=True)(td.clone())
    valid = plain["shifted_valid"].unsqueeze(-1)
    kept = plain["advantage"][valid]
    torch.testing.assert_close(out["advantage"][valid], (kept - kept.mean()) / kept.std(unbiased=False))
    assert not out["advantage"][~valid].any()
    assert torch.equal(out["value_target"], plain["value_target"])


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_valid_steps_and_results_are_torchrls(
    budget: int, critic: TensorDictModule, make_rollout: Rollouts, quiet_torchrl: Any
) -> None:
    td = make_rollout(16, 9, seed=5)
    ours = gae(critic, shifted=True, shifted_budget=budget)(td.clone())
    theirs = quiet_torchrl.GAE(gamma=0.95, lmbda=0.9, value_network=critic, shifted=True, shifted_budget=budget)(
        td.clone()
    )
    valid = ours["shifted_valid"]
    assert torch.equal(valid, theirs["shifted_valid"])
    # Rows whose last valid step terminated: TorchRL bootstraps there.
    last = valid.sum(-1, keepdim=True) - 1
    wrong = td["next", "terminated"].squeeze(-1).gather(1, last) & ~valid.all(-1, keepdim=True)
    assert not wrong.all()
    for key in ("advantage", "value_target", "state_value", ("next", "state_value")):
        same = wrong.unsqueeze(-1) | torch.isclose(ours[key], theirs[key], rtol=1e-4, atol=1e-5)
        assert same.all(), key
