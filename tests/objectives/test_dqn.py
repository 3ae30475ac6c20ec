"""Deep Q-learning: against a loop in Python floats, against TorchRL, and where it is meant to differ."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium
import pytest
import torch
import torchrl.modules
import torchrl.objectives
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Categorical, MultiCategorical, OneHot

import tritonrl.modules
from tritonrl.objectives import HardUpdate, SoftUpdate, ValueEstimators
from tritonrl.objectives.dqn import DQNLoss
from tritonrl.objectives.value import TD0Estimator

from .off_policy_cases import (
    N_ACTIONS,
    OBSERVATION,
    as_double,
    check_compile_once,
    check_parity,
    check_training_compiles,
    fresh_dynamo,
    make_action_values,
    mlp,
    new_entries,
    perturb_targets,
    run,
    transitions,
)

__all__ = ["fresh_dynamo"]

TheirDQNLoss = torchrl.objectives.DQNLoss
SPACES = ["categorical", "one_hot"]


@pytest.fixture(autouse=True)
def _no_target_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL_WARNINGS", "False")


def make_actor(space: str = "categorical", modules: Any = torchrl.modules, **kwargs: Any) -> Any:
    return modules.QValueActor(make_action_values(), in_keys=["observation"], action_space=space, **kwargs)


def make_loss(space: str = "categorical", **kwargs: Any) -> DQNLoss:
    loss = DQNLoss(make_actor(space, tritonrl.modules), **kwargs)
    perturb_targets(loss)
    return loss


def builder(space: str = "categorical", modules: Any = torchrl.modules, **kwargs: Any) -> Callable[[Any], Any]:
    return lambda cls: cls(make_actor(space, modules), action_space=space, **kwargs)


# -- an oracle ----------------------------------------------------------------------------------------------------


def oracle(loss: DQNLoss, data: TensorDict, gamma: float = 0.99) -> list[float]:
    """Squared errors, step by step, with the networks' outputs looked up and the rest in Python floats."""
    network = loss.get_stateful_net("value_network").module[0].module
    target = copy.deepcopy(network)
    state = loss.target_value_network_params.flatten_keys(".").to_dict()
    target.load_state_dict({key.split("module.0.module.")[1]: value for key, value in state.items()})
    errors = []
    for step in data.reshape(-1).unbind(0):
        q = network(step["observation"]).tolist()
        online, delayed = (net(step["next", "observation"]).tolist() for net in (network, target))
        best = online.index(max(online)) if loss.double_dqn else delayed.index(max(delayed))
        n = int(step["steps_to_next_obs"]) if "steps_to_next_obs" in step else 1
        y = float(step["next", "reward"]) + (0.0 if step["next", "terminated"] else gamma**n * delayed[best])
        errors.append((q[int(step["action"])] - y) ** 2)
    return errors


@pytest.mark.parametrize("double_dqn", [False, True])
@pytest.mark.parametrize("batch", [(1,), (7,), (3, 2), ()])
@pytest.mark.parametrize("n_step", [False, True])
def test_it_is_the_formula(double_dqn: bool, batch: tuple[int, ...], n_step: bool) -> None:
    data = as_double(transitions("categorical", batch=batch, n_step=n_step))
    loss = make_loss(double_dqn=double_dqn, reduction="none").double()
    out = loss(data)
    expected = oracle(loss, data)
    torch.testing.assert_close(out["loss"].flatten().tolist(), expected)
    assert out["loss"].shape == batch
    torch.testing.assert_close(data["td_error"].flatten().tolist(), expected)
    assert data["td_error"].shape == (*batch, 1)


def test_with_equal_parameters_double_learning_changes_nothing() -> None:
    data = transitions("categorical")
    losses = [DQNLoss(make_actor(modules=tritonrl.modules), double_dqn=double) for double in (False, True)]
    torch.testing.assert_close(*(loss(data.clone())["loss"] for loss in losses), rtol=0, atol=0)


def test_one_step_to_the_next_observation_is_the_default() -> None:
    data = transitions("categorical")
    loss = make_loss()
    n_step = data.clone().set("steps_to_next_obs", torch.ones(*data.shape, 1, dtype=torch.int64))
    assert torch.equal(loss(data)["loss"], loss(n_step)["loss"])


def test_gamma_zero_is_regression_on_the_reward() -> None:
    data = transitions("categorical")
    loss = make_loss(loss_function="l1")
    loss.make_value_estimator(gamma=0.0)
    q = loss.value_network(data.select("observation"))["action_value"].gather(-1, data["action"].unsqueeze(-1))
    torch.testing.assert_close(loss(data)["loss"], (q - data["next", "reward"]).abs().mean())


# -- TorchRL ------------------------------------------------------------------------------------------------------


def test_the_signature_is_that_of_torchrl() -> None:
    ours, theirs = (inspect.signature(cls.__init__).parameters.values() for cls in (DQNLoss, TheirDQNLoss))
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"double_dqn": True}, {"delay_value": False}, {"loss_function": "l1"}, {"loss_function": "smooth_l1"}],
)
def test_values_gradients_and_entries_are_those_of_torchrl(space: str, kwargs: dict[str, Any]) -> None:
    check_parity(builder(space, **kwargs), DQNLoss, TheirDQNLoss, transitions(space))


@pytest.mark.parametrize("data", [{"n_step": True}, {"weights": True}, {"mask": True}, {"weights": True, "mask": True}])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("double_dqn", [False, True])
def test_options_of_the_data_and_reductions_are_those_of_torchrl(
    data: dict[str, bool], reduction: str, double_dqn: bool
) -> None:
    build = builder(reduction=reduction, double_dqn=double_dqn)
    check_parity(build, DQNLoss, TheirDQNLoss, transitions("categorical", **data))


@pytest.mark.parametrize("use", [True, False])
def test_priority_weights_can_be_switched(use: bool) -> None:
    build = builder(use_prioritized_weights=use)
    check_parity(build, DQNLoss, TheirDQNLoss, transitions("categorical", weights=True))


@pytest.mark.parametrize("modules", [torchrl.modules, tritonrl.modules])
@pytest.mark.parametrize("value_type", [None, "td0", ValueEstimators.TD1, "tdlambda"])
@pytest.mark.parametrize("double_dqn", [False, True])
def test_estimators_are_those_of_torchrl(modules: Any, value_type: Any, double_dqn: bool) -> None:
    def prepare(loss: Any) -> None:
        ours = isinstance(loss, DQNLoss) or not isinstance(value_type, ValueEstimators)
        kind = value_type if ours else torchrl.objectives.ValueEstimators[value_type.name]
        loss.make_value_estimator(kind, gamma=0.8)

    # TorchRL's losses with TD(lambda) run their own network on the next step, whatever double_dqn says.
    build = builder(modules=modules, double_dqn=double_dqn)
    check_parity(build, DQNLoss, TheirDQNLoss, transitions("categorical", batch=(3, 5)), prepare=prepare)


def test_an_estimator_may_be_a_class_or_an_instance() -> None:
    data = transitions("categorical")
    expected = make_loss()
    expected.make_value_estimator("td0", gamma=0.7)
    for given in (TD0Estimator, TD0Estimator(gamma=0.7, value_network=None)):
        loss = make_loss()
        kwargs = {"gamma": 0.7, "value_network": None} if isinstance(given, type) else {}
        assert loss.make_value_estimator(given, **kwargs) is loss
        torch.testing.assert_close(loss(data.clone())["loss"], expected(data.clone())["loss"])


def test_differently_the_network_of_an_estimator_is_not_asked() -> None:
    data, loss, expected = transitions("categorical"), make_loss(), make_loss()
    other = TensorDictModule(nn.Linear(OBSERVATION, 1), ["observation"], ["chosen_action_value"])
    loss.make_value_estimator(TD0Estimator(gamma=0.7, value_network=other))
    expected.make_value_estimator("td0", gamma=0.7)
    assert torch.equal(loss(data.clone())["loss"], expected(data.clone())["loss"])


@pytest.mark.parametrize("double_dqn", [False, True])
def test_random_numbers_are_drawn_in_the_order_of_torchrl(double_dqn: bool) -> None:
    def build(cls: Any) -> Any:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(OBSERVATION, 8), nn.Dropout(0.5), nn.Linear(8, N_ACTIONS))
        actor = torchrl.modules.QValueActor(network, in_keys=["observation"], action_space="categorical")
        return cls(actor, action_space="categorical", double_dqn=double_dqn)

    check_parity(build, DQNLoss, TheirDQNLoss, transitions("categorical"))


def test_keys_can_be_changed() -> None:
    names = {
        "action": ("m", "action"),
        "action_value": ("q", "all"),
        "value": ("q", "best"),
        "priority": ("q", "error"),
    }

    def build(cls: Any) -> Any:
        actor = torchrl.modules.QValueActor(
            make_action_values(key=("q", "all")),
            in_keys=["observation"],
            action_space="categorical",
            action_value_key=("q", "all"),
            action_key=("m", "action"),
            chosen_action_value_key=("q", "best"),
        )
        return cls(actor, action_space="categorical", double_dqn=True)

    data = transitions("categorical", weights=True).rename_key_("action", ("m", "action"))
    data.rename_key_("priority_weight", "w").rename_key_(("next", "reward"), ("next", "r"))
    names |= {"priority_weight": "w", "reward": "r"}
    check_parity(build, DQNLoss, TheirDQNLoss, data, prepare=lambda loss: loss.set_keys(**names))


def test_a_plain_module_is_wrapped_as_in_torchrl() -> None:
    def build(cls: Any) -> Any:
        torch.manual_seed(0)
        return cls(mlp(OBSERVATION, N_ACTIONS), action_space="categorical")

    ours, theirs = check_parity(build, DQNLoss, TheirDQNLoss, transitions("categorical"))
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("cls", [DQNLoss, TheirDQNLoss])
def test_an_action_mask_of_the_network_is_honoured(cls: Any) -> None:
    actor = make_actor(modules=torchrl.modules, action_mask_key="mask")
    loss = cls(actor, action_space="categorical", reduction="none")
    data = transitions("categorical")
    data["mask"] = data["next", "mask"] = nn.functional.one_hot(data["action"], N_ACTIONS).bool()
    with torch.no_grad():
        here, there = (actor.module[0](data[where].select("observation"))["action_value"] for where in ((), "next"))
    index = data["action"].unsqueeze(-1)
    alive = ~data["next", "terminated"]
    y = data["next", "reward"] + 0.99 * alive * there.gather(-1, index)
    torch.testing.assert_close(loss(data)["loss"], (here.gather(-1, index) - y).square().squeeze(-1))


def test_gradients_reach_the_observations_as_in_torchrl_but_never_the_target() -> None:
    grads = []
    for cls in (DQNLoss, TheirDQNLoss):
        data = transitions("categorical")
        here = data["observation"].requires_grad_()
        there = data["next", "observation"].requires_grad_()
        builder(double_dqn=False)(cls)(data)["loss"].backward()
        grads.append(here.grad)
        # TorchRL's target is differentiable with respect to the next observation: an encoder would chase itself.
        assert (there.grad is None) == (cls is DQNLoss)
    torch.testing.assert_close(*grads)


def test_only_the_network_gets_a_gradient() -> None:
    loss = make_loss(double_dqn=True)
    loss.total(loss(transitions("categorical"))).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in loss.parameters())
    assert not any(b.requires_grad for b in loss.buffers())


def test_dispatch_takes_and_gives_tensors() -> None:
    data = transitions("categorical")
    loss = make_loss()
    out = loss(
        observation=data["observation"],
        action=data["action"],
        next_observation=data["next", "observation"],
        next_reward=data["next", "reward"],
        next_terminated=data["next", "terminated"],
    )
    assert isinstance(out, Tensor)
    assert torch.equal(out, loss(data)["loss"])


# -- constructor --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    ["one-hot", OneHot(N_ACTIONS), "categorical", Categorical(N_ACTIONS), gymnasium.spaces.Discrete(N_ACTIONS)],
)
def test_the_action_space_may_be_a_name_or_a_spec(given: Any) -> None:
    loss = DQNLoss(make_actor(), action_space=given)
    assert loss.action_space == ("one_hot" if given == "one-hot" or isinstance(given, OneHot) else "categorical")
    loss(transitions(loss.action_space))


@pytest.mark.parametrize("cls", [DQNLoss, TheirDQNLoss])
def test_the_spec_of_the_network_tells_its_action_space(cls: Any) -> None:
    actor = torchrl.modules.QValueActor(make_action_values(), in_keys=["observation"], spec=OneHot(N_ACTIONS))
    assert cls(actor).action_space == "one_hot"


@pytest.mark.parametrize("cls", [DQNLoss, TheirDQNLoss])
def test_an_empty_spec_does_not_tell_the_action_space(cls: Any) -> None:
    with pytest.raises(ValueError, match="action_space was not"):
        cls(make_actor(modules=torchrl.modules))


def test_our_actor_tells_its_action_space() -> None:
    assert DQNLoss(make_actor("one-hot", tritonrl.modules)).action_space == "one_hot"


@pytest.mark.parametrize("cls", [DQNLoss, TheirDQNLoss])
@pytest.mark.parametrize(("given", "error"), [(None, ValueError), ("foo", ValueError), (OneHot(4), RuntimeError)])
def test_a_plain_module_needs_the_name_of_an_action_space(cls: Any, given: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        cls(mlp(OBSERVATION, N_ACTIONS), action_space=given)


@pytest.mark.parametrize("cls", [DQNLoss, TheirDQNLoss])
@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"double_dqn": True, "delay_value": False}, ValueError),
        ({"gamma": 0.9}, TypeError),
        ({"priority_key": "p"}, RuntimeError),
        ({"lossfunction": "l2"}, TypeError),
        ({"action_space": "foo"}, ValueError),
    ],
)
def test_bad_options_raise_as_in_torchrl(cls: Any, kwargs: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        cls(make_actor(), **{"action_space": "categorical", **kwargs})


@pytest.mark.parametrize("cls", [DQNLoss, TheirDQNLoss])
@pytest.mark.parametrize(
    ("value_type", "error"), [("gae", NotImplementedError), ("vtrace", NotImplementedError), ("foo", KeyError)]
)
def test_estimators_that_it_does_not_support_raise_as_in_torchrl(
    cls: Any, value_type: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        cls(make_actor(), action_space="categorical").make_value_estimator(value_type)


@pytest.mark.parametrize("cls", [DQNLoss, TheirDQNLoss])
@pytest.mark.parametrize(
    ("kwargs", "change", "error"),
    [
        ({"reduction": "foo"}, {}, NotImplementedError),
        ({"loss_function": "foo"}, {}, NotImplementedError),
        ({}, {"priority_weight": torch.ones(7, 1)}, ValueError),
        ({}, {"td_error": torch.zeros(7)}, ValueError),
        ({}, {"observation": None}, KeyError),
        ({}, {("next", "observation"): None}, KeyError),
    ],
)
def test_bad_data_raise_as_in_torchrl(
    cls: Any, kwargs: dict[str, Any], change: dict[Any, Any], error: type[Exception]
) -> None:
    data = changed(transitions("categorical"), change)
    with pytest.raises(error):
        cls(make_actor(), action_space="categorical", **kwargs)(data)


def changed(data: TensorDict, change: dict[Any, Any]) -> TensorDict:
    for key, value in change.items():
        if value is None:
            del data[key]
        else:
            data[key] = value
    return data


# -- data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"action": None}, KeyError, "'action'"),
        ({("next", "reward"): None}, KeyError, "reward"),
        ({"action": torch.zeros(7, 2, dtype=torch.int64)}, RuntimeError, r"\(7, 1\).*got \(7, 2\)"),
        ({"action": torch.zeros(7)}, TypeError, "must be integers, got torch.float32"),
        ({("next", "reward"): torch.zeros(7, 2)}, RuntimeError, "reward"),
        ({"priority_weight": torch.ones(7, 1)}, ValueError, "weights"),
    ],
)
def test_after_an_error_nothing_is_written(change: dict[Any, Any], error: type[Exception], match: str) -> None:
    data = changed(transitions("categorical"), change)
    before = data.clone()
    with pytest.raises(error, match=match):
        make_loss()(data)
    assert not new_entries(before, data)


def test_torchrl_broadcasts_an_index_against_a_one_hot_space_and_we_refuse_it() -> None:
    data = transitions("categorical")
    data["action"] = data["action"].unsqueeze(-1)
    assert builder("one_hot")(TheirDQNLoss)(data.clone())["loss"].isfinite()
    with pytest.raises(RuntimeError, match=r"\(7, 4\) in the action space 'one_hot'.* got \(7, 1\)"):
        make_loss("one_hot")(data)


@pytest.mark.parametrize("entry", ["done", "terminated"])
def test_one_end_flag_is_enough(entry: str) -> None:
    data = transitions("categorical")
    data["next", "done"] = data["next", "terminated"]
    expected = make_loss()(data.clone())["loss"]
    del data["next", entry]
    assert torch.equal(make_loss()(data)["loss"], expected)


def test_the_priority_is_written_in_place_and_needs_a_place_in_locked_data() -> None:
    data = transitions("categorical")
    place = data["td_error"] = torch.full((7, 1), -1.0)
    make_loss()(data.lock_())
    assert data["td_error"] is place
    assert bool((place >= 0).all())
    with pytest.raises(RuntimeError, match="lock"):
        make_loss()(transitions("categorical").lock_())


@pytest.mark.parametrize("double_dqn", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_lies_behind_a_terminated_step_reaches_nothing(double_dqn: bool, bad: float) -> None:
    data = transitions("categorical")
    loss = make_loss(double_dqn=double_dqn)
    expected, written, _ = run(loss, data)
    terminated = data["next", "terminated"]
    assert terminated.any()
    data["next", "observation"] = torch.where(terminated, bad, data["next", "observation"])
    out, poisoned, _ = run(loss, data)
    assert torch.equal(out["loss"], expected["loss"])
    torch.testing.assert_close(poisoned, written, rtol=0, atol=0)


def test_torchrl_lets_an_infinite_observation_behind_a_terminated_step_through() -> None:
    data = transitions("categorical")
    data["next", "observation"] = torch.where(data["next", "terminated"], math.inf, data["next", "observation"])
    network = torchrl.modules.QValueActor(
        nn.Linear(OBSERVATION, N_ACTIONS), in_keys=["observation"], action_space="categorical"
    )
    assert TheirDQNLoss(network, action_space="categorical")(data.clone())["loss"].isnan()
    assert DQNLoss(network, action_space="categorical")(data.clone())["loss"].isfinite()


def test_masked_steps_reach_no_gradient_even_as_nan() -> None:
    data = transitions("categorical", mask=True)
    loss = make_loss()
    grads = []
    for _ in range(2):
        out = loss(data.clone())
        grads.append((out["loss"].detach(), *torch.autograd.grad(out["loss"], list(loss.parameters()))))
        invalid = ~data["shifted_valid"].unsqueeze(-1)
        for key in ("observation", ("next", "observation"), ("next", "reward")):
            data[key] = torch.where(invalid, math.nan, data[key])
    torch.testing.assert_close(grads[0], grads[1])


def test_several_indices_are_the_parts_of_an_action() -> None:
    network = make_action_values()
    ours = tritonrl.modules.QValueActor(network, in_keys=["observation"], spec=MultiCategorical([1, 3]))
    parts = DQNLoss(ours, double_dqn=True)
    whole = DQNLoss(
        tritonrl.modules.QValueActor(network, in_keys=["observation"], action_space="mult_one_hot", var_nums=[1, 3]),
        double_dqn=True,
    )
    data = transitions("categorical")
    index = data["action"] % 3
    data["action"] = torch.stack([torch.zeros_like(index), index], -1)
    encoded = data.clone().set("action", torch.cat([torch.ones(7, 1), nn.functional.one_hot(index, 3)], -1))
    for loss in (parts, whole):
        perturb_targets(loss)
    torch.testing.assert_close(parts(data)["loss"], whole(encoded)["loss"])
    torch.testing.assert_close(data["td_error"], encoded["td_error"])


@pytest.mark.parametrize("double_dqn", [False, True])
def test_agents_beyond_the_batch_size_are_as_in_torchrl(double_dqn: bool) -> None:
    data = transitions("categorical", batch=(7, 3))
    data.batch_size = [7]
    data["next"].batch_size = [7]
    check_parity(builder(double_dqn=double_dqn), DQNLoss, TheirDQNLoss, data)


def test_the_dtype_is_that_of_the_data() -> None:
    data = as_double(transitions("categorical"))
    loss = make_loss().double()
    assert loss(data)["loss"].dtype is torch.float64
    assert data["td_error"].dtype is torch.float64


def test_a_network_that_does_not_write_its_greedy_value_is_an_error() -> None:
    network = TensorDictModule(mlp(OBSERVATION, N_ACTIONS), ["observation"], ["action_value"])
    data = transitions("categorical")
    with pytest.raises(KeyError, match="must write its greedy value"):
        DQNLoss(network, action_space="categorical")(data)
    assert "td_error" not in data


# -- life cycle ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_used_loss_can_be_copied_and_pickled(clone: Callable[[Any], Any]) -> None:
    loss = make_loss(double_dqn=True)
    expected, written, _ = run(loss, transitions("categorical"))
    out, again, _ = run(clone(loss), transitions("categorical"))
    assert torch.equal(out["loss"], expected["loss"])
    torch.testing.assert_close(written, again, rtol=0, atol=0)


def test_a_used_state_loads_strictly_into_a_fresh_loss() -> None:
    used = make_loss()
    used.make_value_estimator("tdlambda", gamma=0.5)
    used(transitions("categorical", batch=(3, 4)))
    fresh = DQNLoss(make_actor(modules=tritonrl.modules))
    assert str(fresh.load_state_dict(used.state_dict())) == "<All keys matched successfully>"
    data = transitions("categorical", batch=(3, 4))
    assert torch.equal(fresh(data.clone())["loss"], used(data.clone())["loss"])


@pytest.mark.parametrize("make_updater", [lambda loss: SoftUpdate(loss, tau=0.3), HardUpdate])
def test_an_updater_moves_the_target(make_updater: Callable[[Any], Any]) -> None:
    loss = DQNLoss(make_actor(modules=tritonrl.modules))
    updater = make_updater(loss)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(1.0)
    updater.step()
    gap = [
        (source - target).mean()
        for source, target in zip(
            loss.value_network_params.values(True, True),
            loss.target_value_network_params.values(True, True),
            strict=True,
        )
    ]
    expected = 0.7 if isinstance(updater, SoftUpdate) else 1.0
    torch.testing.assert_close(torch.stack(gap), torch.full((len(gap),), expected))


# -- torch.compile ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    ("space", "kwargs", "data"),
    [
        ("one_hot", {"double_dqn": True}, {"weights": True, "mask": True, "n_step": True}),
        ("categorical", {"delay_value": False, "reduction": "none"}, {}),
    ],
)
def test_it_compiles_once_with_eager_numbers(space: str, kwargs: dict[str, Any], data: dict[str, Any]) -> None:
    loss = make_loss(space, **kwargs)

    def change() -> None:
        loss.value_estimator.gamma = 0.5

    check_compile_once(loss, lambda **options: transitions(space, **options), change, **data)


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_training_step_with_its_target_update_is_one_graph() -> None:
    check_training_compiles(
        make_loss, lambda loss: SoftUpdate(loss, tau=0.1), lambda **options: transitions("categorical", **options)
    )
