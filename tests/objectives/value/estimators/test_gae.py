"""GAE: numbers against an oracle that sums instead of recursing, identities, parity with TorchRL, compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tritonrl.objectives.value import GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator

Rollouts = Callable[..., TensorDict]


def summed_gae(td: TensorDict, v: Tensor, w: Tensor, gamma: float, lmbda: float) -> Tensor:
    """A[t] = sum over k of (gamma lmbda)^k delta[t+k] up to the first done, in float64, for ``[N, T, 1]``."""
    reward, done, terminated = (td["next", key].squeeze(-1) for key in ("reward", "done", "terminated"))
    v, w, reward = v.double().squeeze(-1), w.double().squeeze(-1), reward.double()
    advantage = torch.zeros_like(reward)
    for row in range(reward.shape[0]):
        for t in range(reward.shape[1]):
            for k in range(t, reward.shape[1]):
                future = 0.0 if terminated[row, k] else float(w[row, k])
                delta = float(reward[row, k]) + gamma * future - float(v[row, k])
                advantage[row, t] += (gamma * lmbda) ** (k - t) * delta
                if done[row, k]:
                    break
    return advantage.unsqueeze(-1)


def values_of(critic: TensorDictModule, td: TensorDict) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return critic.module(td["obs"]), critic.module(td["next", "obs"])


@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (3, 2), (2, 7), (5, 37), (1, 129)])
def test_the_advantage_is_the_sum_of_discounted_errors_up_to_the_end(
    rows: int, steps: int, critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    td = make_rollout(rows, steps)
    v, w = values_of(critic, td)
    out = GAE(gamma=0.97, lmbda=0.9, value_network=critic)(td)
    expected = summed_gae(td, v, w, 0.97, 0.9)
    assert out is td
    torch.testing.assert_close(out["advantage"].double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out["value_target"].double(), expected + v.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out["state_value"], v)
    torch.testing.assert_close(out["next", "state_value"], w)


@pytest.mark.parametrize(("rows", "steps"), [(0, 4), (4, 0)])
def test_an_empty_rollout_gives_empty_results(
    rows: int, steps: int, critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    out = GAE(gamma=0.97, lmbda=0.9, value_network=critic)(make_rollout(rows, steps))
    assert out["advantage"].shape == (rows, steps, 1)


@pytest.mark.parametrize("how", ["constructor", "call", "name", "negative"])
def test_time_may_be_the_first_batch_dimension(how: str, critic: TensorDictModule, make_rollout: Rollouts) -> None:
    td = make_rollout(3, 11)
    expected = GAE(gamma=0.97, lmbda=0.9, value_network=critic)(td.clone())["advantage"].transpose(0, 1)
    time_first = td.transpose(0, 1).clone()
    if how == "name":
        time_first.names = ["time", None]
    gae = GAE(gamma=0.97, lmbda=0.9, value_network=critic, time_dim={"constructor": 0, "negative": -2}.get(how))
    out = gae(time_first, time_dim=0 if how == "call" else None)
    torch.testing.assert_close(out["advantage"], expected)


def test_a_truncated_step_still_bootstraps_and_a_terminated_one_does_not() -> None:
    td = TensorDict(
        {
            "state_value": torch.zeros(2, 1),
            "next": {
                "state_value": torch.tensor([[5.0], [7.0]]),
                "reward": torch.ones(2, 1),
                "done": torch.ones(2, 1, dtype=torch.bool),
                "terminated": torch.tensor([[False], [True]]),
            },
        },
        batch_size=[2],
    )
    advantage = GAE(gamma=0.5, lmbda=1.0, value_network=None)(td)["advantage"]
    assert advantage.flatten().tolist() == [3.5, 1.0]


def test_without_a_terminated_flag_done_means_terminated(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    td = make_rollout(2, 6)
    td["next", "terminated"] = td["next", "done"]
    gae = GAE(gamma=0.9, lmbda=0.9, value_network=critic)
    expected = gae(td.clone())["advantage"]
    out = gae(td.exclude(("next", "terminated")))
    assert torch.equal(out["advantage"], expected)
    assert ("next", "terminated") not in out.keys(True)


def test_nan_behind_terminated_reaches_neither_results_nor_gradients(
    critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    td = make_rollout(2, 9)
    td["next", "done"][:, 3] = td["next", "terminated"][:, 3] = True
    v, w = values_of(critic, td)
    w[td["next", "terminated"]] = float("nan")
    v.requires_grad_()
    td["state_value"], td["next", "state_value"] = v, w
    out = GAE(gamma=0.9, lmbda=0.9, value_network=None, differentiable=True)(td)
    assert out["advantage"].isfinite().all()
    assert torch.autograd.grad(out["advantage"].sum(), v)[0].isfinite().all()


def test_lambda_one_is_td1_and_lambda_zero_is_td0(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    def advantage(estimator: Any) -> Tensor:
        return estimator(make_rollout(3, 17, dtype=torch.float64))["advantage"]

    critic = critic.double()
    td0, td1 = TD0Estimator(gamma=0.95, value_network=critic), TD1Estimator(gamma=0.95, value_network=critic)
    torch.testing.assert_close(advantage(GAE(gamma=0.95, lmbda=0.0, value_network=critic)), advantage(td0))
    torch.testing.assert_close(advantage(GAE(gamma=0.95, lmbda=1.0, value_network=critic)), advantage(td1))
    # Inside trajectories next_obs[t] is obs[t+1] here: then GAE is TD(lambda) for every lambda.
    td_lambda = TDLambdaEstimator(gamma=0.95, lmbda=0.6, value_network=critic)
    torch.testing.assert_close(advantage(GAE(gamma=0.95, lmbda=0.6, value_network=critic)), advantage(td_lambda))


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "vectorized": {"vectorized": True},
    "average_gae": {"average_gae": True},
    "auto_reset_env": {"auto_reset_env": True},
    "deactivate_vmap": {"deactivate_vmap": True},
    "value_chunk_size": {"value_chunk_size": 2},
    "num_chunks": {"num_chunks": 3, "value_chunk_dim": -1},
    "num_chunk": {"num_chunk": 7},
    "groups": {"average_gae": True, "group_key": "task"},
    "shifted": {"shifted": True},
    "shifted, budget": {"shifted": True, "shifted_budget": 4, "average_gae": True},
    "time_dim": {"time_dim": 0},
    "integer coefficients": {"gamma": 1, "lmbda": 1},
    "tensor coefficients": {"gamma": torch.tensor(0.9), "lmbda": torch.tensor(0.7)},
    "steps_to_next_obs": {"steps": True},
    "skip_existing": {"skip_existing": True, "existing": True},
    "recompute": {"skip_existing": False, "existing": True},
}


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_values_gradients_and_keys_are_those_of_torchrl(
    name: str, differentiable: bool, critic: TensorDictModule, make_rollout: Rollouts, quiet_torchrl: Any
) -> None:
    options = {"gamma": 0.95, "lmbda": 0.9} | OPTIONS[name]
    steps, existing = options.pop("steps", False), options.pop("existing", False)

    def run(cls: Any) -> tuple[TensorDict, list[Tensor]]:
        # Two truncations in row 0, but never a terminated last valid step, where TorchRL bootstraps: see test_shifted.
        td = make_rollout(4, 9, seed=3)
        td["next", "terminated"][...] = td["next", "terminated"] & (torch.arange(9) < 2).view(1, 9, 1)
        td["task"] = torch.tensor([[4, 4, 4, 7, 7, 7, 7, 2, 4]]).expand(4, 9).clone()
        if steps:
            td["steps_to_next_obs"] = torch.randint(1, 4, (4, 9, 1), generator=torch.Generator().manual_seed(0))
        if existing:
            td["state_value"], td["next", "state_value"] = torch.ones(4, 9, 1), torch.full((4, 9, 1), 2.0)
        leaves = [td["obs"], td["next", "obs"], td["next", "reward"]]
        for leaf in leaves:
            leaf.requires_grad_()
        out = cls(value_network=critic, differentiable=differentiable, **options)(td)
        loss = (out["advantage"] * torch.arange(36.0).view(4, 9, 1)).sum() + out["value_target"].square().sum()
        if not differentiable:
            assert not loss.requires_grad
            return out.detach(), []
        # One path may have no edge to the next observations, another a zero gradient: both say the same.
        grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return out.detach(), list(grads)

    ours, our_grads = run(GAE)
    theirs, their_grads = run(quiet_torchrl.GAE)
    assert set(ours.keys(True, True)) == set(theirs.keys(True, True))
    for key in theirs.keys(True, True):
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")
    for our, their in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


def test_value_estimate_is_torchrls(critic: TensorDictModule, make_rollout: Rollouts, quiet_torchrl: Any) -> None:
    results = []
    for cls in (GAE, quiet_torchrl.GAE):
        td = make_rollout(3, 8)
        td["obs"].requires_grad_()
        target = cls(gamma=0.95, lmbda=0.9, value_network=critic).value_estimate(td)
        results.append((target, torch.autograd.grad(target.sum(), td["obs"])[0], set(td.keys(True, True))))
    (ours, our_grad, our_keys), (theirs, their_grad, their_keys) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(our_grad, their_grad, rtol=1e-4, atol=1e-5)
    assert our_keys == their_keys


def test_value_estimate_agrees_with_forward_also_for_self_resetting_environments(
    critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    gae = GAE(gamma=0.95, lmbda=0.9, value_network=critic, auto_reset_env=True)
    assert torch.equal(gae.value_estimate(make_rollout(3, 8)), gae(make_rollout(3, 8))["value_target"])


def test_value_estimate_uses_the_next_value_that_it_is_given(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    td = make_rollout(3, 8)
    v, _ = values_of(critic, td)
    given = torch.full((3, 8, 1), 4.0)
    target = GAE(gamma=0.9, lmbda=0.8, value_network=critic).value_estimate(td, next_value=given)
    expected = summed_gae(td, v, given, 0.9, 0.8) + v
    torch.testing.assert_close(target.double(), expected, rtol=1e-5, atol=1e-5)
    assert ("next", "state_value") not in td.keys(True)
    with pytest.raises(RuntimeError, match=r"\(3, 8\).*\(3, 8, 1\)"):
        GAE(gamma=0.9, lmbda=0.8, value_network=critic).value_estimate(td, next_value=given.squeeze(-1))


def test_float64_data_see_the_exact_discount(make_rollout: Rollouts) -> None:
    steps = 2000
    td = TensorDict(
        {
            "state_value": torch.zeros(steps, 1, dtype=torch.float64),
            "next": {
                "state_value": torch.zeros(steps, 1, dtype=torch.float64),
                "reward": torch.ones(steps, 1, dtype=torch.float64),
                "done": torch.zeros(steps, 1, dtype=torch.bool),
            },
        },
        batch_size=[steps],
    )
    first = GAE(gamma=0.999, lmbda=1.0, value_network=None)(td)["advantage"][0].item()
    assert first == pytest.approx((1 - 0.999**steps) / (1 - 0.999), rel=1e-12)


def test_float32_data_see_the_float32_discount(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    by_number = GAE(gamma=0.99, lmbda=0.95, value_network=critic)(make_rollout(2, 50))
    by_tensor = GAE(gamma=torch.tensor(0.99), lmbda=torch.tensor(0.95), value_network=critic)(make_rollout(2, 50))
    assert by_number["advantage"].dtype == torch.float32
    assert torch.equal(by_number["advantage"], by_tensor["advantage"])


def test_converting_the_module_does_not_round_the_discounts() -> None:
    gae = GAE(gamma=0.99, lmbda=0.95, value_network=None)
    for convert in (gae.half, gae.bfloat16, gae.float, gae.double):
        convert()
        assert (gae.gamma.item(), gae.lmbda.item()) == (0.99, 0.95)


def test_a_number_can_be_assigned_to_a_coefficient_and_is_saved() -> None:
    gae = GAE(gamma=1, lmbda=0.95, value_network=None)
    gae.gamma = 0.5
    other = GAE(gamma=0.1, lmbda=0.1, value_network=None)
    other.load_state_dict(gae.state_dict())
    assert (other.gamma.item(), other.lmbda.item()) == (0.5, 0.95)
    assert not list(gae.parameters())


def test_a_coefficient_that_is_no_number_is_refused() -> None:
    with pytest.raises(TypeError, match=r"gamma must be a number or a tensor, got None"):
        GAE(gamma=None, lmbda=0.9, value_network=None)  # type: ignore[arg-type]


def test_gradients_reach_tensor_coefficients(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    gamma = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    lmbda = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    critic = critic.double()

    def total(gamma: Tensor, lmbda: Tensor) -> Tensor:
        gae = GAE(gamma=gamma, lmbda=lmbda, value_network=critic, differentiable=True)
        return gae(make_rollout(2, 5, dtype=torch.float64))["advantage"].square().sum()

    assert torch.autograd.gradcheck(total, (gamma, lmbda))


def test_per_step_discounts_are_allowed(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    full = torch.full((2, 6, 1), 0.9)
    by_step = GAE(gamma=full, lmbda=full, value_network=critic)(make_rollout(2, 6))
    by_number = GAE(gamma=0.9, lmbda=0.9, value_network=critic)(make_rollout(2, 6))
    torch.testing.assert_close(by_step["advantage"], by_number["advantage"])


def test_n_step_rewards_are_discounted_by_the_steps_that_they_span(
    critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    td = make_rollout(2, 6)
    td["steps_to_next_obs"] = torch.full((2, 6), 3)  # No trailing dimension: one entry per step all the same.
    cubed = GAE(gamma=0.9**3, lmbda=0.8, value_network=critic)(make_rollout(2, 6))
    out = GAE(gamma=0.9, lmbda=0.8, value_network=critic)(td)
    torch.testing.assert_close(out["advantage"], cubed["advantage"])


def test_a_self_resetting_environment_needs_its_truncated_flag(
    critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    td = make_rollout(2, 6).exclude(("next", "truncated"))
    with pytest.raises(KeyError, match="truncated"):
        GAE(gamma=0.9, lmbda=0.8, value_network=critic, auto_reset_env=True)(td)


def test_groups_are_only_needed_to_standardise(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    td = make_rollout(2, 6)
    GAE(gamma=0.9, lmbda=0.8, value_network=critic, group_key="task")(td.clone())
    before = set(td.keys(True, True))
    with pytest.raises(KeyError, match="task"):
        GAE(gamma=0.9, lmbda=0.8, value_network=critic, group_key="task", average_gae=True)(td)
    assert set(td.keys(True, True)) == before


def test_the_signals_may_have_several_features(make_rollout: Rollouts) -> None:
    critic = TensorDictModule(nn.Linear(3, 5), in_keys=["obs"], out_keys=["state_value"])
    td = make_rollout(2, 6)
    for key in ("reward", "done", "terminated"):
        td["next", key] = td["next", key].expand(2, 6, 5)
    out = GAE(gamma=0.9, lmbda=0.8, value_network=critic)(td.clone())
    for feature in range(5):
        single = make_rollout(2, 6)
        for side in ((), ("next",)):
            single[(*side, "state_value")] = out[(*side, "state_value")][..., feature : feature + 1]
        expected = GAE(gamma=0.9, lmbda=0.8, value_network=None)(single)["advantage"]
        torch.testing.assert_close(out["advantage"][..., feature : feature + 1], expected)


def test_keyword_tensors_give_advantage_and_target(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    td = make_rollout(2, 6)
    gae = GAE(gamma=0.9, lmbda=0.8, value_network=critic)
    entries = {f"next_{key}": td["next", key] for key in ("obs", "reward", "done", "terminated")}
    advantage, target = gae(obs=td["obs"], **entries)
    out = gae(td)
    assert torch.equal(advantage, out["advantage"])
    assert torch.equal(target, out["value_target"])
    without_terminated = {name: entry for name, entry in entries.items() if name != "next_terminated"}
    assert len(gae(obs=td["obs"], **without_terminated)) == 2


COMPILED: dict[str, dict[str, Any]] = {
    "defaults": {},
    "differentiable": {"differentiable": True},
    "standardised": {"average_gae": True},
    "groups": {"average_gae": True, "group_key": "task"},
    "shifted": {"shifted": True, "shifted_budget": 3, "average_gae": True},
    "shifted with params": {"shifted": True, "with_params": True},
    "params": {"with_params": True, "differentiable": True},
    "chunks": {"num_chunks": 2},
    "no vmap": {"deactivate_vmap": True},
    "auto reset": {"auto_reset_env": True},
}


@pytest.mark.parametrize("name", list(COMPILED))
def test_forward_compiles_whole_and_once(
    name: str, critic: TensorDictModule, make_rollout: Rollouts, no_recompile: None
) -> None:
    options = dict(COMPILED[name])
    params = TensorDict.from_module(critic) if options.pop("with_params", False) else None
    gae = GAE(gamma=0.97, lmbda=0.9, value_network=critic, **options)

    def advantage(td: TensorDict) -> tuple[Tensor, Tensor, Tensor | None]:
        td["task"] = torch.arange(7).expand(3, 7) % 2
        td["obs"].requires_grad_(gae.differentiable)
        out = gae(td, params=params, target_params=params)
        total = out["advantage"].square().sum()
        grad = torch.autograd.grad(total, td["obs"])[0] if gae.differentiable else None
        return out["advantage"].detach(), out["value_target"].detach(), grad

    def eager(td: TensorDict) -> tuple[Tensor, Tensor, Tensor | None]:
        return advantage(td)

    whole = torch.compile(gae, fullgraph=True, backend="eager")

    def compiled(td: TensorDict) -> tuple[Tensor, Tensor, Tensor | None]:
        td["task"] = torch.arange(7).expand(3, 7) % 2
        td["obs"].requires_grad_(gae.differentiable)
        out = whole(td, params=params, target_params=params)
        grad = torch.autograd.grad(out["advantage"].square().sum(), td["obs"])[0] if gae.differentiable else None
        return out["advantage"].detach(), out["value_target"].detach(), grad

    for gamma, lmbda in ((0.97, 0.9), (0.5, 0.9), (0.5, 0.1)):
        gae.gamma = gamma
        gae.lmbda = lmbda
        for seed in (0, 1):
            expected = eager(make_rollout(3, 7, seed=seed))
            for ours, theirs in zip(compiled(make_rollout(3, 7, seed=seed)), expected, strict=True):
                torch.testing.assert_close(ours, theirs)


def test_the_compiled_backward_gives_the_eager_gradients(
    critic: TensorDictModule, make_rollout: Rollouts, no_recompile: None
) -> None:
    gae = GAE(gamma=0.97, lmbda=0.9, value_network=critic, differentiable=True)
    whole = torch.compile(gae, fullgraph=True, backend="aot_eager")
    grads = []
    for function in (gae, whole):
        td = make_rollout(3, 7)
        td["next", "reward"].requires_grad_()
        grads.append(torch.autograd.grad(function(td)["advantage"].square().sum(), td["next", "reward"])[0])
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("options", [{}, {"shifted": True, "shifted_budget": 3, "average_gae": True}])
def test_new_batch_sizes_recompile_once_to_dynamic_shapes(
    options: dict[str, Any], critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    torch._dynamo.reset()
    gae = GAE(gamma=0.97, lmbda=0.9, value_network=critic, **options)
    whole = torch.compile(gae, fullgraph=True, backend="eager")
    whole(make_rollout(4, 6))
    whole(make_rollout(5, 7))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows, steps in ((8, 9), (3, 20), (20, 3)):
            expected, out = gae(make_rollout(rows, steps)), whole(make_rollout(rows, steps))
            torch.testing.assert_close(out["advantage"], expected["advantage"])
    torch._dynamo.reset()


class OpsSeen(TorchDispatchMode):
    """The names of our operators that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "tritonrl":
            self.names.append(func._schema.name.split("::")[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("options", "op"),
    [
        ({"average_gae": True}, "gae_extended"),
        ({"average_gae": True, "valid_key": "mask"}, "gae_extended"),
        ({"average_gae": True, "differentiable": True}, "gae"),
        ({"average_gae": True, "group_key": "task"}, "gae"),
        ({}, "gae"),
    ],
    ids=["averaged", "averaged over valid steps", "with a gradient", "by group", "not averaged"],
)
def test_standardising_takes_the_moments_of_the_kernel_where_they_are_the_right_ones(
    options: dict[str, Any], op: str, critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    td = make_rollout(3, 7)
    td["task"] = torch.arange(7).expand(3, 7) % 2
    td["mask"] = torch.arange(7).expand(3, 7) < torch.tensor([[7], [4], [1]])
    td["next", "reward"].requires_grad_("differentiable" in options)
    with OpsSeen() as seen:
        GAE(gamma=0.97, lmbda=0.9, value_network=critic, **options)(td)
    assert seen.names == [op]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_moments_of_the_kernel_standardise_as_two_passes_over_the_advantage_do(
    dtype: torch.dtype, critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    td = make_rollout(5, 129).apply(lambda x: x.to(dtype) if x.is_floating_point() else x)
    network = critic.to(dtype)
    plain = GAE(gamma=0.97, lmbda=0.9, value_network=network)(td.clone())["advantage"].double()
    averaged = GAE(gamma=0.97, lmbda=0.9, value_network=network, average_gae=True)(td.clone())["advantage"]
    assert averaged.dtype is dtype
    expected = (plain - plain.mean()) / plain.std().clamp_min(1e-4)
    torch.testing.assert_close(
        averaged,
        expected.to(dtype),
        rtol=1e-5 if dtype is not torch.bfloat16 else 1e-2,
        atol=1e-2 if dtype is torch.bfloat16 else 1e-5,
    )
