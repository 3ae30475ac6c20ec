"""IQL and DiscreteIQL: TorchRL's numbers, independent oracles, identities, and what goes beyond TorchRL."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchrl.objectives as torchrl_objectives
from tensordict import TensorDict
from tensordict.nn import (
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from tritonrl.objectives import SoftUpdate
from tritonrl.objectives.discrete_iql import DiscreteIQLLoss
from tritonrl.objectives.expectile import advantage_weight, expectile_loss
from tritonrl.objectives.iql import IQLLoss
from tritonrl.objectives.value import TDLambdaEstimator

from .off_policy_cases import (
    ACTION,
    N_ACTIONS,
    OBSERVATION,
    as_double,
    check_compile_once,
    check_parity,
    check_training_compiles,
    discrete_actor,
    fresh_dynamo,
    make_action_values,
    make_qvalue,
    make_value,
    mlp,
    perturb_targets,
    run,
    tanh_normal_actor,
    transitions,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*target network updater:UserWarning")
__all__ = ["fresh_dynamo"]

SPACES = ("continuous", "one_hot", "categorical")
INTERMEDIATE = {"continuous": ("loc", "scale"), "one_hot": ("logits",), "categorical": ("logits",)}


@pytest.fixture(autouse=True)
def _no_target_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL_WARNINGS", "False")


def critic(space: str, seed: int = 1) -> TensorDictModule:
    return make_qvalue(seed) if space == "continuous" else make_action_values(seed, "state_action_value")


def build(cls: Any = None, space: str = "continuous", critics: Any = None, **kwargs: Any) -> Any:
    """The loss of a space; ``cls`` only tells our package from TorchRL's."""
    theirs = getattr(cls, "__module__", "").startswith("torchrl")
    critics = critic(space) if critics is None else critics
    if space == "continuous":
        loss_class = torchrl_objectives.IQLLoss if theirs else IQLLoss
        return loss_class(tanh_normal_actor(), critics, make_value(), **kwargs)
    discrete = torchrl_objectives.DiscreteIQLLoss if theirs else DiscreteIQLLoss
    actor = discrete_actor(one_hot=space == "one_hot")
    return discrete(actor, critics, make_value(), action_space=space.replace("_", "-"), **kwargs)


def parity(space: str, data: TensorDict, **options: Any) -> tuple[Any, Any]:
    kwargs = {key: options.pop(key) for key in ("prepare", "differ") if key in options}
    return check_parity(
        lambda cls: build(cls, space, **copy.deepcopy(options)),
        IQLLoss,
        torchrl_objectives.IQLLoss,
        data,
        only_theirs_writes=INTERMEDIATE[space],
        **kwargs,
    )


# -- parity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_qvalue_nets": 1},
        {"num_qvalue_nets": 3, "loss_function": "l1"},
        {"temperature": 3.0, "expectile": 0.8, "loss_function": "l2"},
        {"reduction": "sum", "separate_losses": True},
        {"reduction": "none", "scalar_output_mode": "exclude"},
        {"reduction": "none", "scalar_output_mode": "non_tensor"},
    ],
    ids=str,
)
def test_values_gradients_and_writes_are_those_of_torchrl(space: str, options: dict[str, Any]) -> None:
    parity(space, transitions(space), **options)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("estimator", ["TD0", "TD1", "TDLambda"])
def test_every_estimator_gives_the_numbers_of_torchrl(space: str, estimator: str) -> None:
    def choose(loss: Any) -> None:
        enum = type(loss.default_value_estimator)  # each package has its own
        loss.make_value_estimator(enum[estimator], gamma=0.9)

    parity(space, transitions(space, batch=(3, 5)), prepare=choose)


def test_critics_evaluated_in_a_loop_or_given_as_a_list_are_those_of_torchrl() -> None:
    parity("continuous", transitions(), deactivate_vmap=True)
    parity("continuous", transitions(), critics=[make_qvalue(5), make_qvalue(6)])
    parity("continuous", transitions(), critics=[make_qvalue(5)], num_qvalue_nets=1)


@pytest.mark.parametrize("separate_losses", [False, True])
def test_shared_layers_get_the_gradients_of_torchrl(separate_losses: bool) -> None:
    def shared(cls: Any) -> Any:
        torch.manual_seed(0)
        trunk = TensorDictModule(nn.Sequential(nn.Linear(OBSERVATION, 6), nn.Tanh()), ["observation"], ["hidden"])
        head = TensorDictModule(nn.Sequential(nn.Linear(6, 2 * ACTION), NormalParamExtractor()), ["hidden"], ["l", "s"])
        draw = ProbabilisticTensorDictModule(
            {"loc": "l", "scale": "s"},
            ["action"],
            distribution_class=lambda loc, scale: Independent(Normal(loc, scale), 1),
        )
        actor = ProbabilisticTensorDictSequential(trunk, head, draw)
        value = TensorDictSequential(trunk, TensorDictModule(nn.Linear(6, 1), ["hidden"], ["state_value"]))
        return cls(actor, make_qvalue(), value, separate_losses=separate_losses)

    check_parity(
        shared,
        IQLLoss,
        torchrl_objectives.IQLLoss,
        transitions(),
        only_theirs_writes=("hidden", "l", "s"),
    )


def test_renamed_keys_are_those_of_torchrl() -> None:
    data = transitions()
    data.rename_key_("action", "act")
    data.rename_key_(("next", "reward"), ("next", "gain"))

    def renamed(cls: Any) -> Any:
        qvalue = TensorDictModule(make_qvalue().module, ["observation", "act"], ["q"])
        value = TensorDictModule(make_value().module, ["observation"], ["v"])
        loss = cls(tanh_normal_actor(), qvalue, value)
        loss.set_keys(action="act", reward="gain", state_action_value="q", value="v", priority="p", log_prob="lp")
        return loss

    check_parity(renamed, IQLLoss, torchrl_objectives.IQLLoss, data, only_theirs_writes=("loc", "scale"))


@pytest.mark.parametrize("ours", [IQLLoss, DiscreteIQLLoss])
def test_the_constructor_has_the_parameters_of_torchrl(ours: type) -> None:
    theirs = getattr(torchrl_objectives, ours.__name__)
    for parameter, other in zip(_parameters(ours), _parameters(theirs), strict=True):
        assert (parameter.name, parameter.kind, parameter.default) == (other.name, other.kind, other.default)


def _parameters(cls: type) -> list[inspect.Parameter]:
    return list(inspect.signature(cls.__init__).parameters.values())


@pytest.mark.parametrize("space", SPACES)
def test_the_single_terms_are_those_of_torchrl(space: str) -> None:
    ours, theirs = build(space=space, expectile=0.7), build(torchrl_objectives.IQLLoss, space, expectile=0.7)
    ours.load_state_dict(theirs.state_dict())
    for loss in (ours, theirs):
        perturb_targets(loss)
    for name in ("actor_loss", "qvalue_loss", "value_loss"):
        data, their_data = transitions(space), transitions(space)
        (value, meta), (their_value, their_meta) = getattr(ours, name)(data), getattr(theirs, name)(their_data)
        torch.testing.assert_close(value, their_value)
        torch.testing.assert_close(meta, their_meta)
        written = set(data.keys()) - set(transitions(space).keys())
        assert written == ({"_log_prob"} if name == "actor_loss" else set())
    torch.testing.assert_close(
        IQLLoss.loss_value_diff(torch.tensor([1.0, -2.0])),
        torchrl_objectives.IQLLoss.loss_value_diff(torch.tensor([1.0, -2.0])),
    )


# -- oracle and identities ----------------------------------------------------------------------------------------


def double_actor() -> ProbabilisticTensorDictSequential:
    torch.manual_seed(4)
    return ProbabilisticTensorDictSequential(
        TensorDictModule(
            nn.Sequential(mlp(OBSERVATION, 2 * ACTION), NormalParamExtractor()), ["observation"], ["l", "s"]
        ),
        ProbabilisticTensorDictModule(
            {"loc": "l", "scale": "s"},
            ["action"],
            distribution_class=lambda loc, scale: Independent(Normal(loc, scale), 1),
        ),
    ).double()


def test_each_term_is_its_formula_step_by_step() -> None:
    actor, value, critics = double_actor(), make_value().double(), [make_qvalue(5).double(), make_qvalue(6).double()]
    targets = copy.deepcopy(critics)
    loss = IQLLoss(actor, critics, value, expectile=0.7, temperature=2.5, loss_function="l2", reduction="none")
    data = as_double(transitions(n_step=True))
    out, written, _ = run(loss, data)
    for b, step in enumerate(data.unbind(0)):
        q = [net.module(step["observation"], step["action"]).item() for net in targets]
        v, v_next = (value.module(td["observation"]).item() for td in (step, step["next"]))
        loc, scale = actor[0].module(step["observation"])
        log_prob = Normal(loc, scale).log_prob(step["action"]).sum().item()
        u = min(q) - v
        bootstrap = 0.0 if step["next", "terminated"].item() else v_next
        y = step["next", "reward"].item() + 0.99 ** step["steps_to_next_obs"].item() * bootstrap
        expected = {
            "loss_value": (0.7 if u > 0 else 0.3) * u * u,
            "loss_actor": -min(math.exp(2.5 * u), 100.0) * log_prob,
            "loss_qvalue": sum((qi - y) ** 2 for qi in q),
        }
        for key, number in expected.items():
            assert out[key][b].item() == pytest.approx(number, rel=1e-9), key
        assert written["td_error"][b].item() == pytest.approx(max((qi - y) ** 2 for qi in q), rel=1e-9)
        assert written["_log_prob"][b].item() == pytest.approx(log_prob, rel=1e-9)


@pytest.mark.parametrize("space", SPACES)
def test_the_middle_expectile_is_half_the_squared_error(space: str) -> None:
    loss, data = build(space=space, expectile=0.5, num_qvalue_nets=1), transitions(space)
    q = loss._target_action_value(data)
    v = loss.value_network(data.copy())["state_value"].squeeze(-1)
    torch.testing.assert_close(loss(data)["loss_value"], nn.functional.mse_loss(v, q) / 2)


def test_temperature_zero_clones_the_behaviour() -> None:
    loss, data = build(temperature=0.0), transitions()
    out = loss(data)
    torch.testing.assert_close(out["loss_actor"], -data["_log_prob"].mean())
    torch.testing.assert_close(out["loss_actor"], out["entropy"])


def test_the_expectile_minimises_its_loss() -> None:
    sample = torch.randn(501, dtype=torch.float64)
    for tau, lower, upper in ((0.5, -1e-3, 1e-3), (0.9, 0.5, 1.5), (0.1, -1.5, -0.5)):
        m = sample.mean().clone()
        for _ in range(200):
            weight = torch.where(sample > m, *torch.tensor([tau, 1 - tau], dtype=torch.float64))
            m = (weight * sample).sum() / weight.sum()
        m.requires_grad_(True)
        expectile_loss(sample - m, tau).sum().backward()
        assert m.grad is not None and abs(m.grad.item()) < 1e-9
        assert lower < m.item() - sample.mean().item() < upper


def test_the_weight_of_an_advantage_is_bounded_and_keeps_the_dtype() -> None:
    advantage = torch.tensor([-1e4, 0.0, 1e4], dtype=torch.bfloat16)
    weight = advantage_weight(advantage, torch.tensor(3.0))
    assert weight.tolist() == [0.0, 1.0, 100.0] and weight.dtype is torch.bfloat16
    assert expectile_loss(advantage, torch.tensor(0.7)).dtype is torch.bfloat16


def test_an_expectile_is_exact_in_double_precision() -> None:
    """TorchRL rounds the weight to single precision."""
    assert expectile_loss(torch.ones(1, dtype=torch.float64), 0.7).item() == 0.7
    assert torchrl_objectives.IQLLoss.loss_value_diff(torch.ones(1, dtype=torch.float64), 0.7).item() != 0.7
    loss = IQLLoss(double_actor(), make_qvalue().double(), make_value().double(), expectile=0.7)
    assert loss.expectile.item() == 0.7


# -- right where TorchRL is not -----------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
def test_differently_a_mask_holds_for_the_critics_and_the_metrics_too(space: str) -> None:
    theirs = build(torchrl_objectives.IQLLoss, space)
    loss, data = build(space=space), transitions(space, mask=True)
    loss.load_state_dict(theirs.state_dict())
    valid = data["shifted_valid"]
    got = loss(data.clone())
    torch.testing.assert_close(got, loss(data[valid].exclude("shifted_valid")))
    their_out = theirs(data.clone())
    torch.testing.assert_close(got["loss_actor"], their_out["loss_actor"])
    assert not torch.isclose(got["entropy"], their_out["entropy"])
    assert torch.isclose(got["loss_qvalue"], their_out["loss_qvalue"]).item() is (space != "continuous")


@pytest.mark.parametrize("space", SPACES)
def test_differently_steps_that_span_several_are_discounted_by_all_of_them(space: str) -> None:
    options: dict[str, Any] = {"loss_function": "l2", "reduction": "none", "scalar_output_mode": "exclude"}
    theirs = build(torchrl_objectives.IQLLoss, space, **options)
    loss, data = build(space=space, **options), transitions(space, n_step=True)
    loss.load_state_dict(theirs.state_dict())
    their_out, out = theirs(data.clone()), loss(data)
    q = loss._taken_action_value(data)
    v = loss.value_network(data["next"].select("observation"))["state_value"]
    target = data["next", "reward"] + 0.99 ** data["steps_to_next_obs"] * v * ~data["next", "terminated"]
    squared = (q - target.squeeze(-1)).square()
    torch.testing.assert_close(out["loss_qvalue"], squared.sum(0))
    torch.testing.assert_close(data["td_error"], squared.max(0).values)
    assert not torch.allclose(their_out["loss_qvalue"], out["loss_qvalue"])


@pytest.mark.parametrize("space", SPACES)
def test_differently_the_actors_intermediate_outputs_are_not_written(space: str) -> None:
    _, written, _ = run(build(space=space), transitions(space))
    assert set(written) == {"_log_prob", "td_error"}


@pytest.mark.parametrize("space", SPACES)
def test_nothing_behind_a_mask_or_a_terminated_step_reaches_loss_or_gradient(space: str) -> None:
    loss, data = build(space=space), transitions(space, mask=True)
    expected = loss(data.clone())
    invalid, terminated = ~data["shifted_valid"], data["next", "terminated"].squeeze(-1)
    spoilt = data.clone()
    for key in ("observation", ("next", "observation"), ("next", "reward")):
        spoilt[key][invalid] = float("nan")
    spoilt["next", "observation"][terminated] = float("nan")
    if space == "continuous":
        spoilt["action"][invalid] = float("inf")
    out = loss(spoilt)
    torch.testing.assert_close(out, expected)
    loss.total(out).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())


def test_a_second_call_on_the_same_data_gives_the_same() -> None:
    loss, data = build(), transitions()
    torch.testing.assert_close(loss(data), loss(data))


def test_both_coefficients_can_be_scheduled_and_are_no_part_of_the_state() -> None:
    loss, data = build(temperature=1, expectile=0.5), transitions()
    identity = loss.temperature
    loss.temperature, loss.expectile = 2.5, 0.9
    assert loss.temperature is identity
    fresh = build(temperature=2.5, expectile=0.9)
    fresh.load_state_dict(loss.state_dict())
    torch.testing.assert_close(loss(data.clone()), fresh(data.clone()))
    assert not {"temperature", "expectile"} & set(loss.state_dict())


# -- one critic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
def test_a_single_critic_keeps_its_own_parameters(space: str) -> None:
    net = critic(space)
    loss = build(space=space, critics=net, num_qvalue_nets=1)
    assert loss.qvalue_network_params.batch_size == torch.Size([])
    own = {id(parameter) for parameter in loss.parameters()}
    assert all(id(parameter) in own for parameter in net.parameters())


def test_a_single_critic_loads_a_state_with_a_leading_dimension_of_one() -> None:
    loss = build(num_qvalue_nets=1)
    perturb_targets(loss)
    state = loss.state_dict()
    old = {k: v.unsqueeze(0) if "qvalue_network_params" in k and isinstance(v, Tensor) else v for k, v in state.items()}
    fresh = build(num_qvalue_nets=1, critics=make_qvalue(9))
    kept = {key: value.shape for key, value in old.items() if isinstance(value, Tensor)}
    fresh.load_state_dict(old)
    assert {key: value.shape for key, value in old.items() if isinstance(value, Tensor)} == kept
    torch.testing.assert_close(fresh(transitions()), loss(transitions()))


# -- copies and checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("number", [1, 2])
def test_a_used_loss_pickles_copies_and_loads_strictly_into_a_fresh_one(space: str, number: int) -> None:
    loss, data = build(space=space, num_qvalue_nets=number), transitions(space)
    loss(data.clone())
    perturb_targets(loss)
    expected = loss(data.clone())
    fresh = build(space=space, num_qvalue_nets=number)
    fresh.load_state_dict(loss.state_dict())
    for other in (fresh, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(other(data.clone()), expected)
        assert other.load_state_dict(loss.state_dict()) is not None


# -- dispatch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
def test_keywords_do_what_a_tensordict_does(space: str) -> None:
    loss, data = build(space=space), transitions(space)
    expected = loss(data.clone())
    flat = {"_".join(key) if isinstance(key, tuple) else key: value for key, value in data.items(True, True)}
    for key, value in zip(loss.out_keys, loss(**flat), strict=True):
        torch.testing.assert_close(value, expected[key])


# -- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"gamma": 0.9}, TypeError, "make_value_estimator"),
        ({"priority_key": "p"}, RuntimeError, "set_keys"),
        ({"expectile": 1.0}, ValueError, "expectile"),
        ({"expectile": -0.1}, ValueError, "expectile"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"scalar_output_mode": "maybe"}, ValueError, "scalar_output_mode"),
        ({"temprature": 1.0}, TypeError, "temprature"),
        ({"num_qvalue_nets": 3, "critics": [make_qvalue(1), make_qvalue(2)]}, RuntimeError, "expand_dim"),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused(kwargs: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build(**kwargs)


def test_a_network_that_is_missing_or_no_policy_is_refused() -> None:
    with pytest.raises(TypeError, match="value_network"):
        IQLLoss(tanh_normal_actor(), make_qvalue(), None)
    with pytest.raises(TypeError, match="get_dist"):
        IQLLoss(make_value(), make_qvalue(), make_value())
    net = make_qvalue()
    with pytest.raises(ValueError, match="same module"):
        IQLLoss(tanh_normal_actor(), [net, net], make_value())


def test_the_action_space_is_one_hot_with_a_warning_or_one_of_two() -> None:
    networks = discrete_actor(), critic("one_hot"), make_value()
    with pytest.warns(UserWarning, match="action_space"):
        assert DiscreteIQLLoss(*networks).action_space == "one_hot"
    with pytest.raises(RuntimeError, match="mult_one_hot"):
        DiscreteIQLLoss(*networks, action_space="mult-one-hot")
    with pytest.raises(ValueError, match="action_space"):
        DiscreteIQLLoss(*networks, action_space="two-hot")


def test_a_spec_says_what_the_action_space_is() -> None:
    from torchrl.data import Categorical, OneHot

    networks = discrete_actor(), critic("one_hot"), make_value()
    for spec, name in ((OneHot(N_ACTIONS), "one_hot"), (Categorical(N_ACTIONS), "categorical")):
        assert DiscreteIQLLoss(*networks, action_space=spec).action_space == name


def test_an_index_may_have_a_trailing_dimension() -> None:
    loss, data = build(space="categorical"), transitions("categorical")
    column = loss.qvalue_loss(data.clone().set("action", data["action"].unsqueeze(-1)))[0]
    torch.testing.assert_close(column, loss.qvalue_loss(data)[0])


def test_no_reduction_warns_unless_it_is_told_what_becomes_of_the_entropy() -> None:
    with pytest.warns(UserWarning, match="scalar_output_mode"):
        loss = build(reduction="none")
    assert "entropy" not in loss(transitions())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(reduction="none", scalar_output_mode="exclude")


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (lambda data: data.pop("action"), KeyError, "action"),
        (lambda data: data["next"].pop("reward"), KeyError, "reward"),
        (lambda data: data["next"].pop("observation"), KeyError, "observation"),
        (lambda data: data["next"].set("reward", torch.zeros(7, 2)), RuntimeError, "reward"),
    ],
)
def test_after_an_error_nothing_is_written(spoil: Callable[[Any], Any], error: type[Exception], match: str) -> None:
    loss, data = build(), transitions()
    spoil(data)
    keys = set(data.keys(True, True))
    with pytest.raises(error, match=match):
        loss(data)
    assert set(data.keys(True, True)) == keys


def test_a_log_probability_of_each_action_dimension_is_refused_with_both_shapes() -> None:
    torch.manual_seed(0)
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(
            nn.Sequential(mlp(OBSERVATION, 2 * ACTION), NormalParamExtractor()), ["observation"], ["l", "s"]
        ),
        ProbabilisticTensorDictModule({"loc": "l", "scale": "s"}, ["action"], distribution_class=Normal),
    )
    with pytest.raises(RuntimeError, match=r"\(7, 3\).*\(7,\)"):
        IQLLoss(actor, make_qvalue(), make_value())(transitions())


def test_a_critic_that_writes_another_entry_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="state_action_value"):
        build(critics=make_qvalue(key="q"))(transitions())


def test_an_unknown_estimator_is_refused_and_a_class_or_an_instance_is_taken() -> None:
    loss = build()
    with pytest.raises(NotImplementedError, match="GAE"):
        loss.make_value_estimator("gae")
    data = transitions(batch=(3, 5))
    loss.make_value_estimator("tdlambda", gamma=0.9, lmbda=0.8)
    expected = loss(data.clone())
    for value_type, hyperparams in (
        (TDLambdaEstimator, {"value_network": None, "gamma": 0.9, "lmbda": 0.8}),
        (TDLambdaEstimator(value_network=None, gamma=0.9, lmbda=0.8), {}),
    ):
        assert loss.make_value_estimator(value_type, **hyperparams) is loss
        torch.testing.assert_close(loss(data.clone()), expected)


# -- torch.compile ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "kwargs"),
    [
        ("continuous", {}),
        ("categorical", {"num_qvalue_nets": 1, "reduction": "sum"}),
    ],
    ids=str,
)
def test_forward_and_backward_are_one_graph_and_never_another(
    space: str, kwargs: dict[str, Any], fresh_dynamo: None
) -> None:
    loss = build(space=space, **kwargs)
    perturb_targets(loss)

    def change() -> None:
        loss.temperature, loss.expectile = 3.0, 0.9
        loss.value_estimator.gamma.fill_(0.5)

    sizes = space == "continuous"
    check_compile_once(
        loss, lambda **options: transitions(space, **options), change, sizes=sizes, mask=True, n_step=True
    )


def test_a_whole_training_step_compiles_and_trains_as_in_eager_mode(fresh_dynamo: None) -> None:
    check_training_compiles(lambda: build(expectile=0.8), lambda loss: SoftUpdate(loss, tau=0.1), transitions)


# -- learning -----------------------------------------------------------------------------------------------------


def test_it_finds_the_better_action_in_data_that_mostly_hold_the_worse_one() -> None:
    """A bandit: one action of four pays 1, the behaviour takes it once in four times."""
    torch.manual_seed(0)
    n = 256
    index = torch.randint(N_ACTIONS, (n,))
    ended = torch.ones(n, 1, dtype=torch.bool)
    step = {"observation": torch.zeros(n, OBSERVATION), "done": ended, "terminated": ended}
    step["reward"] = (index == 2).float().unsqueeze(-1)
    data = TensorDict({"observation": torch.zeros(n, OBSERVATION), "action": index, "next": step}, [n])
    loss = build(space="categorical", expectile=0.9, temperature=5.0)
    updater, optimizer = SoftUpdate(loss, tau=0.2), torch.optim.Adam(loss.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss.total(loss(data.clone())).backward()
        optimizer.step()
        updater.step()
    with torch.no_grad():
        probability = loss.actor_network.get_dist(data.clone()).probs[:, 2].mean().item()
    assert probability > 0.9
