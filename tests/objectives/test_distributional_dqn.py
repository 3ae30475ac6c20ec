"""C51: against a loop in Python floats, against TorchRL, and where TorchRL's loss does not work."""

from __future__ import annotations

import bisect
import copy
import inspect
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchrl.modules
import torchrl.objectives
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Categorical, OneHot

import tritonrl.modules
from tritonrl.objectives import SoftUpdate, ValueEstimators
from tritonrl.objectives.distributional_dqn import DistributionalDQNLoss
from tritonrl.objectives.value import TD0Estimator

from .off_policy_cases import (
    N_ACTIONS,
    OBSERVATION,
    as_double,
    backward,
    check_compile_once,
    check_training_compiles,
    fresh_dynamo,
    mlp,
    new_entries,
    perturb_targets,
    run,
    transitions,
)

__all__ = ["fresh_dynamo"]

TheirLoss = torchrl.objectives.DistributionalDQNLoss
ATOMS = 7
SUPPORT = torch.linspace(-2, 2, ATOMS)
SPACES = ["categorical", "one_hot"]


@pytest.fixture(autouse=True)
def _no_target_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL_WARNINGS", "False")


def make_actor(
    space: str | None = "categorical", modules: Any = tritonrl.modules, support: Tensor = SUPPORT, **kwargs: Any
) -> Any:
    torch.manual_seed(0)
    n = support.shape[0]
    network = nn.Sequential(mlp(OBSERVATION, n * N_ACTIONS), nn.Unflatten(-1, (n, N_ACTIONS)))
    return modules.DistributionalQValueActor(
        network, support=support.clone(), in_keys=["observation"], action_space=space, **kwargs
    )


def make_loss(space: str = "categorical", *, support: Tensor = SUPPORT, **kwargs: Any) -> DistributionalDQNLoss:
    loss = DistributionalDQNLoss(make_actor(space, support=support), **{"gamma": 0.9, **kwargs})
    perturb_targets_but_support(loss)
    return loss


def perturb_targets_but_support(loss: Any) -> None:
    perturb_targets(loss)
    for name, buffer in loss.named_buffers():
        if name.startswith("target_") and name.endswith("support"):
            buffer.data.copy_(loss.value_network_params["support"])


# -- an oracle ----------------------------------------------------------------------------------------------------


def project(probs: list[float], atoms: list[float], support: list[float]) -> list[float]:
    mass = [0.0] * len(support)
    for p, atom in zip(probs, atoms, strict=True):
        position = min(max(atom, support[0]), support[-1])
        right = bisect.bisect_left(support, position)
        if support[right] == position:
            mass[right] += p
            continue
        share = (position - support[right - 1]) / (support[right] - support[right - 1])
        mass[right] += p * share
        mass[right - 1] += p * (1 - share)
    return mass


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def oracle(loss: DistributionalDQNLoss, data: TensorDict, gamma: float) -> list[float]:
    """Cross-entropies, step by step: logits are looked up, the rest is Python floats."""
    network = loss.get_stateful_net("value_network").module[0].module
    target = copy.deepcopy(network)
    prefix = "module.0.module."
    state = loss.target_value_network_params.flatten_keys(".").to_dict()
    target.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    z = loss.value_network_params["support"].tolist()

    def distributions(net: nn.Module, observation: Tensor) -> list[list[float]]:
        return [softmax(logits) for logits in net(observation).T.tolist()]

    losses = []
    for step in data.reshape(-1).unbind(0):
        online = distributions(network, step["next", "observation"])
        means = [sum(zi * pi for zi, pi in zip(z, p, strict=True)) for p in online]
        probs = distributions(target, step["next", "observation"])[means.index(max(means))]
        n = int(step["steps_to_next_obs"]) if "steps_to_next_obs" in step else 1
        discount = 0.0 if step["next", "terminated"] else gamma**n
        mass = project(probs, [float(step["next", "reward"]) + discount * zi for zi in z], z)
        taken = distributions(network, step["observation"])[int(step["action"])]
        losses.append(-sum(m * math.log(p) for m, p in zip(mass, taken, strict=True)))
    return losses


@pytest.mark.parametrize("batch", [(1,), (7,), (3, 2), (2, 1, 3), ()])
@pytest.mark.parametrize("n_step", [False, True])
def test_it_is_the_formula_for_any_batch_size(batch: tuple[int, ...], n_step: bool) -> None:
    data = as_double(transitions("categorical", batch=batch, n_step=n_step))
    loss = make_loss(reduction="none").double()
    out = loss(data)
    expected = oracle(loss, data, 0.9)
    assert out["loss"].shape == batch
    torch.testing.assert_close(out["loss"].flatten().tolist(), expected, rtol=1e-9, atol=1e-9)
    assert data["td_error"].shape == (*batch, 1)
    torch.testing.assert_close(data["td_error"].flatten().tolist(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("support", [SUPPORT[:2], torch.tensor([-3.0, -1.0, 0.0, 0.25, 5.0])])
def test_the_support_need_not_be_even(support: Tensor) -> None:
    data = as_double(transitions("categorical"))
    loss = make_loss(support=support, reduction="none").double()
    torch.testing.assert_close(loss(data)["loss"].tolist(), oracle(loss, data, 0.9), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mass_of_the_target_is_one(dtype: torch.dtype) -> None:
    data = transitions("categorical", batch=(64,), n_step=True).apply(
        lambda x: x.to(dtype) if x.is_floating_point() else x
    )
    data["next", "reward"] *= 3  # Some of it beyond the support.
    target = make_loss().to(dtype)._target_distribution(data)
    assert target.dtype is dtype
    assert bool((target >= 0).all())
    torch.testing.assert_close(target.sum(-1), torch.ones(64, dtype=dtype))


def test_one_hot_and_categorical_actions_are_two_ways_to_say_the_same() -> None:
    data = transitions("categorical", weights=True)
    encoded = data.clone().set("action", nn.functional.one_hot(data["action"], N_ACTIONS))
    torch.testing.assert_close(make_loss("one_hot")(encoded)["loss"], make_loss()(data)["loss"])


def test_gamma_zero_forgets_the_next_step() -> None:
    data = transitions("categorical")
    loss = make_loss(gamma=0.0)
    expected = loss(data.clone())["loss"]
    data["next", "terminated"].fill_(True)
    torch.testing.assert_close(loss(data)["loss"], expected)


def test_a_smaller_gamma_can_be_assigned() -> None:
    data = transitions("categorical")
    loss = make_loss()
    gamma = loss.gamma
    loss.gamma = 0.3
    assert loss.gamma is gamma
    assert torch.equal(loss(data)["loss"], make_loss(gamma=0.3)(data)["loss"])


def test_the_discount_of_double_data_is_not_rounded_to_single_precision() -> None:
    assert float(make_loss(gamma=0.99).gamma) == 0.99


# -- TorchRL ------------------------------------------------------------------------------------------------------


def test_the_signature_is_that_of_torchrl() -> None:
    ours, theirs = (inspect.signature(cls.__init__).parameters.values() for cls in (DistributionalDQNLoss, TheirLoss))
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


def check_parity(data: TensorDict, space: str, modules: Any = torchrl.modules, **kwargs: Any) -> None:
    results, names = [], []
    for cls in (DistributionalDQNLoss, TheirLoss):
        loss = cls(make_actor(space, modules), **{"gamma": 0.9, **kwargs})
        perturb_targets_but_support(loss)
        out, written, _ = run(loss, data)
        assert out.batch_size == ()
        results.append((out.to_dict(), written, backward(loss, out)))
        names.append(list(loss.state_dict()))
    assert results[0][2]["loss"]
    assert names[0] == names[1]
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("modules", [torchrl.modules, tritonrl.modules])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("delay_value", [True, False])
def test_values_gradients_and_entries_are_those_of_torchrl(modules: Any, space: str, delay_value: bool) -> None:
    check_parity(transitions(space), space, modules, delay_value=delay_value)


@pytest.mark.parametrize("data", [{"n_step": True}, {"weights": True}, {"mask": True}, {"weights": True, "mask": True}])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_options_of_the_data_and_reductions_are_those_of_torchrl(data: dict[str, bool], reduction: str) -> None:
    check_parity(transitions("categorical", **data), "categorical", reduction=reduction)


@pytest.mark.parametrize("use", [True, False])
def test_priority_weights_can_be_switched(use: bool) -> None:
    check_parity(transitions("one_hot", weights=True), "one_hot", use_prioritized_weights=use)


def test_a_reward_on_an_atom_gives_it_all_of_the_mass() -> None:
    data = transitions("categorical")
    data["next", "terminated"].fill_(True)
    data["next", "reward"] = SUPPORT.unsqueeze(-1)
    check_parity(data, "categorical")
    torch.testing.assert_close(make_loss()._target_distribution(data), torch.eye(ATOMS))


def test_the_accepted_keys_are_those_of_torchrl() -> None:
    ours, theirs = (vars(cls(make_actor(), gamma=0.9).tensor_keys) for cls in (DistributionalDQNLoss, TheirLoss))
    assert ours == theirs


def test_keys_can_be_changed() -> None:
    data = transitions("categorical", n_step=True, weights=True)
    expected = make_loss()(data.clone())["loss"]
    torch.manual_seed(0)
    network = nn.Sequential(mlp(OBSERVATION, ATOMS * N_ACTIONS), nn.Unflatten(-1, (ATOMS, N_ACTIONS)))
    module = TensorDictModule(network, ["observation"], ["values"])
    actor = tritonrl.modules.DistributionalQValueActor(
        module, SUPPORT, action_space="categorical", action_value_key="values"
    )
    loss = DistributionalDQNLoss(actor, gamma=0.9)
    perturb_targets_but_support(loss)
    names = {"steps_to_next_obs": "n", "priority_weight": "w", "priority": ("q", "error"), "action_value": "values"}
    loss.set_keys(**names, reward="r")
    data.rename_key_("steps_to_next_obs", "n").rename_key_("priority_weight", "w")
    data.rename_key_(("next", "reward"), ("next", "r"))
    assert torch.equal(loss(data)["loss"], expected)
    assert data["q", "error"].shape == (7, 1)
    assert {"n", "w", ("next", "r")} <= set(loss.in_keys)


def test_the_state_of_torchrls_loss_loads_strictly() -> None:
    theirs = TheirLoss(make_actor(modules=torchrl.modules), gamma=0.75)
    ours = make_loss()
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    assert float(ours.gamma) == 0.75


# -- where TorchRL's loss does not work ---------------------------------------------------------------------------


def test_torchrl_does_not_take_one_transition_of_a_categorical_action() -> None:
    data = transitions("categorical", batch=(1,))
    with pytest.raises(Exception, match=""):
        TheirLoss(make_actor(), gamma=0.9)(data.clone())
    assert make_loss()(data)["loss"].isfinite()


def test_torchrl_does_not_take_double_precision() -> None:
    data = as_double(transitions("categorical"))
    with pytest.raises(RuntimeError):
        TheirLoss(make_actor().double(), gamma=0.9)(data.clone())
    assert make_loss().double()(data)["loss"].dtype is torch.float64


def test_torchrl_takes_one_batch_dimension_only_and_fails_to_say_so() -> None:
    with pytest.raises(AttributeError, match="__name___"):
        TheirLoss(make_actor(), gamma=0.9)(transitions("categorical", batch=(3, 2)))


def test_torchrl_misplaces_mass_on_an_uneven_support() -> None:
    support = torch.tensor([-1.0, 0.0, 4.0])
    data = transitions("one_hot")
    data["next", "terminated"].fill_(True)
    data["next", "reward"].fill_(0.0)
    theirs, ours = (
        cls(make_actor("one_hot", support=support), gamma=0.9, reduction="none")(data.clone())["loss"]
        for cls in (TheirLoss, DistributionalDQNLoss)
    )
    with torch.no_grad():
        log_probs = make_actor("one_hot", support=support)(data.select("observation"))["action_value"]
    of_action = (log_probs * data["action"].unsqueeze(-2)).sum(-1)
    torch.testing.assert_close(ours, -of_action[:, 1])
    assert not torch.allclose(theirs, ours)


def test_torchrl_has_no_keys_and_no_dispatch() -> None:
    theirs, ours = TheirLoss(make_actor(), gamma=0.9), make_loss()
    with pytest.raises(AttributeError):
        theirs.in_keys  # noqa: B018
    data = transitions("categorical", n_step=True, weights=True)
    assert ours.out_keys == ["loss"]
    assert set(ours.in_keys) == {
        "observation",
        "action",
        "steps_to_next_obs",
        "priority_weight",
        *(("next", key) for key in ("observation", "reward", "done", "terminated")),
    }
    out = ours(
        observation=data["observation"],
        action=data["action"],
        next_observation=data["next", "observation"],
        next_reward=data["next", "reward"],
        next_terminated=data["next", "terminated"],
        steps_to_next_obs=data["steps_to_next_obs"],
        priority_weight=data["priority_weight"],
    )
    assert torch.equal(out, ours(data)["loss"])


def test_an_impossible_atom_does_no_harm_where_the_target_has_no_mass() -> None:
    data = transitions("categorical")
    data["next", "terminated"].fill_(True)
    data["next", "reward"] = SUPPORT[3].expand(7, 1).clone()
    losses = {}
    for cls in (TheirLoss, DistributionalDQNLoss):
        actor = make_actor()
        last = actor.module[0].module[0][2]
        with torch.no_grad():
            last.bias.view(ATOMS, N_ACTIONS)[0] = -math.inf  # The probability of the first atom is 0.
        out = cls(actor, gamma=0.9)(data.clone())
        out["loss"].backward()
        losses[cls] = (out["loss"].detach(), last.weight.grad)
    assert losses[TheirLoss][0].isnan()
    assert losses[DistributionalDQNLoss][0].isfinite()
    finite_rows = losses[DistributionalDQNLoss][1].view(ATOMS, N_ACTIONS, -1)
    assert finite_rows.isfinite().all()
    assert finite_rows.abs().max() > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_lies_behind_a_terminated_step_reaches_nothing(bad: float) -> None:
    data = transitions("categorical")
    loss = make_loss()
    expected, written, _ = run(loss, data)
    terminated = data["next", "terminated"]
    assert terminated.any()
    data["next", "observation"] = torch.where(terminated, bad, data["next", "observation"])
    out, poisoned, _ = run(loss, data)
    torch.testing.assert_close(out["loss"], expected["loss"])
    torch.testing.assert_close(poisoned, written)


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


def test_only_the_network_gets_a_gradient() -> None:
    loss = make_loss()
    data = transitions("categorical")
    here, there = data["observation"].requires_grad_(), data["next", "observation"].requires_grad_()
    loss.total(loss(data)).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in loss.parameters())
    assert here.grad is not None
    assert there.grad is None


# -- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [DistributionalDQNLoss, TheirLoss])
@pytest.mark.parametrize(
    ("kwargs", "error"),
    [({}, TypeError), ({"gamma": 0.9, "priority_key": "p"}, RuntimeError), ({"gamma": 0.9, "delay": 1}, TypeError)],
)
def test_bad_options_raise_as_in_torchrl(cls: Any, kwargs: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        cls(make_actor(), **kwargs)


def test_a_plain_module_is_refused_as_in_torchrl() -> None:
    for cls in (DistributionalDQNLoss, TheirLoss):
        with pytest.raises(TypeError):
            cls(nn.Linear(2, 2), gamma=0.9)


@pytest.mark.parametrize(
    ("actor", "match"),
    [
        (lambda: tritonrl.modules.QValueActor(mlp(5, 4), action_space="categorical"), "'support'"),
        (lambda: make_actor("mult_one_hot", var_nums=[2, 2]), "one choice"),
        (lambda: make_actor(support=torch.tensor([1.0, 0.0])), "strictly increasing"),
        (lambda: TensorDictModule(mlp(5, 4), ["observation"], ["action_value"]), "action_space was not given"),
    ],
)
def test_a_network_without_distributions_is_refused(actor: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DistributionalDQNLoss(actor(), gamma=0.9)


@pytest.mark.parametrize("spec", [OneHot(N_ACTIONS), Categorical(N_ACTIONS)])
def test_the_action_space_is_that_of_the_network(spec: Any) -> None:
    expected = "one_hot" if isinstance(spec, OneHot) else "categorical"
    for modules in (torchrl.modules, tritonrl.modules):
        assert DistributionalDQNLoss(make_actor(None, modules, spec=spec), gamma=0.9).action_space == expected


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"action": None}, KeyError, "'action'"),
        ({("next", "reward"): None}, KeyError, "reward"),
        ({("next", "observation"): None}, KeyError, "observation"),
        ({"action": torch.zeros(7, 2, dtype=torch.int64)}, RuntimeError, "action must have the shape"),
        ({("next", "reward"): torch.zeros(7, 2)}, RuntimeError, r"\(7, 1\), got \(7, 2\)"),
        ({("next", "reward"): torch.full((7, 1), math.nan)}, RuntimeError, "returns must be finite"),
        ({("next", "reward"): torch.full((7, 1), math.inf)}, RuntimeError, "returns must be finite"),
        ({"steps_to_next_obs": torch.ones(7, 2)}, RuntimeError, "steps_to_next_obs"),
        ({"priority_weight": torch.ones(7, 1)}, ValueError, "weights"),
    ],
)
def test_after_an_error_nothing_is_written(change: dict[Any, Any], error: type[Exception], match: str) -> None:
    data = transitions("categorical")
    for key, value in change.items():
        if value is None:
            del data[key]
        else:
            data[key] = value
    before = data.clone()
    with pytest.raises(error, match=match):
        make_loss()(data)
    assert not new_entries(before, data)


def test_one_end_flag_is_enough() -> None:
    data = transitions("categorical")
    data["next", "done"] = data["next", "terminated"]
    expected = make_loss()(data.clone())["loss"]
    for entry in ("done", "terminated"):
        given = data.clone()
        del given["next", entry]
        assert torch.equal(make_loss()(given)["loss"], expected)
    del data["next", "done"], data["next", "terminated"]
    with pytest.raises(KeyError, match="done"):
        make_loss()(data)


def test_td0_is_the_only_estimator_and_brings_its_gamma() -> None:
    for value_type in (None, ValueEstimators.TD0, "td0"):
        loss = make_loss()
        assert loss.make_value_estimator(value_type, gamma=0.5) is None
        assert loss.value_type is ValueEstimators.TD0
        assert loss.value_estimator is None
        assert float(loss.gamma) == 0.5
    for value_type in (ValueEstimators.TD1, "tdlambda", TD0Estimator):
        with pytest.raises(NotImplementedError, match="only TD0 is"):
            make_loss().make_value_estimator(value_type)
    with pytest.raises(TypeError, match="lmbda"):
        make_loss().make_value_estimator(lmbda=0.5)


# -- life cycle and torch.compile ---------------------------------------------------------------------------------


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_used_loss_can_be_copied_and_pickled(clone: Callable[[Any], Any]) -> None:
    loss = make_loss()
    expected, written, _ = run(loss, transitions("categorical"))
    out, again, _ = run(clone(loss), transitions("categorical"))
    assert torch.equal(out["loss"], expected["loss"])
    torch.testing.assert_close(written, again, rtol=0, atol=0)


def test_a_used_state_loads_strictly_into_a_fresh_loss() -> None:
    used = make_loss(gamma=0.6)
    expected = used(transitions("categorical"))["loss"]
    fresh = DistributionalDQNLoss(make_actor(), gamma=0.9)
    assert str(fresh.load_state_dict(used.state_dict())) == "<All keys matched successfully>"
    assert torch.equal(fresh(transitions("categorical"))["loss"], expected)


@pytest.mark.usefixtures("fresh_dynamo")
def test_it_compiles_once_with_eager_numbers() -> None:
    loss = make_loss("one_hot")

    def change() -> None:
        loss.gamma = 0.5

    options = {"weights": True, "mask": True, "n_step": True}
    check_compile_once(loss, lambda **given: transitions("one_hot", **given), change, **options)


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_training_step_with_its_target_update_is_one_graph() -> None:
    check_training_compiles(
        make_loss, lambda loss: SoftUpdate(loss, tau=0.1), lambda **options: transitions("categorical", **options)
    )


def test_torchrl_breaks_the_graph() -> None:
    torch._dynamo.reset()
    loss = TheirLoss(make_actor(modules=torchrl.modules), gamma=0.9)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(loss, fullgraph=True, backend="eager")(transitions("categorical"))
