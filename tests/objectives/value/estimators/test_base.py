"""What every estimator shares: options, keys, and how values are obtained."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict, unravel_key_list
from tensordict.nn import TensorDictModule, TensorDictParams, TensorDictSequential, set_skip_existing
from torch import Tensor, nn

from tritonrl.objectives.value import GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator, ValueEstimatorBase

Rollouts = Callable[..., TensorDict]


def build(cls: type[ValueEstimatorBase], **options: Any) -> ValueEstimatorBase:
    lmbda = {"lmbda": 0.9} if cls in (GAE, TDLambdaEstimator) else {}
    return cls(**{"gamma": 0.95, "value_network": None, **lmbda, **options})


EVERY = pytest.mark.parametrize("cls", [GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator])


class Recorder(nn.Module):
    """Returns a linear function of its first input, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, ...]] = []

    def forward(self, *inputs: Tensor) -> Tensor:
        self.seen.append(inputs)
        return inputs[0].sum(-1, keepdim=True)


def recorder(*in_keys: str) -> tuple[Recorder, TensorDictModule]:
    module = Recorder()
    return module, TensorDictModule(module, in_keys=list(in_keys), out_keys=["state_value"])


# Options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shifted": 2}, ValueError, "shifted must be True or False, got 2"),
        ({"shifted_budget": 0}, ValueError, "shifted_budget must be .* at least 1, got 0"),
        ({"advantage_key": "a"}, RuntimeError, r"set_keys\(advantage='a'\)"),
        ({"value_target_key": "a"}, RuntimeError, "set_keys"),
        ({"value_key": "a"}, RuntimeError, "set_keys"),
        ({"value_chunk_size": True}, TypeError, "value_chunk_size must be an integer"),
        ({"value_chunk_size": 1.0}, TypeError, "value_chunk_size must be an integer"),
        ({"num_chunks": 0}, ValueError, "num_chunks must be at least 1"),
        ({"num_chunk": 0}, ValueError, "num_chunk must be at least 1"),
        ({"num_chunks": 2, "num_chunk": 3}, ValueError, "differ"),
        ({"num_chunks": 2, "value_chunk_size": 3}, ValueError, "not both"),
        ({"value_chunk_dim": 0.0}, TypeError, "value_chunk_dim must be an integer"),
        ({"lambda_": 0.9}, TypeError, "lambda_"),
    ],
)
@EVERY
def test_options_out_of_range_are_refused(
    cls: type[ValueEstimatorBase], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(cls, **options)


def test_the_value_network_is_required() -> None:
    with pytest.raises(TypeError, match="value_network"):
        GAE(gamma=0.9, lmbda=0.9)  # type: ignore[call-arg]


def test_options_can_be_read_back(critic: TensorDictModule) -> None:
    gae = build(GAE, value_network=critic, num_chunk=3, value_chunk_dim=-1, shifted_budget=2, group_key=("a", "b"))
    assert (gae.num_chunks, gae.value_chunk_size, gae.value_chunk_dim) == (3, None, -1)
    assert (gae.shifted, gae.shifted_budget, gae.group_key) == (False, 2, ("a", "b"))
    assert (gae.differentiable, gae.skip_existing, gae.deactivate_vmap) == (False, None, False)
    assert (gae.is_functional, gae.is_stateless) == (False, False)


def test_the_value_network_is_no_submodule(critic: TensorDictModule) -> None:
    gae = build(GAE, value_network=critic)
    assert gae.value_network is critic
    assert not list(gae.parameters())
    assert set(gae.state_dict()) == {"gamma", "lmbda"}
    gae.double()
    assert critic.module[0].weight.dtype == torch.float32


def test_estimators_can_be_copied_and_pickled(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    gae = build(GAE, value_network=critic)
    gae.set_keys(advantage="adv")
    expected = gae(make_rollout(2, 5))["adv"]
    for twin in (copy.deepcopy(gae), pickle.loads(pickle.dumps(gae))):
        assert torch.equal(twin(make_rollout(2, 5))["adv"], expected)


def test_the_base_alone_computes_nothing(make_rollout: Rollouts) -> None:
    with pytest.raises(NotImplementedError):
        ValueEstimatorBase(value_network=None).value_estimate(make_rollout(2, 2))


# Keys -----------------------------------------------------------------------------------------------------------------


def test_keys_in_and_out_are_those_of_torchrl(critic: TensorDictModule, quiet_torchrl: Any) -> None:
    def listed(cls: Any) -> tuple[list[Any], list[Any]]:
        gae = cls(gamma=0.9, lmbda=0.9, value_network=critic, group_key="task")
        gae.set_keys(reward=("agents", "reward"), advantage="adv")
        return unravel_key_list(gae.in_keys), unravel_key_list(gae.out_keys)

    assert listed(GAE) == listed(quiet_torchrl.GAE)
    assert build(GAE).in_keys == []


def test_default_keys_are_those_of_torchrl(critic: TensorDictModule, quiet_torchrl: Any) -> None:
    assert vars(build(GAE).tensor_keys) == vars(
        quiet_torchrl.GAE(gamma=0.9, lmbda=0.9, value_network=critic).tensor_keys
    )


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"rewards": "r"}, KeyError, "rewards"),
        ({"reward": None}, ValueError, "reward"),
        ({"reward": 3}, ValueError, "reward.*3"),
        ({"value": "q"}, KeyError, "q.*state_value|state_value.*q"),
    ],
)
def test_a_wrong_key_is_refused_and_none_is_changed(
    keys: dict[str, Any], error: type[Exception], message: str, critic: TensorDictModule
) -> None:
    gae = build(GAE, value_network=critic)
    with pytest.raises(error, match=message):
        gae.set_keys(advantage="adv", **keys)
    assert gae.advantage_key == "advantage"
    assert gae.tensor_keys == GAE.default_keys()


def test_keys_given_as_lists_are_tuples(critic: TensorDictModule) -> None:
    gae = build(GAE, value_network=critic)
    gae.set_keys(reward=["agents", "reward"])
    assert gae.reward_key == ("agents", "reward")
    with pytest.raises(ValueError, match="tensor_keys"):
        gae.tensor_keys = {"reward": "r"}  # type: ignore[assignment]


def test_every_entry_can_be_renamed(make_rollout: Rollouts, critic: TensorDictModule) -> None:
    expected = build(GAE, value_network=critic)(make_rollout(3, 6))["advantage"]
    td = make_rollout(3, 6)
    for name in ("reward", "done", "terminated"):
        td.rename_key_(("next", name), ("next", "agents", name))
    renamed = TensorDictModule(critic.module, in_keys=["obs"], out_keys=[("agents", "v")])
    gae = build(GAE, value_network=renamed)
    gae.set_keys(
        value=("agents", "v"),
        advantage=("agents", "adv"),
        value_target="target",
        **{name: ("agents", name) for name in ("reward", "done", "terminated")},
    )
    out = gae(td)
    assert torch.equal(out["agents", "adv"], expected)
    assert {"target", ("agents", "v"), ("next", "agents", "v")} <= set(out.keys(True, True))
    assert (gae.value_key, gae.value_target_key, gae.done_key) == (("agents", "v"), "target", ("agents", "done"))


# Errors leave the rollout alone ---------------------------------------------------------------------------------------


def without(key: Any) -> Callable[[TensorDict], TensorDict]:
    return lambda td: td.exclude(key)


def reshaped(name: str) -> Callable[[TensorDict], TensorDict]:
    return lambda td: td.set(("next", name), td["next", name].squeeze(-1))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (without(("next", "reward")), KeyError, "reward"),
        (without(("next", "done")), KeyError, "done"),
        (without(("next", "obs")), KeyError, r"obs.*\('next', 'obs'\)' is missing|\('next', 'obs'\) is missing"),
        (without("obs"), KeyError, "'obs' is missing"),
        (reshaped("reward"), RuntimeError, r"reward.*\(3, 6\).*state_value.*\(3, 6, 1\)"),
        (reshaped("done"), RuntimeError, r"done.*\(3, 6\).*state_value.*\(3, 6, 1\)"),
        (reshaped("terminated"), RuntimeError, r"terminated.*\(3, 6\).*state_value.*\(3, 6, 1\)"),
        (lambda td: td.set("steps_to_next_obs", torch.ones(3, 6, 2)), RuntimeError, "steps_to_next_obs.*3, 6, 2"),
    ],
)
@EVERY
def test_a_rollout_that_does_not_fit_is_refused_and_left_as_it_was(
    cls: type[ValueEstimatorBase],
    damage: Callable[[TensorDict], TensorDict],
    error: type[Exception],
    message: str,
    critic: TensorDictModule,
    make_rollout: Rollouts,
) -> None:
    td = damage(make_rollout(3, 6))
    before = set(td.keys(True, True))
    with pytest.raises(error, match=message):
        build(cls, value_network=critic)(td)
    assert set(td.keys(True, True)) == before


@EVERY
def test_a_rollout_needs_a_batch_dimension(cls: type[ValueEstimatorBase], make_rollout: Rollouts) -> None:
    with pytest.raises(RuntimeError, match="batch dimension"):
        build(cls)(make_rollout(2)[0])


def test_a_time_dim_out_of_range_is_refused(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    with pytest.raises(RuntimeError, match=r"time_dim=2 .*\[3, 6\]"):
        build(GAE, value_network=critic)(make_rollout(3, 6), time_dim=2)


def test_without_a_network_the_values_must_be_there(make_rollout: Rollouts) -> None:
    td = make_rollout(3, 6)
    with pytest.raises(ValueError, match="state_value"):
        build(GAE)(td)
    td["state_value"] = torch.zeros(3, 6, 1)
    with pytest.raises(ValueError, match=r"\('next', 'state_value'\)"):
        build(GAE)(td)


def test_a_network_that_does_not_write_the_value_is_named(make_rollout: Rollouts) -> None:
    other = TensorDictModule(nn.Linear(3, 1), in_keys=["obs"], out_keys=["v"])
    with pytest.raises(KeyError, match=r"state_value.*\['v'\]"):
        build(GAE, value_network=other)(make_rollout(3, 6))


# Gradients ------------------------------------------------------------------------------------------------------------


@EVERY
def test_no_parameter_gets_a_gradient_and_no_flag_changes(
    cls: type[ValueEstimatorBase], critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    critic.module[2].weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in critic.parameters()]
    during: list[list[bool]] = []
    critic.module.register_forward_hook(lambda *_: during.append([p.requires_grad for p in original]))
    original = list(critic.parameters())
    td = make_rollout(3, 6)
    td["obs"].requires_grad_()
    out = build(cls, value_network=critic, differentiable=True)(td)
    out["advantage"].sum().backward()
    assert td["obs"].grad is not None
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert during == [flags]
    assert [parameter.requires_grad for parameter in critic.parameters()] == flags
    assert all(now is then for now, then in zip(critic.parameters(), original, strict=True))


def test_differentiable_holds_even_inside_no_grad_and_its_absence_always(
    critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    def run(differentiable: bool) -> TensorDict:
        td = make_rollout(3, 6)
        td["obs"].requires_grad_()
        return build(GAE, value_network=critic, differentiable=differentiable)(td)

    with torch.no_grad():
        assert run(True)["advantage"].requires_grad
    out = run(False)
    assert not any(out[key].requires_grad for key in ("advantage", "value_target", "state_value"))


def test_the_advantage_does_not_depend_on_the_next_value_but_the_entry_keeps_its_graph(
    critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    td = make_rollout(3, 6)
    following = td["next", "obs"].requires_grad_()
    out = build(GAE, value_network=critic, differentiable=True, deactivate_vmap=True)(td)
    assert not out["advantage"].requires_grad
    assert torch.autograd.grad(out["next", "state_value"].sum(), following)[0].abs().sum() > 0


@pytest.mark.parametrize("vmapped", [True, False])
@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: TensorDictParams(p, no_convert=True)])
def test_params_replace_those_of_the_network_and_get_no_gradient(
    wrap: Callable[[TensorDict], TensorDict], vmapped: bool, critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    other = copy.deepcopy(critic)
    for parameter in other.parameters():
        parameter.data.mul_(-2)
    params, targets = wrap(TensorDict.from_module(critic)), TensorDict.from_module(other).data
    with torch.no_grad():
        td = make_rollout(3, 6)
        v, w = critic.module(td["obs"]), other.module(td["next", "obs"])
    template = copy.deepcopy(critic)
    for parameter in template.parameters():
        parameter.data.fill_(float("nan"))
    gae = build(GAE, value_network=template, differentiable=True, deactivate_vmap=not vmapped)
    out = gae(td, params=params, target_params=targets)
    torch.testing.assert_close(out["state_value"], v)
    torch.testing.assert_close(out["next", "state_value"], w)
    assert not out["advantage"].requires_grad
    td = make_rollout(3, 6)
    same = gae(td.clone(), params=params, target_params=params)
    alone = gae(td.clone(), params=params)
    assert torch.equal(same["advantage"], alone["advantage"])
    torch.testing.assert_close(alone["state_value"], v)
    assert all(bool(parameter.isnan().all()) for parameter in template.parameters())


def test_target_params_alone_are_refused(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    with pytest.raises(ValueError, match="target_params"):
        build(GAE, value_network=critic)(make_rollout(3, 6), target_params=TensorDict.from_module(critic))


# Existing values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", ["root", "next", "both"])
def test_existing_values_are_recomputed_unless_they_are_to_be_kept(
    sides: str, critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    fresh = build(GAE, value_network=critic)(make_rollout(3, 6))
    given = torch.full((3, 6, 1), 4.0)

    def rollout() -> TensorDict:
        td = make_rollout(3, 6)
        if sides in ("root", "both"):
            td["state_value"] = given
        if sides in ("next", "both"):
            td["next", "state_value"] = given
        return td

    recomputed = build(GAE, value_network=critic)(rollout())
    assert torch.equal(recomputed["advantage"], fresh["advantage"])
    assert torch.equal(recomputed["state_value"], fresh["state_value"])
    kept = build(GAE, value_network=critic, skip_existing=True)(rollout())
    with set_skip_existing(True):
        ambient = build(GAE, value_network=critic)(rollout())
        forced = build(GAE, value_network=critic, skip_existing=False)(rollout())
    for out in (kept, ambient):
        torch.testing.assert_close(out["state_value"], given if sides != "next" else fresh["state_value"])
        torch.testing.assert_close(
            out["next", "state_value"], given if sides != "root" else fresh["next", "state_value"]
        )
    assert torch.equal(forced["state_value"], fresh["state_value"])


def test_nothing_else_that_the_network_writes_reaches_the_rollout(make_rollout: Rollouts) -> None:
    body = TensorDictModule(nn.Linear(3, 4), in_keys=["obs"], out_keys=["hidden"])
    network = TensorDictSequential(
        body, TensorDictModule(nn.Linear(4, 1), in_keys=["hidden"], out_keys=["state_value"])
    )
    out = build(GAE, value_network=network)(make_rollout(3, 6))
    assert {"hidden", ("next", "hidden")}.isdisjoint(out.keys(True))


# Calls of the network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"deactivate_vmap": True},
        {"value_chunk_size": 2},
        {"value_chunk_size": 100},
        {"num_chunks": 2, "value_chunk_dim": 1},
        {"num_chunks": 50},
    ],
)
@EVERY
def test_the_way_the_network_is_called_does_not_change_the_result(
    cls: type[ValueEstimatorBase], options: dict[str, Any], critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    expected = build(cls, value_network=critic)(make_rollout(5, 6))
    out = build(cls, value_network=critic, **options)(make_rollout(5, 6))
    for key in ("advantage", "value_target", "state_value", ("next", "state_value")):
        torch.testing.assert_close(out[key], expected[key])


def test_chunks_have_the_size_that_was_asked_for(make_rollout: Rollouts) -> None:
    module, network = recorder("obs")
    build(GAE, value_network=network, value_chunk_size=2)(make_rollout(5, 6))
    assert [seen[0].shape[0] for seen in module.seen] == [2, 2, 1] * 2
    module.seen.clear()
    build(GAE, value_network=network, num_chunks=4, value_chunk_dim=-1)(make_rollout(5, 6))
    assert [seen[0].shape[1] for seen in module.seen] == [2, 2, 1, 1] * 2


def test_a_chunk_dim_out_of_range_is_refused_at_the_call(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    with pytest.raises(ValueError, match=r"value_chunk_dim=3 .*\[5, 6\]"):
        build(GAE, value_network=critic, num_chunks=2, value_chunk_dim=3)(make_rollout(5, 6))


def test_by_default_the_network_is_called_once_and_sees_the_batch_shape(make_rollout: Rollouts) -> None:
    module, network = recorder("obs")
    build(GAE, value_network=network)(make_rollout(5, 6))
    assert [seen[0].shape for seen in module.seen] == [(5, 6, 3)]


def test_a_random_network_is_vmapped_with_different_randomness(make_rollout: Rollouts) -> None:
    random = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5))
    network = TensorDictModule(random, in_keys=["obs"], out_keys=["state_value"])
    gae = build(GAE, value_network=network)
    assert gae.vmap_randomness == "different"
    assert gae(make_rollout(3, 6))["advantage"].shape == (3, 6, 1)
    gae.set_vmap_randomness("error")
    assert gae.vmap_randomness == "error"
    with pytest.raises(RuntimeError, match="randomness"):
        gae(make_rollout(3, 6))
    assert (
        build(GAE, value_network=TensorDictModule(nn.Linear(3, 1), ["obs"], ["state_value"])).vmap_randomness == "error"
    )


@pytest.mark.parametrize("options", [{}, {"deactivate_vmap": True}, {"value_chunk_size": 1}, {"shifted": True}])
def test_nan_next_observations_stand_for_the_observation_itself(
    options: dict[str, Any], critic: TensorDictModule, make_rollout: Rollouts
) -> None:
    td = make_rollout(2, 6)
    td["next", "done"][:] = False
    td["next", "terminated"][:] = False
    td["next", "done"][0, -1] = True
    td["next", "obs"][:, :-1] = td["obs"][:, 1:]
    repaired = td.clone()
    td["next", "obs"][0, -1] = float("nan")
    repaired["next", "obs"][0, -1] = repaired["obs"][0, -1]
    stored = td["next", "obs"].clone()
    expected = build(GAE, value_network=critic, **options)(repaired)
    out = build(GAE, value_network=critic, **options)(td)
    for key in ("advantage", "value_target", "state_value", ("next", "state_value")):
        torch.testing.assert_close(out[key], expected[key])
    assert torch.equal(out["next", "obs"].isnan(), stored.isnan())


def test_next_steps_start_a_sequence_where_the_steps_do(make_rollout: Rollouts) -> None:
    module, network = recorder("obs", "is_init")
    td = make_rollout(1, 5)
    td["is_init"] = torch.tensor([[[True], [False], [False], [True], [False]]])
    td["next", "is_init"] = torch.tensor([[[False], [True], [False], [False], [False]]])
    build(GAE, value_network=network, deactivate_vmap=True)(td.clone())
    assert module.seen[1][1].flatten().tolist() == [True, True, False, True, False]
    build(GAE, value_network=network, deactivate_vmap=True)(td.exclude(("next", "is_init")))
    assert module.seen[3][1].flatten().tolist() == [True, False, False, True, False]


def test_an_input_that_neither_side_has_is_the_networks_business(make_rollout: Rollouts) -> None:
    class OptionalState(nn.Module):
        in_keys = ("obs", "state")
        out_keys = ("state_value",)

        def forward(self, td: TensorDict) -> TensorDict:
            assert td.get("state", None) is None
            return td.set("state_value", td["obs"].sum(-1, keepdim=True))

    out = build(GAE, value_network=OptionalState(), deactivate_vmap=True)(make_rollout(2, 4))
    assert out["advantage"].shape == (2, 4, 1)


def test_a_gru_critic_works_without_vmap(make_rollout: Rollouts) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 1)

        def forward(self, obs: Tensor) -> Tensor:
            return self.head(self.gru(obs)[0])

    network = TensorDictModule(Recurrent(), in_keys=["obs"], out_keys=["state_value"])
    td = make_rollout(2, 7)
    with torch.no_grad():
        v, w = network.module(td["obs"]), network.module(td["next", "obs"])
    out = build(GAE, value_network=network, deactivate_vmap=True)(td)
    torch.testing.assert_close(out["state_value"], v)
    torch.testing.assert_close(out["next", "state_value"], w)


def test_nested_observations_and_a_locked_next_step(make_rollout: Rollouts, critic: TensorDictModule) -> None:
    td = make_rollout(2, 5)
    expected = build(GAE, value_network=critic)(td.clone())["advantage"]
    for side in ((), ("next",)):
        td.rename_key_((*side, "obs"), (*side, "agent", "obs"))
    nested = TensorDictModule(critic.module, in_keys=[("agent", "obs")], out_keys=["state_value"])
    assert torch.equal(build(GAE, value_network=nested)(td)["advantage"], expected)
    whole = TensorDictModule(lambda agent: critic.module(agent["obs"]), in_keys=["agent"], out_keys=["state_value"])
    assert torch.equal(build(GAE, value_network=whole)(td)["advantage"], expected)


# For losses -----------------------------------------------------------------------------------------------------------


def test_a_loss_lends_its_critic_or_its_value_network(critic: TensorDictModule) -> None:
    loss = nn.Module()
    assert GAE.for_loss(loss, gamma=0.9, lmbda=0.9).value_network is None
    loss.value_network = critic
    assert GAE.for_loss(loss, gamma=0.9, lmbda=0.9).value_network is critic
    loss.critic_network = other = copy.deepcopy(critic)
    assert GAE.for_loss(loss, gamma=0.9, lmbda=0.9).value_network is other
    assert GAE.for_loss(loss, gamma=0.9, lmbda=0.9, value_network=None).value_network is None
    assert not list(GAE.for_loss(loss, gamma=0.9, lmbda=0.9).parameters())
