"""DDPGLoss: the formula, TorchRL's numbers, where they differ, copies and torch.compile."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchrl.objectives as peer
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from tritonrl.objectives import HardUpdate
from tritonrl.objectives.ddpg import DDPGLoss

from .off_policy_cases import (
    ACTION,
    BATCH,
    OBSERVATION,
    Concatenate,
    as_double,
    backward,
    check_parity,
    check_training_compiles,
    deterministic_actor,
    fresh_dynamo,
    make_qvalue,
    mlp,
    perturb_targets,
    run,
    transitions,
)

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["fresh_dynamo"]
compiles = pytest.mark.usefixtures("fresh_dynamo")


def build(cls: Any = DDPGLoss, **kwargs: Any) -> Any:
    return cls(deterministic_actor(), make_qvalue(), **kwargs)


def moved(**kwargs: Any) -> DDPGLoss:
    loss = build(**kwargs)
    perturb_targets(loss)
    return loss


def shared_trunk(cls: Any, **kwargs: Any) -> Any:
    """Actor and critic read the features of one layer, which is trained by both unless the losses are separate."""
    torch.manual_seed(0)
    trunk = nn.Linear(OBSERVATION, 4)

    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk
            self.head = mlp(4 + ACTION, 1)

        def forward(self, observation: Tensor, action: Tensor) -> Tensor:
            return self.head(torch.cat([self.trunk(observation).tanh(), action], -1))

    actor = TensorDictModule(nn.Sequential(trunk, nn.Tanh(), nn.Linear(4, ACTION)), ["observation"], ["action"])
    critic = TensorDictModule(Critic(), ["observation", "action"], ["state_action_value"])
    return cls(actor, critic, **kwargs)


# -- the formula --------------------------------------------------------------------------------------------------


def test_every_term_is_what_the_paper_says_step_by_step() -> None:
    actor, critic = deterministic_actor().double(), make_qvalue().double()
    loss = DDPGLoss(actor, critic, delay_actor=True)
    perturb_targets(loss)
    target_actor, target_critic = copy.deepcopy(actor.module), copy.deepcopy(critic.module)
    for network, name in ((target_actor, "actor"), (target_critic, "value")):
        loss._modules[f"target_{name}_network_params"]["module"].to_module(network)
    data = as_double(transitions(n_step=True))
    actor_terms, distances, errors = [], [], []
    with torch.no_grad():
        for step in data.unbind(0):
            observation, following = step["observation"], step["next", "observation"]
            actor_terms.append(-critic.module(observation, actor.module(observation)).item())
            target = step["next", "reward"].item()
            if not step["next", "terminated"].item():
                bootstrap = target_critic(following, target_actor(following)).item()
                target += 0.99 ** step["steps_to_next_obs"].item() * bootstrap
            errors.append((critic.module(observation, step["action"]).item() - target) ** 2)
            distances.append(errors[-1])
    out, written, _ = run(loss, data)
    assert out["loss_actor"].item() == pytest.approx(sum(actor_terms) / len(actor_terms), rel=1e-9)
    assert out["loss_value"].item() == pytest.approx(sum(distances) / len(distances), rel=1e-9)
    assert written["td_error"].tolist() == pytest.approx(errors, rel=1e-9)


def test_each_loss_trains_its_own_network_alone() -> None:
    loss = build()
    grads = backward(loss, loss(transitions()))
    assert {name.split(".")[0] for name in grads["loss_actor"]} == {"actor_network_params"}
    assert {name.split(".")[0] for name in grads["loss_value"]} == {"value_network_params"}
    assert len(grads["loss_actor"]) + len(grads["loss_value"]) == len(list(loss.parameters()))


def test_the_loss_functions_weigh_the_same_error() -> None:
    errors = moved(reduction="none")(transitions())["td_error"].sqrt()
    for name, expected in {"l1": errors, "l2": errors**2, "smooth_l1": None}.items():
        out = moved(reduction="none", loss_function=name)(transitions())["loss_value"].detach()
        if expected is None:
            expected = torch.where(errors < 1, errors**2 / 2, errors - 0.5)
        torch.testing.assert_close(out, expected)


def test_the_terms_are_available_alone_and_write_nothing() -> None:
    loss, data = moved(), transitions()
    before = set(data.keys(True, True))
    actor_term, nothing = loss.loss_actor(data)
    value_term, metadata = loss.loss_value(data)
    assert set(data.keys(True, True)) == before
    out = loss(data)
    assert nothing == {}
    torch.testing.assert_close((actor_term, value_term), (out["loss_actor"], out["loss_value"]))
    assert {key: value.tolist() for key, value in metadata.items()} == {k: out[k].tolist() for k in metadata}


def test_steps_behind_the_mask_count_nowhere_whatever_they_hold() -> None:
    data = transitions(mask=True, weights=True)
    valid = data["shifted_valid"]
    spoilt = data.clone()
    for key in ("observation", "action", ("next", "observation"), ("next", "reward")):
        spoilt[key][~valid] = float("nan")
    results = []
    for given in (data[valid].exclude("shifted_valid"), spoilt):
        loss = moved()
        out = loss(given)
        results.append(({key: value.detach() for key, value in out.items() if value.ndim == 0}, backward(loss, out)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("estimator", ["td1", "tdlambda"])
def test_longer_returns_come_from_the_estimator(estimator: str) -> None:
    loss, data = moved(), transitions(batch=(3, 5))
    loss.make_value_estimator(estimator, gamma=0.9)
    out = loss(data)
    following = data["next"].select("observation")
    with torch.no_grad():
        following = loss._call("actor_network", following)
        following["observation"] = data["next", "observation"]
        value = loss._value_of("value_network", following, loss.target_value_network_params)
    lmbda = 1.0 if estimator == "td1" else 0.95
    expected = torch.zeros(3, 5)
    for row in range(3):
        carry = None
        for t in reversed(range(5)):
            step = data[row, t]["next"]
            end = carry is None or bool(step["done"])
            future = value[row, t] if end else (1 - lmbda) * value[row, t] + lmbda * carry
            carry = step["reward"][0] + (0.0 if step["terminated"] else 0.9) * future
            expected[row, t] = carry
    torch.testing.assert_close(out["target_value"], expected)


# -- TorchRL ------------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"loss_function": "l1"},
    {"loss_function": "smooth_l1"},
    {"delay_actor": True},
    {"delay_value": False},
    {"reduction": "none"},
    {"reduction": "sum"},
    {"separate_losses": True},
    {"use_prioritized_weights": False},
    {"use_prioritized_weights": True},
]


@pytest.mark.parametrize("kwargs", OPTIONS, ids=str)
def test_every_option_gives_the_numbers_of_torchrl(kwargs: dict[str, Any]) -> None:
    for data in (transitions(), transitions(n_step=True, weights=True, batch=(2, 3))):
        check_parity(lambda cls: build(cls, **kwargs), DDPGLoss, peer.DDPGLoss, data)


@pytest.mark.parametrize("weights", [False, True])
def test_masks_give_the_numbers_of_torchrl(weights: bool) -> None:
    data = transitions(mask=True, weights=weights)
    check_parity(build, DDPGLoss, peer.DDPGLoss, data, differ={"pred_value_max", "target_value_max"})


@pytest.mark.parametrize("separate_losses", [False, True])
def test_a_shared_trunk_is_trained_as_by_torchrl(separate_losses: bool) -> None:
    def make(cls: Any) -> Any:
        return shared_trunk(cls, separate_losses=separate_losses, delay_value=False)

    ours, _ = check_parity(make, DDPGLoss, peer.DDPGLoss, transitions())
    trained = backward(ours, ours(transitions()))["loss_value"]
    shared = {id(parameter) for parameter in ours.actor_network.parameters()}
    reached = {id(parameter) for name, parameter in ours.named_parameters() if name in trained}
    assert bool(shared & reached) is not separate_losses


def test_dispatch_takes_the_entries_as_keywords() -> None:
    data = transitions(weights=True)
    keywords = {"_".join(k) if isinstance(k, tuple) else k: v for k, v in data.items(True, True)}
    results = [build(cls)(**keywords) for cls in (DDPGLoss, peer.DDPGLoss)]
    assert len(results[0]) == len(build().out_keys)
    torch.testing.assert_close([x.detach() for x in results[0]], [x.detach() for x in results[1]])


# -- differences --------------------------------------------------------------------------------------------------


def test_differently_a_shared_layer_of_the_target_is_each_networks_own() -> None:
    """TorchRL puts both sets of parameters into the one layer, and the second overwrites the first."""
    ours, theirs = shared_trunk(DDPGLoss), shared_trunk(peer.DDPGLoss)
    for loss in (ours, theirs):
        perturb_targets(loss)
    data = transitions()
    following = ours._call("actor_network", data["next"])
    following["observation"] = data["next", "observation"]
    value = ours._value_of("value_network", following, ours.target_value_network_params)
    expected = ours._td_target(data, value)
    torch.testing.assert_close(ours(data.clone())["target_value"], expected)
    assert not torch.isclose(theirs(data.clone())["target_value"], expected).all()


def test_differently_the_metrics_carry_no_graph() -> None:
    ours, theirs = (build(cls)(transitions()) for cls in (DDPGLoss, peer.DDPGLoss))
    assert {key for key, value in ours.items() if value.requires_grad} == {"loss_actor", "loss_value"}
    assert theirs["pred_value"].requires_grad


def test_differently_the_largest_values_are_those_of_valid_steps() -> None:
    data = transitions(mask=True)
    out = moved()(data)
    for name in ("pred_value", "target_value"):
        assert out[f"{name}_max"] == out[name][data["shifted_valid"]].max()


# -- torch.compile ------------------------------------------------------------------------------------------------


@compiles
def test_a_whole_training_step_with_a_hard_update_compiles_into_one_graph() -> None:
    def updater(loss: DDPGLoss) -> HardUpdate:
        return HardUpdate(loss, value_network_update_interval=1)

    check_training_compiles(lambda: build(delay_actor=True), updater, transitions)


def test_the_critic_may_read_what_the_actor_computes_on_the_way() -> None:
    """TorchRL runs actor and critic one after the other, too."""

    def make(cls: Any) -> Any:
        torch.manual_seed(0)
        trunk = nn.Linear(OBSERVATION, 4)

        class Actor(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.trunk, self.head = trunk, nn.Linear(4, ACTION)

            def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
                hidden = self.trunk(observation).tanh()
                return hidden, self.head(hidden)

        actor = TensorDictModule(Actor(), ["observation"], ["hidden", "action"])
        critic = TensorDictModule(Concatenate(mlp(4 + ACTION, 1)), ["hidden", "action"], ["state_action_value"])
        return cls(actor, critic)

    data: TensorDict = transitions()
    data["hidden"] = torch.randn(*BATCH, 4)
    data["next", "hidden"] = torch.randn(*BATCH, 4)
    check_parity(make, DDPGLoss, peer.DDPGLoss, data)
