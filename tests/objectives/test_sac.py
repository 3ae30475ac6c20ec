"""SACLoss, with and without a value network: formula, TorchRL's numbers, where they differ, copies, torch.compile."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import gymnasium
import pytest
import torch
import torchrl.objectives as peer
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torchrl.data import Bounded, Composite

from tritonrl.objectives import SoftUpdate, ValueEstimators
from tritonrl.objectives.ddpg import DDPGLoss
from tritonrl.objectives.sac import SACLoss
from tritonrl.objectives.value import TD0Estimator, TDLambdaEstimator

from .off_policy_cases import (
    ACTION,
    BATCH,
    OBSERVATION,
    Concatenate,
    as_double,
    backward,
    check_compiled,
    check_parity,
    check_training_compiles,
    fresh_dynamo,
    make_qvalue,
    make_value,
    mlp,
    perturb_targets,
    run,
    tanh_normal_actor,
    transitions,
)

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["fresh_dynamo"]

EVEN = (6,)  # divisible by the number of critics
WRITES = ("loc", "scale")  # what TorchRL writes on top


def build(cls: Any = SACLoss, v1: bool = False, **kwargs: Any) -> Any:
    kwargs.setdefault("target_entropy", -float(ACTION))
    kwargs.setdefault("alpha_init", 0.3)
    return cls(tanh_normal_actor(), make_qvalue(), make_value() if v1 else None, **kwargs)


def moved(**kwargs: Any) -> Any:
    loss = build(**kwargs)
    perturb_targets(loss)
    return loss


def normal(loc: Tensor, scale: Tensor) -> Independent:
    return Independent(Normal(loc, scale), 1)


def normal_actor(distribution: Any = normal, mean: Any = None, std: float | None = None) -> Any:
    """A normal policy; of constant deviation ``std`` if given."""
    torch.manual_seed(0)
    mean = mlp(OBSERVATION, ACTION) if mean is None else mean

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean = mean

        def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
            loc = self.mean(observation)
            return loc, torch.full_like(loc, std) if std is not None else loc.sigmoid() + 0.1

    return ProbabilisticTensorDictSequential(
        TensorDictModule(Head(), ["observation"], ["loc", "scale"]),
        ProbabilisticTensorDictModule(
            ["loc", "scale"], ["action"], distribution_class=distribution, return_log_prob=True
        ),
    )


def lose_terminal_states(data: TensorDict, value: float) -> TensorDict:
    """The next observation of terminated steps, replaced by ``value``."""
    data = data.clone()
    observation = data["next", "observation"]
    data["next", "observation"] = torch.where(data["next", "terminated"], value, observation)
    return data


# -- the formula --------------------------------------------------------------------------------------------------


def member(params: Any, index: int, network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    params[index].to_module(network)
    return network


def test_every_term_is_what_the_paper_says_step_by_step() -> None:
    loss = SACLoss(normal_actor().double(), make_qvalue().double(), target_entropy=-1.5, alpha_init=0.3)
    perturb_targets(loss)
    data = as_double(transitions(n_step=True))
    critics = [member(loss.qvalue_network_params.data, i, loss.qvalue_network).module for i in range(2)]
    targets = [member(loss.target_qvalue_network_params, i, loss.qvalue_network).module for i in range(2)]
    out, written, _ = run(loss, data, seed=4)
    torch.manual_seed(4)
    noises = torch.randn(len(data), ACTION, dtype=torch.float64), torch.randn(len(data), ACTION, dtype=torch.float64)
    head = loss.actor_network[0].module
    terms: dict[str, list[float]] = {"loss_actor": [], "loss_qvalue": [], "loss_alpha": [], "entropy": []}
    errors = []

    def draw(observation: Tensor, noise: Tensor) -> tuple[Tensor, float]:
        loc, scale = head(observation)
        log_prob = sum(
            -0.5 * e.item() ** 2 - s.log().item() - 0.9189385332046727 for e, s in zip(noise, scale, strict=True)
        )
        return loc + scale * noise, log_prob

    with torch.no_grad():
        for step, next_noise, noise in zip(data.unbind(0), *noises, strict=True):
            action, log_prob = draw(step["next", "observation"], next_noise)
            bootstrap = min(q(step["next", "observation"], action).item() for q in targets) - 0.3 * log_prob
            target = step["next", "reward"].item()
            if not step["next", "terminated"].item():
                target += 0.99 ** step["steps_to_next_obs"].item() * bootstrap
            wrong = [abs(q(step["observation"], step["action"]).item() - target) for q in critics]
            errors.append(max(wrong))
            terms["loss_qvalue"].append(sum(0.5 * e**2 if e < 1 else e - 0.5 for e in wrong))
            action, log_prob = draw(step["observation"], noise)
            smallest = min(q(step["observation"], action).item() for q in critics)
            terms["loss_actor"].append(0.3 * log_prob - smallest)
            terms["loss_alpha"].append(-loss.log_alpha.item() * (log_prob - 1.5))
            terms["entropy"].append(-log_prob)
    for key, expected in terms.items():
        assert out[key].item() == pytest.approx(sum(expected) / len(expected), rel=1e-6), key
    assert written["td_error"].tolist() == pytest.approx(errors, rel=1e-6)
    assert out["alpha"].item() == pytest.approx(0.3)


@pytest.mark.parametrize("v1", [False, True])
def test_each_loss_trains_its_own_network_alone(v1: bool) -> None:
    loss = moved(v1=v1)
    grads = backward(loss, loss(transitions(batch=EVEN)))
    networks = {key: {name.split(".")[0] for name in terms} for key, terms in grads.items()}
    expected = {
        "loss_actor": {"actor_network_params"},
        "loss_qvalue": {"qvalue_network_params"},
        "loss_alpha": {"log_alpha"},
    }
    assert networks == expected | ({"loss_value": {"value_network_params"}} if v1 else {})
    assert sum(len(terms) for terms in grads.values()) == len(list(loss.parameters()))


def test_with_alpha_near_zero_and_one_critic_the_target_is_that_of_ddpg() -> None:
    torch.manual_seed(5)
    mean = nn.Sequential(mlp(OBSERVATION, ACTION), nn.Tanh()).double()
    critic = make_qvalue().double()
    ddpg = DDPGLoss(TensorDictModule(mean, ["observation"], ["action"]), critic)
    sac = SACLoss(
        normal_actor(mean=mean, std=1e-9),
        [critic],
        num_qvalue_nets=1,
        alpha_init=1e-12,
        fixed_alpha=True,
        target_entropy=0.0,
        loss_function="l2",
    )
    data = as_double(transitions(n_step=True, weights=True, mask=True))
    out, written, _ = run(sac, data)
    expected, errors, _ = run(ddpg, data)
    torch.testing.assert_close(written["td_error"].square(), errors["td_error"].reshape(BATCH), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(out["loss_qvalue"], expected["loss_value"], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(out["loss_actor"], expected["loss_actor"], rtol=1e-6, atol=1e-8)


def test_the_temperature_rises_where_the_entropy_is_below_its_target() -> None:
    for target_entropy, sign in ((50.0, -1), (-50.0, 1)):
        loss = build(target_entropy=target_entropy)
        grad = backward(loss, loss(transitions()))["loss_alpha"]["log_alpha"]
        assert torch.sign(grad) == sign  # what descent does is the opposite


def test_a_sum_over_the_batch_is_its_size_times_the_mean() -> None:
    mean, total = (run(moved(reduction=reduction), transitions())[0] for reduction in ("mean", "sum"))
    elements = run(moved(reduction="none", scalar_output_mode="non_tensor"), transitions())[0]
    for key in ("loss_actor", "loss_qvalue", "loss_alpha"):
        torch.testing.assert_close(total[key], mean[key] * 7)
        torch.testing.assert_close(total[key], elements[key].sum())
        assert elements[key].shape == BATCH
    for key in ("alpha", "entropy"):
        torch.testing.assert_close(elements.get(key).data, mean[key])


@pytest.mark.parametrize("v1", [False, True])
def test_the_terms_are_available_alone_and_write_nothing(v1: bool) -> None:
    loss, data = moved(v1=v1), transitions(batch=EVEN)
    before = set(data.keys(True, True))
    torch.manual_seed(11)
    if v1:
        critic_loss, metadata = loss.qvalue_v1_loss(data)
        value_loss, nothing = loss.value_loss(data)
        assert nothing == {}
    else:
        critic_loss, metadata = loss.qvalue_v2_loss(data)
    actor_loss, actor_metadata = loss.actor_loss(data)
    alpha_loss = loss.alpha_loss(actor_metadata["log_prob"])
    assert set(data.keys(True, True)) == before
    out, written, _ = run(loss, data, seed=11)
    torch.testing.assert_close((actor_loss, critic_loss), (out["loss_actor"], out["loss_qvalue"]))
    torch.testing.assert_close((alpha_loss.mean(), metadata), (out["loss_alpha"], written))
    assert alpha_loss.shape == EVEN
    if v1:
        torch.testing.assert_close(value_loss, out["loss_value"])


def test_the_terms_of_a_value_network_need_one() -> None:
    for method in ("qvalue_v1_loss", "value_loss"):
        with pytest.raises(RuntimeError, match="value_network"):
            getattr(build(), method)(transitions(batch=EVEN))


# -- ends of trajectories, masks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_lost_states_of_terminated_steps_reach_nothing(v1: bool, value: float) -> None:
    """Neither actor (whose distribution would refuse them) nor critics see them; the numbers are as if they were any."""
    data = transitions(batch=EVEN)
    assert data["next", "terminated"].any()
    loss = moved(v1=v1, skip_done_states=True)
    expected, errors, _ = run(loss, data)
    spoilt = lose_terminal_states(data, value)
    out, written, _ = run(loss, spoilt)
    torch.testing.assert_close(out.to_dict(), expected.to_dict())
    torch.testing.assert_close(written, errors)
    for terms in backward(loss, out).values():
        assert all(grad.isfinite().all() for grad in terms.values())


def test_a_truncated_step_bootstraps_from_its_finite_next_state_also_if_done_states_are_skipped() -> None:
    data = transitions()
    data["next", "done"] = torch.ones(*BATCH, 1, dtype=torch.bool)
    going_on = transitions()
    going_on["next", "done"] = data["next", "terminated"]
    for skip in (False, True):
        loss = moved(skip_done_states=skip)
        torch.testing.assert_close(run(loss, data)[1], run(loss, going_on)[1])


def test_done_alone_says_which_states_are_lost_where_there_is_no_terminated_flag() -> None:
    data = transitions().exclude(("next", "terminated"))
    out, written, _ = run(moved(skip_done_states=True), data)
    data["next", "observation"] = torch.where(data["next", "done"], float("inf"), data["next", "observation"])
    spoilt, errors, _ = run(moved(skip_done_states=True), data)
    torch.testing.assert_close(errors, written)
    torch.testing.assert_close(spoilt.to_dict(), out.to_dict())


@pytest.mark.parametrize("v1", [False, True])
def test_steps_behind_the_mask_count_nowhere_whatever_they_hold(v1: bool) -> None:
    data = transitions(batch=EVEN, mask=True, weights=True)
    spoilt = data.clone()
    for key in ("observation", "action", ("next", "observation"), ("next", "reward")):
        spoilt[key][~data["shifted_valid"]] = float("nan")
    loss = moved(v1=v1)
    (out, errors, _), (expected, clean, _) = run(loss, spoilt), run(loss, data)
    torch.testing.assert_close(out.to_dict(), expected.to_dict())
    valid = data["shifted_valid"]
    torch.testing.assert_close(errors["td_error"][valid], clean["td_error"][valid])
    for terms in backward(loss, out).values():
        assert all(grad.isfinite().all() for grad in terms.values())


def test_differently_the_entropy_counts_valid_steps_only() -> None:
    data = transitions(mask=True)
    (out, _, _), (theirs, _, _) = (run(build(cls), data) for cls in (SACLoss, peer.SACLoss))
    loss = build()
    torch.manual_seed(11)
    loss.qvalue_v2_loss(data)
    log_prob = loss.actor_loss(data)[1]["log_prob"]
    torch.testing.assert_close(out["entropy"], -log_prob[data["shifted_valid"]].mean())
    assert not torch.isclose(theirs["entropy"], out["entropy"])


# -- TorchRL ------------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"loss_function": "l2", "num_qvalue_nets": 3},
    {"num_qvalue_nets": 1},
    {"alpha_init": 0.3, "min_alpha": 0.5},
    {"alpha_init": 0.3, "max_alpha": 0.1, "fixed_alpha": True},
    {"min_alpha": 0.1, "max_alpha": 2.0, "loss_function": "l1"},
    {"fixed_alpha": True},
    {"delay_actor": True, "delay_qvalue": False, "delay_value": False},
    {"reduction": "sum"},
    {"deactivate_vmap": True},
    {"separate_losses": True},
    {"use_prioritized_weights": False},
    {"target_entropy": "auto", "action_spec": Bounded(-1, 1, (ACTION,))},
]


@pytest.mark.parametrize("kwargs", OPTIONS, ids=str)
@pytest.mark.parametrize("v1", [False, True])
def test_every_option_gives_the_numbers_of_torchrl(kwargs: dict[str, Any], v1: bool) -> None:
    data = transitions(batch=EVEN, n_step=True, weights=True)
    check_parity(
        lambda cls: build(cls, v1, **kwargs), SACLoss, peer.SACLoss, data, only_theirs_writes=WRITES, rtol=2e-4
    )


def without_metrics(loss: Any) -> None:
    """TorchRL also lists the metrics that it leaves out."""
    loss.out_keys = [key for key in loss.out_keys if key not in ("alpha", "entropy")]


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("batch", [EVEN, (2, 3), (4, 1)])
def test_unreduced_losses_give_the_numbers_of_torchrl(v1: bool, batch: tuple[int, ...]) -> None:
    check_parity(
        lambda cls: build(cls, v1, reduction="none"),
        SACLoss,
        peer.SACLoss,
        transitions(batch=batch, weights=True),
        prepare=without_metrics,
        only_theirs_writes=WRITES,
    )


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_masks_and_weights_give_the_losses_of_torchrl(v1: bool, reduction: str) -> None:
    check_parity(
        lambda cls: build(cls, v1, reduction=reduction),
        SACLoss,
        peer.SACLoss,
        transitions(batch=EVEN, mask=True, weights=True),
        prepare=without_metrics if reduction == "none" else lambda loss: None,
        only_theirs_writes=WRITES,
        differ=("entropy",),
    )


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize(
    "choose",
    [
        lambda loss: loss.make_value_estimator(gamma=0.5),
        lambda loss: loss.make_value_estimator("td0", gamma=0.9),
        lambda loss: loss.make_value_estimator(value_type(loss, "TD1")),
        lambda loss: loss.make_value_estimator(value_type(loss, "TDLambda"), gamma=0.9, lmbda=0.6),
    ],
)
def test_the_estimators_give_the_numbers_of_torchrl(v1: bool, choose: Any) -> None:
    data = transitions(batch=(4, 5))
    check_parity(lambda cls: build(cls, v1), SACLoss, peer.SACLoss, data, prepare=choose, only_theirs_writes=WRITES)


def value_type(loss: Any, name: str) -> Any:
    """The member of the enumeration of that loss's own package."""
    enum = ValueEstimators if isinstance(loss, SACLoss) else peer.ValueEstimators
    return getattr(enum, name)


@pytest.mark.parametrize("v1", [False, True])
def test_an_estimator_class_and_an_instance_work_as_the_alias_does(v1: bool) -> None:
    data = transitions(batch=(4, 5))
    by_alias, by_class, by_instance = (build(v1=v1) for _ in range(3))
    by_alias.make_value_estimator("tdlambda", gamma=0.9, lmbda=0.6)
    by_class.make_value_estimator(TDLambdaEstimator, gamma=0.9, lmbda=0.6, value_network=None)
    by_instance.make_value_estimator(TDLambdaEstimator(gamma=0.9, lmbda=0.6, value_network=None))
    for other in (by_class, by_instance):
        other.load_state_dict(by_alias.state_dict())
        torch.testing.assert_close(run(other, data)[1], run(by_alias, data)[1])
    with pytest.raises(NotImplementedError):
        by_alias.make_value_estimator("gae")
    assert isinstance(build().value_estimator, TD0Estimator)


def shared_trunk(cls: Any, v1: bool, **kwargs: Any) -> Any:
    """Actor, value and critic read the features of one layer, which all train unless the losses are separate."""
    torch.manual_seed(0)
    trunk = nn.Linear(OBSERVATION, 4)

    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk
            self.head = mlp(4 + ACTION, 1)

        def forward(self, observation: Tensor, action: Tensor) -> Tensor:
            return self.head(torch.cat([self.trunk(observation).tanh(), action], -1))

    actor = normal_actor(mean=nn.Sequential(trunk, nn.Tanh(), nn.Linear(4, ACTION)))
    critic = TensorDictModule(Critic(), ["observation", "action"], ["state_action_value"])
    value = TensorDictModule(nn.Sequential(trunk, nn.Tanh(), nn.Linear(4, 1)), ["observation"], ["state_value"])
    return cls(actor, critic, value if v1 else None, target_entropy=-3.0, alpha_init=0.3, **kwargs)


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_a_shared_trunk_is_trained_by_those_that_torchrl_lets(v1: bool, separate: bool) -> None:
    ours, _ = check_parity(
        lambda cls: shared_trunk(cls, v1, separate_losses=separate, delay_value=False),
        SACLoss,
        peer.SACLoss,
        transitions(batch=EVEN),
        only_theirs_writes=WRITES,
    )
    grads = backward(ours, ours(transitions(batch=EVEN)))
    trained = [any("actor" in name for name in grads.get(key, ())) for key in ("loss_actor", "loss_value")]
    assert trained == [True, v1 and not separate]


def test_differently_a_delayed_value_network_uses_its_own_copy_of_a_shared_trunk() -> None:
    """In TorchRL the layer of the actor, which runs in the same module, takes the place of the delayed copy."""
    data, errors = transitions(batch=EVEN), []
    losses = [shared_trunk(cls, True) for cls in (SACLoss, peer.SACLoss)]
    losses[0].load_state_dict(losses[1].state_dict())
    for loss in losses:
        perturb_targets(loss)
        errors.append(run(loss, data)[1]["td_error"])
    delayed = copy.deepcopy(losses[0].value_network)
    losses[0].target_value_network_params.to_module(delayed)
    with torch.no_grad():
        value = delayed(data["next"].select("observation"))["state_value"]
        target = data["next", "reward"] + 0.99 * torch.where(data["next", "terminated"], 0.0, value)
        prediction = losses[0]._value_of_own_part(data)
    torch.testing.assert_close(errors[0], (prediction - target.squeeze(-1)).square())
    assert not torch.allclose(errors[1], errors[0], atol=1e-3)


def test_renamed_keys_give_the_numbers_of_torchrl() -> None:
    names = {"reward": "r", "done": "d", "terminated": "t", "priority": "p", "priority_weight": "w"}
    data = transitions(weights=True)
    for old, new in names.items():
        if old in ("reward", "done", "terminated"):
            data.rename_key_(("next", old), ("next", new))
    data.rename_key_("priority_weight", "w")
    ours, _ = check_parity(
        build,
        SACLoss,
        peer.SACLoss,
        data,
        prepare=lambda loss: loss.set_keys(**names),
        only_theirs_writes=WRITES,
    )
    assert "p" in run(ours, data)[1]


def test_a_list_of_critics_gives_the_numbers_of_torchrl() -> None:
    def make(cls: Any) -> Any:
        return cls(tanh_normal_actor(), [make_qvalue(1), make_qvalue(2)], alpha_init=0.3, target_entropy=-3.0)

    check_parity(make, SACLoss, peer.SACLoss, transitions(), only_theirs_writes=WRITES)
    with pytest.raises(ValueError, match="are the same module"):
        SACLoss(tanh_normal_actor(), [make_qvalue()] * 2, target_entropy=-3.0)


def test_gradients_reach_an_encoder_outside_the_loss_as_in_torchrl() -> None:
    grads = []
    theirs = build(peer.SACLoss)
    for cls in (SACLoss, peer.SACLoss):
        loss = build(cls)
        loss.load_state_dict(theirs.state_dict())
        data = transitions()
        data["observation"].requires_grad_()
        torch.manual_seed(0)
        out = loss(data)
        grads.append(torch.autograd.grad(out["loss_actor"] + 2 * out["loss_qvalue"], data["observation"])[0])
    torch.testing.assert_close(*grads)


def test_dispatch_gives_the_entries_in_the_order_of_torchrl() -> None:
    data = transitions(batch=EVEN)
    inputs = {key if isinstance(key, str) else "_".join(key): value for key, value in data.items(True, True)}
    for v1 in (False, True):
        loss = moved(v1=v1)
        torch.manual_seed(11)
        values = loss(**inputs)
        out = run(loss, data)[0]
        assert loss.out_keys == build(peer.SACLoss, v1).out_keys
        for key, value in zip(loss.out_keys, values, strict=True):
            torch.testing.assert_close(value, out[key])


def test_differently_dispatch_works_for_losses_that_are_not_reduced() -> None:
    inputs = {key if isinstance(key, str) else "_".join(key): x for key, x in transitions().items(True, True)}
    with pytest.raises(KeyError):
        build(peer.SACLoss, reduction="none")(**inputs)
    assert [value.shape for value in build(reduction="none")(**inputs)] == [BATCH] * 3


def test_the_parameters_of_the_constructor_are_those_of_torchrl() -> None:
    ours, theirs = (inspect.signature(cls).parameters for cls in (SACLoss, peer.SACLoss))
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


# -- temperature and target entropy -------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [(0.1, None), (None, 2.0), (0.1, 2.0), (0.0, None), (None, None)], ids=str)
def test_the_bounds_of_alpha_are_registered_as_in_torchrl(bounds: tuple[float | None, float | None]) -> None:
    ours, theirs = (build(cls, min_alpha=bounds[0], max_alpha=bounds[1]) for cls in (SACLoss, peer.SACLoss))
    for name in ("min_log_alpha", "max_log_alpha", "log_alpha", "alpha_init"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))


def test_a_learnt_alpha_that_left_its_bounds_is_brought_back_in_place() -> None:
    loss = build(max_alpha=2.0)
    with torch.no_grad():
        loss.log_alpha.fill_(9.0)
    out = loss(transitions())
    assert out["alpha"].item() == pytest.approx(2.0)
    assert loss.log_alpha.exp().item() == pytest.approx(2.0)
    assert "log_alpha" in backward(loss, out)["loss_alpha"]


def test_a_fixed_alpha_is_no_parameter_and_can_be_scheduled() -> None:
    loss = build(fixed_alpha=True)
    assert "log_alpha" not in dict(loss.named_parameters())
    loss.log_alpha = 1.0
    out = loss(transitions())
    torch.testing.assert_close(out["alpha"], torch.tensor(1.0).exp())
    assert not out["loss_alpha"].requires_grad
    with pytest.raises(TypeError, match="log_alpha"):
        build().log_alpha = 1.0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"alpha_init": 0.0}, "alpha_init"),
        ({"min_alpha": 0.1, "max_alpha": 0.0}, "max_alpha"),
        ({"max_alpha": -1.0}, "max_alpha"),
        ({"min_alpha": 2.0, "max_alpha": 1.0}, "min_alpha"),
        ({"target_entropy": "automatic"}, "target_entropy"),
        ({"scalar_output_mode": "x"}, "scalar_output_mode"),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def leaf(*shape: int) -> Any:
    return Bounded(-1, 1, shape)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (leaf(3), -3),
        (leaf(4, 3), -12),
        (leaf(), -1),
        (Composite(action=leaf(3), other=leaf(8)), -3),
        (Composite(action=leaf(4, 3), shape=(4,)), -3),
        (Composite(action=Composite(a=leaf(4, 2), b=leaf(4, 3), shape=(4,)), shape=(4,)), -5),
    ],
)
def test_the_automatic_target_entropy_is_minus_the_size_of_the_action(spec: Any, expected: float) -> None:
    for cls in (SACLoss, peer.SACLoss):
        loss = build(cls, action_spec=spec, target_entropy="auto")
        assert loss.target_entropy == expected
        assert loss.target_entropy_buffer is not None
    assert "_target_entropy" in loss.state_dict()


def test_spaces_of_gymnasium_and_the_spec_of_the_actor_count_too() -> None:
    space = gymnasium.spaces.Box(-1, 1, (4,))
    assert build(action_spec=space, target_entropy="auto").target_entropy == -4
    assert build(action_spec=gymnasium.spaces.Dict(action=space), target_entropy="auto").target_entropy == -4
    actor = tanh_normal_actor()
    actor.spec = leaf(3)
    assert SACLoss(actor, make_qvalue()).target_entropy == -3


def test_differently_a_loss_without_a_spec_can_be_saved_and_loaded_but_not_computed() -> None:
    with pytest.raises(RuntimeError):
        build(peer.SACLoss, target_entropy="auto").state_dict()
    loss, data = build(target_entropy="auto"), transitions()
    entries = set(data.keys(True, True))
    assert "_target_entropy" not in loss.state_dict()
    with pytest.raises(RuntimeError, match=r"target_entropy='auto'.*action_spec"):
        loss(data)
    assert set(data.keys(True, True)) == entries
    build(target_entropy="auto").load_state_dict(loss.state_dict())
    known = build(target_entropy=-2.0)
    known.load_state_dict(loss.state_dict())
    assert known.target_entropy == -2
    loss.load_state_dict(build(target_entropy=-2.5).state_dict())
    assert loss.target_entropy == -2.5
    loss(data)


def test_an_integer_target_entropy_is_a_float() -> None:
    assert build(target_entropy=-3).target_entropy.dtype is torch.float32


def test_the_key_of_the_action_may_be_chosen_after_the_spec() -> None:
    spec = Composite(act=leaf(5), other=leaf(7))
    loss = build(action_spec=spec, target_entropy="auto")
    with pytest.raises(RuntimeError, match="'action'"):
        _ = loss.target_entropy
    loss.set_keys(action="act")
    assert loss.target_entropy == -5


# -- policies -----------------------------------------------------------------------------------------------------


def test_differently_the_log_probability_of_each_dimension_is_summed() -> None:
    data = transitions()
    plain, joint = (SACLoss(normal_actor(d), make_qvalue(), target_entropy=-3.0) for d in (Normal, normal))
    plain.load_state_dict(joint.state_dict())
    torch.testing.assert_close(run(plain, data)[0].to_dict(), run(joint, data)[0].to_dict())
    with pytest.raises(RuntimeError, match="size of tensor"):
        run(peer.SACLoss(normal_actor(Normal), make_qvalue(), target_entropy=-3.0), data)


class SplitHeads(nn.Module):
    def forward(self, loc: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return loc[..., :1], scale[..., :1], loc[..., 1:], scale[..., 1:]


def composite_actor() -> Any:
    torch.manual_seed(0)
    base = nn.Sequential(mlp(OBSERVATION, 2 * ACTION), NormalParamExtractor())
    heads = [
        ("params", "move", "loc"),
        ("params", "move", "scale"),
        ("params", "turn", "loc"),
        ("params", "turn", "scale"),
    ]
    return ProbabilisticTensorDictSequential(
        TensorDictModule(base, ["observation"], ["loc", "scale"]),
        TensorDictModule(SplitHeads(), ["loc", "scale"], heads),
        ProbabilisticTensorDictModule(
            ["params"],
            [("agent", "move"), ("agent", "turn")],
            distribution_class=CompositeDistribution,
            distribution_kwargs={
                "distribution_map": {"move": normal, "turn": normal},
                "name_map": {"move": ("agent", "move"), "turn": ("agent", "turn")},
            },
            return_log_prob=True,
        ),
    )


@pytest.mark.parametrize("v1", [False, True])
def test_differently_composite_actions_work(v1: bool) -> None:
    """The loss of two heads is that of one action made of both, with the same random numbers head by head."""
    torch.manual_seed(1)
    critic = Concatenate(mlp(OBSERVATION + ACTION, 1))
    parts = TensorDictModule(critic, ["observation", ("agent", "move"), ("agent", "turn")], ["state_action_value"])
    spec = Composite(agent=Composite(move=leaf(1), turn=leaf(2)))
    loss = SACLoss(composite_actor(), parts, make_value() if v1 else None, action_spec=spec, alpha_init=0.3)
    assert loss.target_entropy == -3
    assert loss.tensor_keys.action == [("agent", "move"), ("agent", "turn")]
    data = transitions(batch=EVEN)
    split = data.exclude("action").update({"agent": {"move": data["action"][:, :1], "turn": data["action"][:, 1:]}})
    out, written, _ = run(loss, split)
    assert set(written) == {"td_error"}
    assert all("actor" in name for name in backward(loss, out)["loss_actor"])
    distribution = loss.actor_network.get_dist(data.copy())
    torch.manual_seed(11)
    if not v1:
        loss.qvalue_v2_loss(split)
    else:
        loss.value_loss(split)
    move, turn = (distribution.dists[key].rsample() for key in distribution.dists)
    log_prob = sum(d.log_prob(a) for d, a in zip(distribution.dists.values(), (move, turn), strict=True))
    assert log_prob.shape == EVEN
    torch.testing.assert_close(out["entropy"], -log_prob.mean().detach())
    values = loss._critic_values(
        TensorDict({"observation": data["observation"], "agent": {"move": move, "turn": turn}}, EVEN)
    )
    torch.testing.assert_close(out["loss_actor"], (0.3 * log_prob - values.amin(0)).mean())


def test_a_policy_that_cannot_be_reparameterised_is_refused() -> None:
    def exponential(loc: Tensor, scale: Tensor) -> Any:
        return torch.distributions.Poisson(scale)

    with pytest.raises(NotImplementedError, match="rsample"):
        SACLoss(normal_actor(exponential), make_qvalue(), target_entropy=-3.0)(transitions())


def test_a_critic_may_read_what_the_actor_computes() -> None:
    """The features of the next state, and those behind the fresh action, are the actor's own."""
    torch.manual_seed(0)
    encoder = TensorDictModule(nn.Linear(OBSERVATION, 4), ["observation"], ["features"])
    head = TensorDictModule(nn.Sequential(mlp(4, 2 * ACTION), NormalParamExtractor()), ["features"], ["loc", "scale"])
    draw = ProbabilisticTensorDictModule(["loc", "scale"], ["action"], distribution_class=normal)
    actor = ProbabilisticTensorDictSequential(encoder, head, draw)
    critic = TensorDictModule(Concatenate(mlp(4 + ACTION, 1)), ["features", "action"], ["state_action_value"])
    value = TensorDictModule(mlp(4, 1), ["features"], ["state_value"])
    data = transitions(batch=EVEN)
    with torch.no_grad():
        data["features"] = encoder.module(data["observation"])
        features = encoder.module(data["next", "observation"])
    for network in (None, value):
        loss = SACLoss(actor, critic, network, target_entropy=-3.0)
        assert ("next", "features") not in loss.in_keys
        out, written, _ = run(loss, data)
        if network is not None:
            prediction = loss._value_of_own_part(data).detach()
            bootstrap = torch.where(data["next", "terminated"], 0.0, network.module(features))
            target = (data["next", "reward"] + 0.99 * bootstrap).squeeze(-1)
            torch.testing.assert_close(written["td_error"], (prediction - target).square().detach())
        assert any("module.0" in name for name in backward(loss, out)["loss_actor"])


# -- errors -------------------------------------------------------------------------------------------------------


def test_a_batch_that_cannot_be_shared_out_is_refused_with_a_value_network() -> None:
    for cls in (SACLoss, peer.SACLoss):
        with pytest.raises(RuntimeError):
            build(cls, v1=True)(transitions(batch=(7,)))
    with pytest.raises(RuntimeError, match="divisible"):
        build(v1=True)(transitions(batch=()))


def test_a_wrong_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="make_value_estimator"):
        build(gamma=0.9)
    with pytest.raises(TypeError):
        build(num_qvalue_net=2)
    with pytest.raises(RuntimeError, match="priority"):
        build(priority_key="p")
    with pytest.raises(TypeError, match="get_dist"):
        SACLoss(make_value(), make_qvalue())


@pytest.mark.parametrize("missing", ["action", "observation", ("next", "reward"), ("next", "observation")])
def test_a_missing_entry_is_a_key_error_that_names_it_and_nothing_is_written(missing: Any) -> None:
    data = transitions().exclude(missing)
    before = set(data.keys(True, True))
    with pytest.raises(KeyError, match=missing if isinstance(missing, str) else missing[1]):
        build()(data)
    assert set(data.keys(True, True)) == before


def test_a_critic_of_the_wrong_shape_is_refused() -> None:
    wide = TensorDictModule(
        Concatenate(mlp(OBSERVATION + ACTION, 2)), ["observation", "action"], ["state_action_value"]
    )
    with pytest.raises(RuntimeError, match=r"\(2, 7\).*\(2, 7, 2\)"):
        SACLoss(tanh_normal_actor(), wide, target_entropy=-3.0)(transitions())


@pytest.mark.parametrize("kwargs", [{"reduction": "median"}, {"loss_function": "l3"}], ids=str)
def test_an_unknown_name_is_refused_when_it_is_used(kwargs: dict[str, Any]) -> None:
    data = transitions()
    for cls in (SACLoss, peer.SACLoss):
        with pytest.raises(NotImplementedError):
            build(cls, **kwargs)(data.clone())
    with pytest.raises(NotImplementedError):
        build(**kwargs)(data)
    assert data.get("td_error", None) is None


# -- copies and checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_copy_of_a_used_loss_computes_the_same_and_is_apart(v1: bool, make_copy: Any) -> None:
    loss, data = moved(v1=v1), transitions(batch=EVEN)
    loss(data.clone())
    other = make_copy(loss)
    torch.testing.assert_close(run(other, data)[0].to_dict(), run(loss, data)[0].to_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    assert not torch.isclose(run(other, data)[0]["loss_actor"], run(loss, data)[0]["loss_actor"])


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("kwargs", [{}, {"fixed_alpha": True, "min_alpha": 0.01}, {"delay_actor": True}], ids=str)
def test_states_load_strictly_between_used_and_fresh_losses_and_from_torchrl(v1: bool, kwargs: dict[str, Any]) -> None:
    data, make = transitions(batch=EVEN), lambda cls: build(cls, v1, **kwargs)
    used, fresh = make(SACLoss), make(SACLoss)
    used(data.clone())
    fresh.load_state_dict(used.state_dict())
    torch.testing.assert_close(run(fresh, data)[0].to_dict(), run(used, data)[0].to_dict())
    theirs = make(peer.SACLoss)
    fresh.load_state_dict(theirs.state_dict())
    theirs(data.clone())
    used.load_state_dict(theirs.state_dict())
    assert set(used.state_dict()) == set(theirs.state_dict())
    theirs.load_state_dict(used.state_dict())
    fresh.double()
    assert fresh.target_entropy.dtype is torch.float64
    assert run(fresh, as_double(data))[0]["loss_actor"].dtype is torch.float64


# -- compile ------------------------------------------------------------------------------------------------------


def change(loss: Any) -> None:
    loss.value_estimator.gamma.fill_(0.5)
    loss.max_log_alpha = -2.0


@pytest.mark.parametrize("v1", [False, True])
def test_one_graph_gives_the_eager_numbers_for_every_batch_and_coefficient(v1: bool, fresh_dynamo: None) -> None:
    loss = moved(v1=v1, max_alpha=2.0, skip_done_states=True)
    options: dict[str, Any] = {} if v1 else {"weights": True, "mask": True, "n_step": True}
    call = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    check_compiled(loss, call, transitions(batch=(6,), **options))
    with torch.compiler.set_stance("fail_on_recompile"):
        check_compiled(loss, call, transitions(batch=(8,), seed=8, **options))
        change(loss)
        check_compiled(loss, call, transitions(batch=(14,), **options))


def test_loss_gradient_optimiser_and_target_update_are_one_graph(fresh_dynamo: None) -> None:
    check_training_compiles(
        lambda: build(max_alpha=0.35),
        lambda loss: SoftUpdate(loss, tau=0.1),
        lambda seed: transitions(batch=EVEN, seed=seed),
    )
