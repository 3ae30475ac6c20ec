"""Every estimator in ClipPPOLoss: how it is chosen, what it reads, that it follows the training, that it compiles."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from tritonrl.objectives import ClipPPOLoss, ValueEstimators
from tritonrl.objectives.value import GAE, MultiAgentGAE, TD0Estimator, TD1Estimator, TDLambdaEstimator, VTrace

from ...ppo_cases import (
    composite_actor,
    gradients,
    make_critic,
    normal_actor,
    rollout,
    team_networks,
    team_rollout,
)

pytestmark = pytest.mark.filterwarnings("ignore")

CLASSES = {
    "TD0": TD0Estimator,
    "TD1": TD1Estimator,
    "TDLambda": TDLambdaEstimator,
    "GAE": GAE,
    "MAGAE": MultiAgentGAE,
    "VTrace": VTrace,
}


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def results(loss: ClipPPOLoss, data: TensorDict) -> dict[str, Any]:
    torch.manual_seed(9)
    return loss(data).to_dict()


def same(loss: ClipPPOLoss, other: ClipPPOLoss, data: TensorDict) -> bool:
    ours, theirs = results(loss, data), results(other, data)
    return all(torch.equal(ours[key], theirs[key]) for key in ("loss_objective", "loss_critic"))


@pytest.mark.parametrize("name", list(CLASSES))
def test_an_estimator_is_chosen_by_member_alias_class_or_instance(name: str) -> None:
    cls, networks, data = CLASSES[name], (normal_actor(), make_critic()), rollout(advantage=False)
    options = {"gamma": 0.8} | ({"lmbda": 0.7} if cls in (GAE, MultiAgentGAE, TDLambdaEstimator) else {})
    own = {"value_network": networks[1]} | ({"actor_network": networks[0]} if cls is VTrace else {})
    losses = []
    for choice in (ValueEstimators[name], name.lower(), cls, cls(**options, **own)):
        loss = ClipPPOLoss(*networks)
        by_name = not isinstance(choice, nn.Module) and choice is not cls
        chosen = {} if isinstance(choice, nn.Module) else options if by_name else {**options, **own}
        assert loss.make_value_estimator(choice, **chosen) is (None if by_name else loss)
        assert type(loss.value_estimator) is cls
        assert loss.value_estimator.differentiable is by_name
        losses.append(loss)
    assert all(same(losses[0], loss, data) for loss in losses[1:])
    with_defaults = ClipPPOLoss(*networks)
    with_defaults.make_value_estimator(name)
    assert not same(losses[0], with_defaults, data)


# V-trace --------------------------------------------------------------------------------------------------------------


def with_vtrace(*networks: Any, functional: bool = True, **options: Any) -> ClipPPOLoss:
    loss = ClipPPOLoss(*networks, functional=functional)
    loss.make_value_estimator("vtrace", **options)
    return loss


@pytest.mark.parametrize("functional", [True, False])
def test_the_loss_with_vtrace_is_the_loss_on_what_vtrace_wrote(functional: bool) -> None:
    networks, data = (normal_actor(), make_critic()), rollout(advantage=False)
    estimator = VTrace(gamma=0.9, rho_thresh=0.7, actor_network=networks[0], value_network=networks[1])
    prepared = estimator(data.clone())
    loss = with_vtrace(*networks, functional=functional, gamma=0.9, rho_thresh=0.7)
    assert same(loss, ClipPPOLoss(*networks), data) is False
    torch.testing.assert_close(results(loss, data), results(ClipPPOLoss(*networks), prepared))
    loss.total(loss(data)).backward()
    got = gradients(*networks)
    for parameter in loss.parameters():
        parameter.grad = None
    reference = ClipPPOLoss(*networks)
    reference.total(reference(prepared)).backward()
    torch.testing.assert_close(got, gradients(*networks))


@pytest.mark.parametrize("functional", [True, False])
def test_vtrace_follows_the_training_of_the_actor(functional: bool) -> None:
    networks, data = (normal_actor(), make_critic()), rollout(advantage=False)
    loss = with_vtrace(*networks, functional=functional)
    own = {id(parameter) for parameter in networks[0].parameters()}
    assert {id(parameter) for parameter in loss.value_estimator.actor_network.parameters()} == own
    assert len(list(loss.parameters())) == len({id(p) for network in networks for p in network.parameters()})
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    before = loss.value_estimator(data.clone())["advantage"]
    for _ in range(3):
        optimizer.zero_grad()
        loss.total(loss(data)).backward()
        optimizer.step()
    after = loss.value_estimator(data.clone())["advantage"]
    assert not torch.allclose(before, after)
    fresh = VTrace(gamma=0.99, actor_network=networks[0], value_network=networks[1])(data.clone())
    assert torch.equal(fresh["advantage"], after)


@pytest.mark.parametrize("functional", [True, False])
def test_a_loss_with_vtrace_is_saved_copied_and_pickled_with_its_actor(functional: bool) -> None:
    loss, data = with_vtrace(normal_actor(), make_critic(), functional=functional, gamma=0.5), rollout(advantage=False)
    other = ClipPPOLoss(normal_actor(5), make_critic(6), functional=functional)
    other.load_state_dict(loss.state_dict(), strict=True)
    twins = [other, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))]
    for twin in twins:
        assert type(twin.value_estimator) is VTrace
        assert same(twin, loss, data)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(0.5)
        assert not same(twin, loss, data)
        owned = {id(parameter) for parameter in twin.parameters()}
        assert {id(parameter) for parameter in twin.value_estimator.parameters()} <= owned


def test_the_keys_of_the_loss_are_those_of_its_vtrace() -> None:
    def renamed(data: TensorDict) -> TensorDict:
        data.rename_key_("action", ("agent", "move"))
        return data.rename_key_("action_log_prob", ("agent", "log_mu"))

    networks = normal_actor(), make_critic()
    expected = results(with_vtrace(*networks), rollout(advantage=False))
    for early in (True, False):
        loss = ClipPPOLoss(*networks)
        if not early:
            loss.make_value_estimator("vtrace")
        loss.set_keys(action=("agent", "move"), sample_log_prob=("agent", "log_mu"))
        if early:
            loss.make_value_estimator("vtrace")
        assert loss.value_estimator.tensor_keys.action == ("agent", "move")
        torch.testing.assert_close(results(loss, renamed(rollout(advantage=False))), expected)
        loss.make_value_estimator("gae")  # which knows of no action
        loss.set_keys(action=("agent", "other"))


def test_vtrace_scores_composite_actions_in_a_loss() -> None:
    networks, data = (composite_actor(), make_critic()), rollout(composite_actor, advantage=False)
    loss = with_vtrace(*networks)
    estimator = VTrace(gamma=0.99, actor_network=networks[0], value_network=networks[1])
    prepared = estimator(data.clone())
    torch.testing.assert_close(results(loss, data), results(ClipPPOLoss(*networks), prepared))


def test_a_loss_without_an_actor_cannot_have_vtrace() -> None:
    loss = nn.Module()
    with pytest.raises(AttributeError, match="actor_network"):
        VTrace.for_loss(loss, gamma=0.9)
    loss.actor_network, loss.critic_network = normal_actor(), make_critic()
    estimator = VTrace.for_loss(loss, gamma=0.9)
    assert estimator.actor_network is loss.actor_network
    assert estimator.value_network is loss.critic_network
    other = normal_actor(3)
    assert VTrace.for_loss(loss, gamma=0.9, actor_network=other).actor_network is other


@pytest.mark.parametrize("functional", [True, False])
def test_a_loss_with_vtrace_compiles_into_one_graph_once(functional: bool, fresh_dynamo: None) -> None:
    networks = normal_actor(), make_critic()
    loss = with_vtrace(*networks, functional=functional)
    whole = torch.compile(loss, fullgraph=True, backend="eager")
    whole(rollout(advantage=False))  # the first call of all: nothing was built or cached by an eager one
    check_same_as_eager(loss, whole, rollout(advantage=False), networks)
    with torch.compiler.set_stance("fail_on_recompile"):
        check_same_as_eager(loss, whole, rollout(advantage=False, seed=4), networks)
        estimator = loss.value_estimator
        estimator.gamma, estimator.rho_thresh, estimator.c_thresh, loss.clip_epsilon = 0.5, 0.6, 0.3, 0.05
        with torch.no_grad():
            for parameter in loss.parameters():
                parameter.mul_(1.1)
        check_same_as_eager(loss, whole, rollout(advantage=False), networks)


def check_same_as_eager(loss: ClipPPOLoss, whole: Any, data: TensorDict, networks: tuple[nn.Module, ...]) -> None:
    outcomes = []
    for call in (whole, loss):
        loss.zero_grad()
        torch.manual_seed(9)
        out = call(data)
        loss.total(out).backward()
        outcomes.append((out.to_dict(), gradients(*networks)))
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in outcomes[0][1])
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-4, atol=1e-6)


# Agents ---------------------------------------------------------------------------------------------------------------


def team_loss(actor: Any, critic: Any, **options: Any) -> ClipPPOLoss:
    loss = ClipPPOLoss(actor, critic, normalize_advantage=True, normalize_advantage_exclude_dims=(-2,))
    loss.set_keys(value=("agents", "state_value"), advantage=("agents", "advantage"))
    loss.make_value_estimator("magae", **options)
    return loss


def test_a_team_is_trained_on_the_gae_of_each_agent() -> None:
    actor, critic = team_networks()
    data = team_rollout(actor)
    loss = team_loss(actor, critic, gamma=0.9)
    assert loss.value_estimator.value_key == ("agents", "state_value")
    estimator = MultiAgentGAE(gamma=0.9, lmbda=0.95, value_network=critic)
    estimator.set_keys(value=("agents", "state_value"), advantage=("agents", "advantage"))
    prepared = estimator(data.clone())
    assert prepared["agents", "advantage"].shape == (5, 7, 3, 1)
    given, computed = results(loss, prepared), results(loss, data)
    torch.testing.assert_close(computed, given)
    loss.total(loss(data)).backward()
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients(actor, critic))


def test_a_teams_loss_is_torchrls(quiet_torchrl: Any) -> None:
    import torchrl.objectives

    actor, critic = team_networks()
    data = team_rollout(actor)
    theirs = torchrl.objectives.ClipPPOLoss(
        actor, critic, normalize_advantage=True, normalize_advantage_exclude_dims=(-2,)
    )
    theirs.set_keys(value=("agents", "state_value"), advantage=("agents", "advantage"))
    theirs.make_value_estimator(torchrl.objectives.ValueEstimators.MAGAE, gamma=0.9)
    ours = results(team_loss(actor, critic, gamma=0.9), data)
    expected = results(theirs, data)
    for key in ("loss_objective", "loss_critic", "loss_entropy"):
        torch.testing.assert_close(ours[key], expected[key], rtol=1e-4, atol=1e-5)


def test_a_teams_loss_compiles_into_one_graph_once(fresh_dynamo: None) -> None:
    networks = team_networks()
    loss = team_loss(*networks)
    whole = torch.compile(loss, fullgraph=True, backend="eager")
    check_same_as_eager(loss, whole, team_rollout(networks[0]), networks)
    with torch.compiler.set_stance("fail_on_recompile"):
        estimator = loss.value_estimator
        estimator.gamma, estimator.lmbda = 0.5, 0.3
        check_same_as_eager(loss, whole, team_rollout(networks[0], seed=4), networks)
