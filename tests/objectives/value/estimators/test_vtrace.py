"""V-trace: the sum of the paper against the recursion, identities, parity with TorchRL, keys, errors, compilation."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal

from tritonrl.objectives.value import TD1Estimator, VTrace

Rollouts = Callable[..., TensorDict]


class StoredNormal(Independent):
    """A normal distribution whose "deterministic sample" is the action that the test has put into the rollout.

    TorchRL scores an action drawn anew; with this one it draws the stored action, and is right.
    """

    stored: ClassVar[Tensor]

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(Normal(loc, scale), 1)

    @property
    def deterministic_sample(self) -> Tensor:
        return StoredNormal.stored


def make_actor(seed: int = 0, out_key: Any = "action") -> Any:
    torch.manual_seed(seed)
    net = TensorDictModule(nn.Sequential(nn.Linear(3, 4), NormalParamExtractor()), ["obs"], ["loc", "scale"])
    draw = ProbabilisticTensorDictModule(
        ["loc", "scale"], [out_key], distribution_class=StoredNormal, return_log_prob=True
    )
    return ProbabilisticTensorDictSequential(net, draw)


def log_prob(actor: Any, obs: Tensor, action: Tensor) -> Tensor:
    """Of a diagonal normal of two dimensions, written out."""
    loc, scale = actor[0].module(obs)
    return (-0.5 * ((action - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


@pytest.fixture
def actor() -> Any:
    """The policy that is evaluated."""
    return make_actor()


@pytest.fixture
def make_stale(make_rollout: Rollouts) -> Rollouts:
    """Rollouts whose actions another policy has drawn, with their log-probabilities."""

    def make(*batch: int, dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any) -> TensorDict:
        td = make_rollout(*batch, dtype=dtype, seed=seed, **options)
        td["action"] = torch.randn(*batch, 2, generator=torch.Generator().manual_seed(seed)).to(dtype)
        with torch.no_grad():
            td["action_log_prob"] = log_prob(make_actor(7).to(dtype), td["obs"], td["action"])
        return td

    return make


def vtrace(actor: Any, critic: Any, **options: Any) -> VTrace:
    return VTrace(**{"gamma": 0.95, "actor_network": actor, "value_network": critic, **options})


def values_of(critic: TensorDictModule, td: TensorDict) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return critic.module(td["obs"]), critic.module(td["next", "obs"])


def summed_vtrace(
    td: TensorDict, v: Tensor, w: Tensor, ratio: Tensor, gamma: float, rho_thresh: float, c_thresh: float
) -> tuple[Tensor, Tensor]:
    """Equation 1 of the paper, term by term, for ``[N, T]``: v + sum of gamma^k c[t] ... c[t+k-1] delta[t+k]."""
    reward, done, terminated = (td["next", key].squeeze(-1) for key in ("reward", "done", "terminated"))
    rho, c = ratio.clamp(max=rho_thresh), ratio.clamp(max=c_thresh)
    rows, steps = reward.shape
    advantage, target = torch.zeros_like(reward), torch.zeros_like(reward)
    for n in range(rows):
        for t in range(steps):
            target[n, t], weight = v[n, t], 1.0
            for k in range(t, steps):
                future = 0.0 if terminated[n, k] else w[n, k]
                target[n, t] += weight * rho[n, k] * (reward[n, k] + gamma * future - v[n, k])
                weight = weight * gamma * c[n, k]
                if done[n, k]:
                    break
        for t in range(steps):
            ends = bool(done[n, t]) or t == steps - 1
            future = 0.0 if terminated[n, t] else w[n, t] if ends else target[n, t + 1]
            advantage[n, t] = rho[n, t] * (reward[n, t] + gamma * future - v[n, t])
    return advantage, target


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (3, 2), (2, 7), (4, 29)])
@pytest.mark.parametrize(("rho_thresh", "c_thresh"), [(1.0, 1.0), (0.6, 0.3), (float("inf"), 2.0), (1.5, 0.0)])
def test_the_target_is_the_sum_of_weighted_errors_of_the_paper(
    rows: int,
    steps: int,
    rho_thresh: float,
    c_thresh: float,
    actor: Any,
    critic: TensorDictModule,
    make_stale: Rollouts,
) -> None:
    actor, critic = actor.double(), critic.double()
    td = make_stale(rows, steps, dtype=torch.float64)
    v, w = values_of(critic, td)
    ratio = (log_prob(actor, td["obs"], td["action"]) - td["action_log_prob"]).exp().detach()
    expected = summed_vtrace(td, v.squeeze(-1), w.squeeze(-1), ratio, 0.97, rho_thresh, c_thresh)
    estimator = vtrace(actor, critic, gamma=0.97, rho_thresh=rho_thresh, c_thresh=c_thresh)
    out = estimator(td)
    assert out is td
    torch.testing.assert_close(out["advantage"].squeeze(-1), expected[0])
    torch.testing.assert_close(out["value_target"].squeeze(-1), expected[1])
    torch.testing.assert_close(out["state_value"], v)
    torch.testing.assert_close(out["next", "state_value"], w)


def test_on_data_of_the_policy_itself_the_target_is_the_td1_return(
    actor: Any, critic: TensorDictModule, make_stale: Rollouts
) -> None:
    actor, critic = actor.double(), critic.double()
    td = make_stale(3, 17, dtype=torch.float64)
    with torch.no_grad():
        td["action_log_prob"] = log_prob(actor, td["obs"], td["action"])
    expected = TD1Estimator(gamma=0.95, value_network=critic)(td.clone())
    out = vtrace(actor, critic)(td)
    torch.testing.assert_close(out["value_target"], expected["value_target"])
    torch.testing.assert_close(out["advantage"], expected["advantage"])


def test_the_action_that_is_scored_is_the_stored_one(
    actor: Any, critic: TensorDictModule, make_stale: Rollouts
) -> None:
    StoredNormal.stored = torch.full((3, 8, 2), float("nan"))  # nothing may be drawn
    td = make_stale(3, 8)
    out = vtrace(actor, critic)(td.clone())
    torch.manual_seed(5)
    assert torch.equal(vtrace(actor, critic)(td.clone())["advantage"], out["advantage"])
    td["action"] = td["action"] + 1.0
    assert not torch.allclose(vtrace(actor, critic)(td)["value_target"], out["value_target"])


def test_without_a_terminated_flag_done_means_terminated(
    actor: Any, critic: TensorDictModule, make_stale: Rollouts
) -> None:
    td = make_stale(2, 6)
    td["next", "terminated"] = td["next", "done"]
    expected = vtrace(actor, critic)(td.clone())["advantage"]
    assert torch.equal(vtrace(actor, critic)(td.exclude(("next", "terminated")))["advantage"], expected)


@pytest.mark.parametrize("how", ["constructor", "call", "name"])
def test_time_may_be_the_first_batch_dimension(
    how: str, actor: Any, critic: TensorDictModule, make_stale: Rollouts
) -> None:
    td = make_stale(3, 11)
    expected = vtrace(actor, critic)(td.clone())["advantage"].transpose(0, 1)
    time_first = td.transpose(0, 1).clone()
    if how == "name":
        time_first.names = ["time", None]
    estimator = vtrace(actor, critic, time_dim=0 if how == "constructor" else None)
    torch.testing.assert_close(estimator(time_first, time_dim=0 if how == "call" else None)["advantage"], expected)


@pytest.mark.parametrize("time_dim", [0, 1])
def test_each_agent_may_have_its_own_log_probability(time_dim: int, make_rollout: Rollouts) -> None:
    """Values, rewards and flags ``[B, T, n, 1]`` with log-probabilities ``[B, T, n]``: each agent by itself."""
    agents = [make_rollout(5, 7, seed=seed) for seed in (0, 1)]
    for index, agent in enumerate(agents):
        agent["state_value"] = torch.randn(5, 7, 1)
        agent["next", "state_value"] = torch.randn(5, 7, 1)
        agent["action"] = torch.randn(5, 7, 2) + index
        agent["action_log_prob"] = torch.randn(5, 7)
    team = TensorDict({}, [5, 7])
    for key in agents[0].keys(True, True):
        team[key] = torch.stack([agent[key] for agent in agents], 2)
    estimator = vtrace(make_actor(), None, time_dim=time_dim)
    out = estimator(team)["advantage"]
    assert out.shape == (5, 7, 2, 1)
    for index, agent in enumerate(agents):
        torch.testing.assert_close(out[:, :, index], estimator(agent)["advantage"])


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_an_empty_rollout_gives_empty_results(
    shape: tuple[int, int], critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    logits = TensorDictModule(nn.Linear(3, 2), ["obs"], ["logits"])
    draw = ProbabilisticTensorDictModule(["logits"], ["action"], distribution_class=Categorical, return_log_prob=True)
    td = make_rollout(*shape)
    td["action"], td["action_log_prob"] = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
    out = vtrace(ProbabilisticTensorDictSequential(logits, draw), critic)(td)
    assert out["advantage"].shape == out["value_target"].shape == (*shape, 1)


# Parity ---------------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "thresholds": {"rho_thresh": 0.7, "c_thresh": 0.4},
    "tensor coefficients": {
        "gamma": torch.tensor(0.9),
        "rho_thresh": torch.tensor(1.3),
        "c_thresh": torch.tensor(0.8),
    },
    "integer coefficients": {"gamma": 1, "rho_thresh": 2, "c_thresh": 1},
    "average_adv": {"average_adv": True},
    "groups": {"average_adv": True, "group_key": "task"},
    "value_chunk_size": {"value_chunk_size": 2},
    "num_chunk": {"num_chunk": 7, "value_chunk_dim": -1},
    "shifted": {"shifted": True, "shifted_budget": 4},
    "time_dim": {"time_dim": 0},
    "steps_to_next_obs": {"steps": True},
    "skip_existing": {"skip_existing": True, "existing": True},
}


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_values_gradients_and_keys_are_those_of_torchrl_where_it_scores_the_stored_action(
    name: str,
    differentiable: bool,
    actor: Any,
    critic: TensorDictModule,
    make_stale: Rollouts,
    quiet_torchrl: Any,
) -> None:
    options = dict(OPTIONS[name])
    steps, existing = options.pop("steps", False), options.pop("existing", False)

    def run(cls: Any) -> tuple[TensorDict, list[Tensor]]:
        td = make_stale(4, 9, seed=3)
        td["next", "terminated"][...] = td["next", "terminated"] & (torch.arange(9) < 2).view(1, 9, 1)
        td["task"] = torch.tensor([[4, 4, 4, 7, 7, 7, 7, 2, 4]]).expand(4, 9).clone()
        if steps:
            td["steps_to_next_obs"] = torch.randint(1, 4, (4, 9, 1), generator=torch.Generator().manual_seed(0))
        if existing:
            td["state_value"], td["next", "state_value"] = torch.ones(4, 9, 1), torch.full((4, 9, 1), 2.0)
        StoredNormal.stored = td["action"].clone()
        leaves = [td["obs"], td["next", "obs"], td["next", "reward"]]
        for leaf in leaves:
            leaf.requires_grad_()
        full = {"gamma": 0.95, "actor_network": actor, "value_network": critic, **options}
        out = cls(differentiable=differentiable, **full)(td)
        loss = (out["advantage"] * torch.arange(36.0).view(4, 9, 1)).sum() + out["value_target"].square().sum()
        if not differentiable:
            assert not loss.requires_grad
            return out.detach(), []
        return out.detach(), list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))

    ours, our_grads = run(VTrace)
    theirs, their_grads = run(quiet_torchrl.VTrace)
    assert set(ours.keys(True, True)) == set(theirs.keys(True, True))
    for key in theirs.keys(True, True):
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")
    for our, their in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=2e-4)


def test_keys_and_state_are_those_of_torchrl_and_the_action(
    actor: Any, critic: TensorDictModule, quiet_torchrl: Any
) -> None:
    ours, theirs = vtrace(actor, critic), quiet_torchrl.VTrace(gamma=0.95, actor_network=actor, value_network=critic)
    assert ours.in_keys == [*theirs.in_keys, "action"]
    assert ours.out_keys == theirs.out_keys
    assert vars(ours.tensor_keys) == {**vars(theirs.tensor_keys), "action": "action"}
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [id(p) for p in ours.parameters()] == [id(p) for p in actor.parameters()]


def test_average_adv_takes_the_valid_steps_only(actor: Any, critic: TensorDictModule, make_stale: Rollouts) -> None:
    td = make_stale(6, 12, seed=5)
    plain = vtrace(actor, critic, shifted=True)(td.clone())
    out = vtrace(actor, critic, shifted=True, average_adv=True)(td.clone())
    valid = plain["shifted_valid"].unsqueeze(-1)
    assert not valid.all()
    kept = plain["advantage"][valid]
    torch.testing.assert_close(out["advantage"][valid], (kept - kept.mean()) / kept.std(unbiased=False))
    assert not out["advantage"][~valid].any()
    assert torch.equal(out["value_target"], plain["value_target"])


# Gradients ------------------------------------------------------------------------------------------------------------


def test_no_parameter_gets_a_gradient_and_no_flag_changes(
    actor: Any, critic: TensorDictModule, make_stale: Rollouts
) -> None:
    linear = actor[0].module[0]
    linear.bias.requires_grad_(False)
    networks = nn.ModuleList([actor, critic])
    original = list(networks.parameters())
    flags = [parameter.requires_grad for parameter in original]
    during: list[list[bool]] = []
    linear.register_forward_hook(lambda *_: during.append([p.requires_grad for p in original]))
    td = make_stale(3, 6)
    td["obs"].requires_grad_()
    out = vtrace(actor, critic, differentiable=True)(td)
    out["advantage"].sum().backward()
    assert td["obs"].grad is not None
    assert all(parameter.grad is None for parameter in original)
    assert during == [flags]
    assert [parameter.requires_grad for parameter in networks.parameters()] == flags
    assert all(now is then for now, then in zip(networks.parameters(), original, strict=True))


def test_gradients_reach_the_observations_through_value_and_policy(
    actor: Any, critic: TensorDictModule, make_stale: Rollouts
) -> None:
    actor, critic = actor.double(), critic.double()
    td = make_stale(2, 5, dtype=torch.float64)
    stored = td["action_log_prob"]
    # Far from the caps, where the slope of the minimum is not defined.
    td["action_log_prob"] = stored + torch.where(torch.arange(5) % 2 == 0, 3.0, -3.0)

    def results(obs: Tensor) -> tuple[Tensor, Tensor]:
        out = vtrace(actor, critic, differentiable=True)(td.clone().set("obs", obs))
        return out["advantage"], out["value_target"]

    assert torch.autograd.gradcheck(results, (td["obs"].requires_grad_(),))
    by_value = critic.module(td["obs"].detach().clone().requires_grad_())
    assert by_value.requires_grad
    constant = TensorDictModule(lambda obs: torch.zeros(*obs.shape[:-1], 1), in_keys=["obs"], out_keys=["state_value"])
    out = vtrace(actor, constant, differentiable=True, deactivate_vmap=True)(td.clone())
    assert torch.autograd.grad(out["value_target"].sum(), td["obs"])[0].abs().sum() > 0


def test_gradients_reach_tensor_coefficients(actor: Any, critic: TensorDictModule, make_stale: Rollouts) -> None:
    names = ("gamma", "rho_thresh", "c_thresh")
    coefficients = {name: torch.tensor(0.6, requires_grad=True) for name in names}
    out = vtrace(actor, critic, differentiable=True, **coefficients)(make_stale(3, 6))
    for grad in torch.autograd.grad(out["value_target"].square().sum(), list(coefficients.values())):
        assert grad.abs() > 0


def test_stored_actions_and_log_probabilities_are_constants(
    actor: Any, critic: TensorDictModule, make_stale: Rollouts
) -> None:
    td = make_stale(3, 6)
    expected = vtrace(actor, critic)(td.clone())["advantage"]
    td["action"].requires_grad_()
    td["action_log_prob"].requires_grad_()
    out = vtrace(actor, critic, differentiable=True)(td)
    assert torch.equal(out["advantage"], expected)
    assert not out["advantage"].requires_grad


def test_nan_behind_terminated_reaches_neither_results_nor_gradients(
    actor: Any, critic: TensorDictModule, make_stale: Rollouts
) -> None:
    td = make_stale(2, 9)
    td["next", "done"][:, 3] = td["next", "terminated"][:, 3] = True
    v, w = values_of(critic, td)
    w[td["next", "terminated"]] = float("nan")
    v.requires_grad_()
    td["state_value"], td["next", "state_value"] = v, w
    out = vtrace(actor, None, differentiable=True)(td)
    assert out["advantage"].isfinite().all()
    total = out["advantage"].sum() + out["value_target"].sum()
    assert torch.autograd.grad(total, v)[0].isfinite().all()


# Keys -----------------------------------------------------------------------------------------------------------------


def test_action_and_log_probability_can_be_renamed(actor: Any, critic: TensorDictModule, make_stale: Rollouts) -> None:
    td = make_stale(3, 6)
    expected = vtrace(actor, critic)(td.clone())["advantage"]
    td.rename_key_("action", ("agent", "move"))
    td.rename_key_("action_log_prob", ("agent", "log_mu"))
    estimator = vtrace(actor, critic)
    estimator.set_keys(action=("agent", "move"), sample_log_prob=("agent", "log_mu"), advantage="adv")
    assert estimator.in_keys[-2:] == [("agent", "log_mu"), ("agent", "move")]
    assert estimator.sample_log_prob_key == ("agent", "log_mu")
    assert torch.equal(estimator(td)["adv"], expected)


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({"actions": "a"}, KeyError),
        ({"action": None}, ValueError),
        ({"action": []}, ValueError),
        ({"action": ["a", 3]}, ValueError),
        ({"value": "q"}, KeyError),
    ],
)
def test_a_wrong_key_is_refused_and_none_is_changed(
    keys: dict[str, Any], error: type[Exception], actor: Any, critic: TensorDictModule
) -> None:
    estimator = vtrace(actor, critic)
    with pytest.raises(error, match=next(iter(keys))):
        estimator.set_keys(sample_log_prob=["a", "b"], **keys)
    assert estimator.tensor_keys == VTrace.default_keys()


def composite_actor() -> Any:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 7)

        def forward(self, obs: Tensor) -> tuple[Tensor, ...]:
            x = self.linear(obs)
            return x[..., :2], x[..., 2:4].exp(), x[..., 4:]

    torch.manual_seed(4)
    heads = [("params", "move", "loc"), ("params", "move", "scale"), ("params", "gear", "logits")]
    draw = ProbabilisticTensorDictModule(
        ["params"],
        [("agent", "move"), ("agent", "gear")],
        distribution_class=CompositeDistribution,
        distribution_kwargs={
            "distribution_map": {"move": Normal, "gear": Categorical},
            "name_map": {"move": ("agent", "move"), "gear": ("agent", "gear")},
        },
        return_log_prob=True,
    )
    return ProbabilisticTensorDictSequential(TensorDictModule(Heads(), ["obs"], heads), draw)


def test_of_a_composite_action_the_log_probabilities_are_summed(
    critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    actor = composite_actor()
    td = make_rollout(3, 6)
    td["agent"] = TensorDict({"move": torch.randn(3, 6, 2), "gear": torch.randint(3, (3, 6))}, [3, 6])
    td["agent", "move_log_prob"], td["agent", "gear_log_prob"] = torch.randn(3, 6, 2), torch.randn(3, 6)
    estimator = vtrace(actor, critic)
    names = ("move_log_prob", "gear_log_prob", "move", "gear")
    assert {("agent", name) for name in names} <= set(estimator.in_keys)
    with torch.no_grad():
        loc, scale, logits = actor[0].module(td["obs"])
        log_pi = Normal(loc, scale).log_prob(td["agent", "move"]).sum(-1)
        log_pi = log_pi + logits.log_softmax(-1).gather(-1, td["agent", "gear"].unsqueeze(-1)).squeeze(-1)
    ratio = (log_pi - td["agent", "move_log_prob"].sum(-1) - td["agent", "gear_log_prob"]).exp()
    v, w = values_of(critic, td)
    expected = summed_vtrace(td, v.squeeze(-1), w.squeeze(-1), ratio, 0.95, 1.0, 1.0)
    out = estimator(td.clone())
    torch.testing.assert_close(out["advantage"].squeeze(-1), expected[0])
    torch.testing.assert_close(out["value_target"].squeeze(-1), expected[1])
    for key in ("move", "gear"):
        td.rename_key_(("agent", f"{key}_log_prob"), f"log_mu_{key}")
    estimator.set_keys(sample_log_prob=["log_mu_move", "log_mu_gear"])
    assert torch.equal(estimator(td)["advantage"], out["advantage"])


def test_the_actors_outputs_do_not_reach_the_rollout(
    actor: Any, critic: TensorDictModule, make_stale: Rollouts
) -> None:
    td = make_stale(3, 6)
    before = {key: td[key].clone() for key in td.keys(True, True)}
    out = vtrace(actor, critic)(td)
    written = {"advantage", "value_target", "state_value", ("next", "state_value")}
    assert set(out.keys(True, True)) == before.keys() | written
    for key, entry in before.items():
        assert torch.equal(out[key], entry)


def test_keyword_tensors_give_advantage_and_target(actor: Any, critic: TensorDictModule, make_stale: Rollouts) -> None:
    td = make_stale(2, 6)
    estimator = vtrace(actor, critic)
    entries = {f"next_{key}": td["next", key] for key in ("obs", "reward", "done", "terminated")}
    entries |= {key: td[key] for key in ("obs", "action", "action_log_prob")}
    advantage, target = estimator(**entries)
    out = estimator(td)
    assert torch.equal(advantage, out["advantage"])
    assert torch.equal(target, out["value_target"])


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"actor_network": None}, TypeError, "get_dist.*NoneType"),
        ({"actor_network": nn.Linear(3, 1)}, TypeError, "get_dist.*Linear"),
        ({"gamma": torch.full((3, 6, 1), 0.9)}, NotImplementedError, r"\(3, 6, 1\)"),
        ({"gamma": "0.9"}, TypeError, "gamma must be a number"),
        ({"rho_thresh": -1.0}, ValueError, "rho_thresh must not be negative, got -1.0"),
        ({"c_thresh": float("nan")}, ValueError, "c_thresh must not be negative, got nan"),
        ({"c_thresh": None}, TypeError, "c_thresh must be a number"),
        ({"rho_tresh": 1.0}, TypeError, "rho_tresh"),
    ],
)
def test_options_out_of_range_are_refused(
    options: dict[str, Any], error: type[Exception], message: str, actor: Any, critic: TensorDictModule
) -> None:
    with pytest.raises(error, match=message):
        vtrace(actor, critic, **options)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda td: td.exclude("action"), KeyError, "action 'action' was not found"),
        (lambda td: td.exclude("action_log_prob"), KeyError, "'action_log_prob' was not found"),
        (lambda td: td.set("action_log_prob", torch.zeros(3, 6, 2)), ValueError, r"\(3, 6, 2\).*\(3, 6\)"),
        (lambda td: td.set(("next", "reward"), torch.zeros(3, 6)), RuntimeError, r"reward.*\(3, 6\).*\(3, 6, 1\)"),
        (lambda td: td.exclude(("next", "reward")), KeyError, "reward"),
        (lambda td: td.exclude("obs"), KeyError, "obs"),
    ],
)
def test_a_rollout_that_does_not_fit_is_refused_and_left_as_it_was(
    damage: Any,
    error: type[Exception],
    message: str,
    actor: Any,
    critic: TensorDictModule,
    make_stale: Rollouts,
) -> None:
    td = damage(make_stale(3, 6))
    before = set(td.keys(True, True))
    with pytest.raises(error, match=message):
        vtrace(actor, critic)(td)
    assert set(td.keys(True, True)) == before


def test_a_log_probability_of_each_action_dimension_is_refused(critic: TensorDictModule, make_stale: Rollouts) -> None:
    """A normal that is not Independent has no log-probability of the whole action, and a step needs one weight."""
    net = TensorDictModule(nn.Sequential(nn.Linear(3, 4), NormalParamExtractor()), ["obs"], ["loc", "scale"])
    draw = ProbabilisticTensorDictModule(["loc", "scale"], ["action"], distribution_class=Normal, return_log_prob=True)
    td = make_stale(3, 6)
    td["action_log_prob"] = torch.zeros(3, 6, 2)
    with pytest.raises(RuntimeError, match=r"log-probability of the action.*\(3, 6, 2\).*\(3, 6, 1\)"):
        vtrace(ProbabilisticTensorDictSequential(net, draw), critic)(td)


def test_there_is_no_value_estimate(actor: Any, critic: TensorDictModule, make_stale: Rollouts) -> None:
    with pytest.raises(NotImplementedError, match="VTrace"):
        vtrace(actor, critic).value_estimate(make_stale(2, 3))


# As a module ----------------------------------------------------------------------------------------------------------


def test_copies_and_pickles_have_an_actor_of_their_own(
    actor: Any, critic: TensorDictModule, make_stale: Rollouts
) -> None:
    estimator = vtrace(actor, critic, rho_thresh=0.5)
    estimator.set_keys(advantage="adv")
    expected = estimator(make_stale(2, 5))["adv"]
    for twin in (copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        assert torch.equal(twin(make_stale(2, 5))["adv"], expected)
        assert twin.actor_network is not actor


def test_float64_data_see_the_exact_coefficients(actor: Any, critic: TensorDictModule, make_stale: Rollouts) -> None:
    estimator = vtrace(actor.double(), critic.double(), gamma=0.9, rho_thresh=0.7, c_thresh=0.3).half()
    assert (estimator.gamma.item(), estimator.rho_thresh.item(), estimator.c_thresh.item()) == (0.9, 0.7, 0.3)
    td = make_stale(2, 9, dtype=torch.float64)
    td["action_log_prob"] = torch.full((2, 9), -1e3, dtype=torch.float64)  # every weight is capped
    actor.double()
    v, w = values_of(critic, td)
    expected = summed_vtrace(
        td, v.squeeze(-1), w.squeeze(-1), torch.full_like(td["action_log_prob"], 5.0), 0.9, 0.7, 0.3
    )
    torch.testing.assert_close(estimator(td)["value_target"].squeeze(-1), expected[1], rtol=1e-12, atol=1e-12)


COMPILED: dict[str, tuple[str, dict[str, Any]]] = {
    "differentiable": ("aot_eager", {"differentiable": True}),
    "standardised, shifted": ("eager", {"shifted": True, "shifted_budget": 3, "average_adv": True}),
}


@pytest.mark.parametrize("name", list(COMPILED))
def test_forward_compiles_whole_and_once(
    name: str, actor: Any, critic: TensorDictModule, make_stale: Rollouts, no_recompile: None
) -> None:
    backend, options = COMPILED[name]
    estimator = vtrace(actor, critic, **options)
    whole = torch.compile(estimator, fullgraph=True, backend=backend)

    def run(call: Any, seed: int) -> list[Tensor]:
        td = make_stale(3, 7, seed=seed)
        td["obs"].requires_grad_(estimator.differentiable)
        out = call(td)
        results = [out["advantage"], out["value_target"]]
        if estimator.differentiable:
            results.append(torch.autograd.grad(out["advantage"].square().sum(), td["obs"])[0])
        return [result.detach() for result in results]

    for gamma, rho_thresh, c_thresh in ((0.97, 1.0, 1.0), (0.5, 1.0, 1.0), (0.5, 0.6, 1.0), (0.5, 0.6, 0.2)):
        estimator.gamma, estimator.rho_thresh, estimator.c_thresh = gamma, rho_thresh, c_thresh
        for seed in (0, 1):
            for ours, theirs in zip(run(whole, seed), run(estimator, seed), strict=True):
                torch.testing.assert_close(ours, theirs)


def test_new_batch_sizes_recompile_once_to_dynamic_shapes(
    actor: Any, critic: TensorDictModule, make_stale: Rollouts
) -> None:
    torch._dynamo.reset()
    estimator = vtrace(actor, critic)
    whole = torch.compile(estimator, fullgraph=True, backend="eager")
    whole(make_stale(4, 6))
    whole(make_stale(5, 7))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows, steps in ((8, 9), (20, 3)):
            expected, out = estimator(make_stale(rows, steps)), whole(make_stale(rows, steps))
            torch.testing.assert_close(out["advantage"], expected["advantage"])
    torch._dynamo.reset()
