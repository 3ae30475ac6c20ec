"""DiscreteSACLoss: the formula, TorchRL's numbers, where they differ, copies and torch.compile."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from typing import Any

import gymnasium
import pytest
import torch
import torchrl.objectives as peer
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torchrl.data import OneHot
from torchrl.modules import MaskedOneHotCategorical

from tritonrl.objectives import SoftUpdate, ValueEstimators
from tritonrl.objectives.discrete_sac import DiscreteSACLoss
from tritonrl.objectives.value import TDLambdaEstimator

from .off_policy_cases import (
    BATCH,
    N_ACTIONS,
    OBSERVATION,
    as_double,
    backward,
    check_compiled,
    check_parity,
    check_training_compiles,
    discrete_actor,
    fresh_dynamo,
    make_action_values,
    mlp,
    perturb_targets,
    run,
    tanh_normal_actor,
    transitions,
)

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["fresh_dynamo"]


def build(cls: Any = DiscreteSACLoss, space: str = "one_hot", **kwargs: Any) -> Any:
    kwargs = {"action_space": space, "num_actions": N_ACTIONS, "alpha_init": 0.3} | kwargs
    return cls(discrete_actor(one_hot=space == "one_hot"), make_action_values(), **kwargs)


def moved(**kwargs: Any) -> Any:
    loss = build(**kwargs)
    perturb_targets(loss)
    return loss


def discrete(**kwargs: Any) -> TensorDict:
    return transitions("one_hot", **kwargs)


# -- the formula --------------------------------------------------------------------------------------------------


def member(params: Any, index: int, network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    params[index].to_module(network)
    return network


def test_every_term_is_what_the_paper_says_action_by_action() -> None:
    loss = build(space="categorical", target_entropy=0.7).double()
    perturb_targets(loss)
    data = as_double(transitions("categorical", n_step=True))
    critics = [member(loss.qvalue_network_params.data, i, loss.qvalue_network).module for i in range(2)]
    targets = [member(loss.target_qvalue_network_params, i, loss.qvalue_network).module for i in range(2)]
    policy, alpha = loss.actor_network[0].module, loss.log_alpha.exp().item()
    terms: dict[str, list[float]] = {"loss_actor": [], "loss_qvalue": [], "loss_alpha": [], "entropy": []}
    errors = []

    def soft(observation: Tensor, nets: list[nn.Module]) -> tuple[float, float]:
        """Soft value and entropy of one state."""
        scores, values = policy(observation).tolist(), [net(observation).tolist() for net in nets]
        weights = [math.exp(score) for score in scores]
        value = entropy = 0.0
        for action, weight in enumerate(weights):
            probability = weight / sum(weights)
            value += probability * (min(v[action] for v in values) - alpha * math.log(probability))
            entropy -= probability * math.log(probability)
        return value, entropy

    with torch.no_grad():
        for step in data.unbind(0):
            target = step["next", "reward"].item()
            if not step["next", "terminated"].item():
                target += 0.99 ** step["steps_to_next_obs"].item() * soft(step["next", "observation"], targets)[0]
            wrong = [abs(net(step["observation"])[step["action"]].item() - target) for net in critics]
            errors.append(max(wrong))
            terms["loss_qvalue"].append(sum(0.5 * e**2 if e < 1 else e - 0.5 for e in wrong))
            value, entropy = soft(step["observation"], critics)
            terms["loss_actor"].append(-value)
            terms["loss_alpha"].append(-loss.log_alpha.item() * (0.7 - entropy))
            terms["entropy"].append(entropy)
    out, written, _ = run(loss, data)
    for key, expected in terms.items():
        assert out[key].item() == pytest.approx(sum(expected) / len(expected), rel=1e-6), key
    assert written["td_error"].tolist() == pytest.approx(errors, rel=1e-6)
    assert out["alpha"].item() == pytest.approx(0.3)


def test_each_loss_trains_its_own_network_alone() -> None:
    loss = moved()
    grads = backward(loss, loss(discrete()))
    assert {key: {name.split(".")[0] for name in terms} for key, terms in grads.items()} == {
        "loss_actor": {"actor_network_params"},
        "loss_qvalue": {"qvalue_network_params"},
        "loss_alpha": {"log_alpha"},
    }
    assert sum(len(terms) for terms in grads.values()) == len(list(loss.parameters()))


def test_one_hot_and_index_actions_are_the_same_loss() -> None:
    one_hot, index = moved(), moved(space="categorical")
    index.load_state_dict(one_hot.state_dict())
    data = discrete()
    by_index = data.clone().set("action", data["action"].argmax(-1))
    column = data.clone().set("action", data["action"].argmax(-1, keepdim=True))
    for other in (by_index, column):
        torch.testing.assert_close(run(index, other)[:2], run(one_hot, data)[:2])


def test_the_largest_entropy_of_a_policy_is_what_it_aims_at_times_the_weight() -> None:
    loss = build(target_entropy_weight=0.5)
    assert loss.target_entropy.item() == pytest.approx(0.5 * math.log(N_ACTIONS))
    with torch.no_grad():
        for parameter in loss.actor_network_params.values(True, True):
            parameter.zero_()
    assert loss(discrete())["entropy"].item() == pytest.approx(math.log(N_ACTIONS))


def test_the_terms_are_available_alone_and_write_nothing() -> None:
    loss, data = moved(), discrete()
    before = set(data.keys(True, True))
    critic_loss, metadata = loss.qvalue_loss(data)
    actor_loss, actor_metadata = loss.actor_loss(data)
    alpha_loss = loss.alpha_loss(actor_metadata["log_prob"])
    assert set(data.keys(True, True)) == before
    out, written, _ = run(loss, data)
    torch.testing.assert_close((actor_loss, critic_loss), (out["loss_actor"], out["loss_qvalue"]))
    torch.testing.assert_close((alpha_loss.mean(), metadata), (out["loss_alpha"], written))


# -- ends of trajectories, masks, impossible actions --------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_lost_states_of_terminated_steps_reach_nothing(value: float) -> None:
    data, loss = discrete(), moved(skip_done_states=True)
    expected, errors, _ = run(loss, data)
    data["next", "observation"] = torch.where(data["next", "terminated"], value, data["next", "observation"])
    out, written, _ = run(loss, data)
    torch.testing.assert_close((out.to_dict(), written), (expected.to_dict(), errors))
    for terms in backward(loss, out).values():
        assert all(grad.isfinite().all() for grad in terms.values())


def test_differently_a_truncated_step_bootstraps_also_if_done_states_are_skipped() -> None:
    data = discrete()
    data["next", "done"] = torch.ones(*BATCH, 1, dtype=torch.bool)
    losses = [moved(skip_done_states=skip) for skip in (False, True)]
    errors = [run(loss, data)[1]["td_error"] for loss in losses]
    torch.testing.assert_close(*errors)
    theirs = build(peer.DiscreteSACLoss, skip_done_states=True)
    theirs.load_state_dict(losses[0].state_dict(), strict=False)
    wrong = (run(theirs, data)[1]["td_error"] - errors[0]).abs() > 1e-4
    assert torch.equal(wrong, ~data["next", "terminated"].squeeze(-1))


def test_steps_behind_the_mask_count_nowhere_whatever_they_hold() -> None:
    data, loss = discrete(mask=True, weights=True), moved()
    spoilt, valid = data.clone(), data["shifted_valid"]
    for key in ("observation", ("next", "observation"), ("next", "reward")):
        spoilt[key][~valid] = float("nan")
    (out, errors, _), (expected, clean, _) = run(loss, spoilt), run(loss, data)
    torch.testing.assert_close(out.to_dict(), expected.to_dict())
    torch.testing.assert_close(errors["td_error"][valid], clean["td_error"][valid])
    for terms in backward(loss, out).values():
        assert all(grad.isfinite().all() for grad in terms.values())


def masked_actor() -> Any:
    torch.manual_seed(0)
    return ProbabilisticTensorDictSequential(
        TensorDictModule(mlp(OBSERVATION, N_ACTIONS), ["observation"], ["logits"]),
        ProbabilisticTensorDictModule(
            {"logits": "logits", "mask": "allowed"}, ["action"], distribution_class=MaskedOneHotCategorical
        ),
    )


def test_impossible_actions_count_nowhere_whatever_their_value() -> None:
    data = discrete()
    action = data["action"].argmax(-1, keepdim=True)
    data["allowed"] = torch.ones(*BATCH, N_ACTIONS, dtype=torch.bool).scatter(-1, (action + 1) % N_ACTIONS, False)
    data["next", "allowed"] = torch.ones_like(data["allowed"])

    class Spoilt(nn.Module):
        def __init__(self, spoil: bool) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.net, self.spoil = mlp(OBSERVATION, N_ACTIONS), spoil

        def forward(self, observation: Tensor, allowed: Tensor) -> Tensor:
            values = self.net(observation)
            return torch.where(allowed, values, float("nan")) if self.spoil else values

    outs = []
    for spoil in (False, True):
        critic = TensorDictModule(Spoilt(spoil), ["observation", "allowed"], ["action_value"])
        loss = DiscreteSACLoss(masked_actor(), critic, action_space="one_hot", num_actions=N_ACTIONS, alpha_init=0.3)
        out, written, _ = run(loss, data)
        outs.append((out.detach().to_dict(), written, backward(loss, out)["loss_actor"]))
    torch.testing.assert_close(*outs)
    assert all(grad.isfinite().all() for grad in outs[1][2].values())
    assert math.isfinite(outs[1][0]["loss_qvalue"].item())


def test_differently_the_entropy_counts_valid_steps_only() -> None:
    data = discrete(mask=True)
    loss = build()
    expected = -loss.actor_loss(data)[1]["log_prob"][data["shifted_valid"]].mean()
    torch.testing.assert_close(loss(data.clone())["entropy"], expected)
    assert not torch.isclose(build(peer.DiscreteSACLoss)(data.clone())["entropy"], expected)


# -- TorchRL ------------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"loss_function": "l2", "num_qvalue_nets": 3},
    {"num_qvalue_nets": 1, "loss_function": "l1"},
    {"min_alpha": 0.5},
    {"max_alpha": 0.1, "fixed_alpha": True},
    {"delay_qvalue": False},
    {"reduction": "sum", "target_entropy_weight": 0.5},
    {"deactivate_vmap": True},
    {"separate_losses": True},
    {"use_prioritized_weights": False},
    {"target_entropy": 0.4},
]


@pytest.mark.parametrize("kwargs", OPTIONS, ids=str)
@pytest.mark.parametrize("space", ["one_hot", "categorical"])
def test_every_option_gives_the_numbers_of_torchrl(kwargs: dict[str, Any], space: str) -> None:
    data = transitions(space, n_step=True, weights=True)
    check_parity(lambda cls: build(cls, space, **kwargs), DiscreteSACLoss, peer.DiscreteSACLoss, data)


def without_metrics(loss: Any) -> None:
    """TorchRL also lists the metrics that it leaves out."""
    loss.out_keys = [key for key in loss.out_keys if key not in ("alpha", "entropy")]


@pytest.mark.parametrize("batch", [BATCH, (2, 3), (1,)])
def test_unreduced_losses_give_the_numbers_of_torchrl(batch: tuple[int, ...]) -> None:
    check_parity(
        lambda cls: build(cls, reduction="none"),
        DiscreteSACLoss,
        peer.DiscreteSACLoss,
        discrete(batch=batch, weights=True),
        prepare=without_metrics,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_masks_and_weights_give_the_losses_of_torchrl(reduction: str) -> None:
    check_parity(
        lambda cls: build(cls, reduction=reduction),
        DiscreteSACLoss,
        peer.DiscreteSACLoss,
        discrete(mask=True, weights=True),
        prepare=without_metrics if reduction == "none" else lambda loss: None,
        differ=("entropy",),
    )


def value_type(loss: Any, name: str) -> Any:
    """The member of the enumeration of that loss's own package."""
    enum = ValueEstimators if isinstance(loss, DiscreteSACLoss) else peer.ValueEstimators
    return getattr(enum, name)


@pytest.mark.parametrize(
    "choose",
    [
        lambda loss: loss.make_value_estimator(gamma=0.5),
        lambda loss: loss.make_value_estimator(value_type(loss, "TD1")),
        lambda loss: loss.make_value_estimator("tdlambda", gamma=0.9, lmbda=0.6),
    ],
)
def test_the_estimators_give_the_numbers_of_torchrl(choose: Any) -> None:
    check_parity(build, DiscreteSACLoss, peer.DiscreteSACLoss, discrete(batch=(4, 5)), prepare=choose)


def test_an_estimator_class_and_an_instance_work_as_the_alias_does() -> None:
    data = discrete(batch=(4, 5))
    by_alias, by_class, by_instance = (build() for _ in range(3))
    by_alias.make_value_estimator("tdlambda", gamma=0.9, lmbda=0.6)
    by_class.make_value_estimator(TDLambdaEstimator, gamma=0.9, lmbda=0.6, value_network=None)
    by_instance.make_value_estimator(TDLambdaEstimator(gamma=0.9, lmbda=0.6, value_network=None))
    for other in (by_class, by_instance):
        torch.testing.assert_close(run(other, data)[1], run(by_alias, data)[1])


def shared_trunk(cls: Any, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    trunk = nn.Linear(OBSERVATION, 4)
    actor = discrete_actor()
    actor[0].module = nn.Sequential(trunk, nn.Tanh(), nn.Linear(4, N_ACTIONS))
    critic = make_action_values()
    critic.module = nn.Sequential(trunk, nn.Tanh(), nn.Linear(4, N_ACTIONS))
    return cls(actor, critic, action_space="one_hot", num_actions=N_ACTIONS, alpha_init=0.3, **kwargs)


@pytest.mark.parametrize("separate", [False, True])
def test_a_shared_trunk_is_trained_by_those_that_torchrl_lets(separate: bool) -> None:
    check_parity(
        lambda cls: shared_trunk(cls, separate_losses=separate), DiscreteSACLoss, peer.DiscreteSACLoss, discrete()
    )


def test_renamed_keys_give_the_numbers_of_torchrl() -> None:
    data = discrete()
    data.rename_key_("action", "act")
    data.rename_key_(("next", "reward"), ("next", "r"))
    ours, _ = check_parity(
        build,
        DiscreteSACLoss,
        peer.DiscreteSACLoss,
        data,
        prepare=lambda loss: loss.set_keys(action="act", reward="r", priority="p"),
    )
    assert "p" in run(ours, data)[1]


def test_a_list_of_critics_gives_the_numbers_of_torchrl() -> None:
    def make(cls: Any) -> Any:
        critics = [make_action_values(seed) for seed in (1, 2)]
        return cls(discrete_actor(), critics, action_space="one-hot", num_actions=N_ACTIONS, alpha_init=0.3)

    check_parity(make, DiscreteSACLoss, peer.DiscreteSACLoss, discrete())


def test_dispatch_gives_the_entries_in_the_order_of_torchrl() -> None:
    data, loss = discrete(), moved()
    inputs = {key if isinstance(key, str) else "_".join(key): value for key, value in data.items(True, True)}
    out = run(loss, data)[0]
    for key, value in zip(build(peer.DiscreteSACLoss).out_keys, loss(**inputs), strict=True):
        torch.testing.assert_close(value, out[key])


def test_the_parameters_of_the_constructor_are_those_of_torchrl() -> None:
    ours, theirs = (inspect.signature(cls).parameters for cls in (DiscreteSACLoss, peer.DiscreteSACLoss))
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


# -- options and errors -------------------------------------------------------------------------------------------


def test_action_spaces_by_name_spec_and_gymnasium_space() -> None:
    for space, name in (
        ("one-hot", "one_hot"),
        ("mult-one-hot", "mult_one_hot"),
        (OneHot(N_ACTIONS), "one_hot"),
        (gymnasium.spaces.Discrete(N_ACTIONS), "categorical"),
    ):
        assert build(action_space=space).action_space == name
    for cls in (DiscreteSACLoss, peer.DiscreteSACLoss):
        with pytest.raises(ValueError, match="action_space"):
            build(cls, action_space="foo")
        with pytest.warns(UserWarning, match="action_space"):
            assert build(cls, action_space=None).action_space == "one_hot"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_actions": None}, "num_actions"),
        ({"alpha_init": 0.0}, "alpha_init"),
        ({"min_alpha": 2.0, "max_alpha": 1.0}, "min_alpha"),
        ({"target_entropy": "automatic"}, "target_entropy"),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_a_wrong_keyword_is_refused() -> None:
    for kwargs in ({"gamma": 0.9}, {"num_action": 3}):
        with pytest.raises(TypeError):
            build(**kwargs)
    with pytest.raises(RuntimeError, match="priority"):
        build(priority_key="p")


def test_what_does_not_fit_is_refused_and_nothing_is_written() -> None:
    narrow = TensorDictModule(mlp(OBSERVATION, N_ACTIONS - 1), ["observation"], ["action_value"])
    continuous = DiscreteSACLoss(tanh_normal_actor(), make_action_values(), action_space="one_hot", num_actions=4)
    cases = [
        (
            DiscreteSACLoss(discrete_actor(), narrow, action_space="one_hot", num_actions=4),
            discrete(),
            RuntimeError,
            "4",
        ),
        (continuous, discrete(), TypeError, "probs"),
        (build(), transitions("categorical"), RuntimeError, "action"),
        (build(), discrete().exclude("action"), KeyError, "action"),
        (build(), discrete().exclude(("next", "reward")), KeyError, "reward"),
    ]
    for loss, data, error, message in cases:
        with pytest.raises(error, match=message):
            loss(data)
        assert data.get("td_error", None) is None


# -- copies and checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_copy_of_a_used_loss_computes_the_same_and_is_apart(make_copy: Any) -> None:
    loss, data = moved(), discrete()
    loss(data.clone())
    other = make_copy(loss)
    torch.testing.assert_close(run(other, data)[0].to_dict(), run(loss, data)[0].to_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert not torch.isclose(run(other, data)[0]["loss_actor"], run(loss, data)[0]["loss_actor"])


@pytest.mark.parametrize("kwargs", [{}, {"fixed_alpha": True, "min_alpha": 0.01}], ids=str)
def test_states_load_strictly_between_used_and_fresh_losses_and_from_torchrl(kwargs: dict[str, Any]) -> None:
    data = discrete()
    used, fresh, theirs = build(**kwargs), build(**kwargs), build(peer.DiscreteSACLoss, **kwargs)
    used(data.clone())
    fresh.load_state_dict(used.state_dict())
    torch.testing.assert_close(run(fresh, data)[0].to_dict(), run(used, data)[0].to_dict())
    fresh.load_state_dict(theirs.state_dict())
    theirs(data.clone())
    used.load_state_dict(theirs.state_dict())
    assert set(used.state_dict()) == set(theirs.state_dict())
    theirs.load_state_dict(used.state_dict())


# -- compile ------------------------------------------------------------------------------------------------------


def test_one_graph_gives_the_eager_numbers_for_every_batch_and_coefficient(fresh_dynamo: None) -> None:
    loss = moved(max_alpha=2.0, skip_done_states=True)
    options: dict[str, Any] = {"weights": True, "mask": True, "n_step": True}
    call = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    check_compiled(loss, call, discrete(**options))
    with torch.compiler.set_stance("fail_on_recompile"):
        check_compiled(loss, call, discrete(batch=(9,), seed=8, **options))
        loss.value_estimator.gamma.fill_(0.5)
        loss.max_log_alpha = -2.0
        check_compiled(loss, call, discrete(batch=(14,), **options))


def test_loss_gradient_optimiser_and_target_update_are_one_graph(fresh_dynamo: None) -> None:
    check_training_compiles(
        lambda: build(space="categorical", max_alpha=0.35),
        lambda loss: SoftUpdate(loss, tau=0.1),
        lambda seed: transitions("categorical", seed=seed),
    )
