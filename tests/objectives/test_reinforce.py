"""ReinforceLoss: the formula, the fresh advantage of every call, the delayed critic, TorchRL's numbers, compile."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torchrl.objectives as peer
from tensordict.nn import set_composite_lp_aggregate
from torch.distributions import Categorical, Normal, OneHotCategorical

from tritonrl.objectives import ReinforceLoss, SoftUpdate
from tritonrl.objectives.value import GAE

from .policy_gradient_cases import build, check_compiled, check_parity
from .ppo_cases import BATCH, categorical_actor, composite_actor, make_critic, normal_actor, rollout

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def move_target(loss: Any) -> None:
    """Give the delayed critic parameters of its own."""
    with torch.no_grad():
        for parameter in loss.target_critic_network_params.values(True, True):
            parameter.add_(0.05)


# -- the formula --------------------------------------------------------------------------------------------------


def test_both_terms_are_what_the_textbook_says_step_by_step() -> None:
    """In Python floats, from the networks' outputs and the probabilities of the stored actions."""
    loss = ReinforceLoss(categorical_actor().double(), make_critic().double(), loss_critic_type="l2")
    data = rollout(categorical_actor).apply(lambda x: x.double() if x.is_floating_point() else x)
    with torch.no_grad():
        logits = categorical_actor().double()[0](data.select("observation"))["logits"].reshape(-1, 3).tolist()
        values = make_critic().double()(data.select("observation"))["state_value"].reshape(-1).tolist()
    actor = value = 0.0
    for step, scores, v in zip(data.reshape(-1), logits, values, strict=True):
        probability = math.exp(scores[step["action"].item()]) / sum(math.exp(score) for score in scores)
        actor -= math.log(probability) * step["advantage"].item() / data.numel()
        value += (step["value_target"].item() - v) ** 2 / data.numel()
    out = loss(data)
    assert set(out.keys()) == {"loss_actor", "loss_value"}
    assert out["loss_actor"].item() == pytest.approx(actor)
    assert out["loss_value"].item() == pytest.approx(value)


def test_the_expected_gradient_is_that_of_the_expected_return() -> None:
    """A bandit whose gradient is known: summed over all actions, grad log pi * r * pi is the gradient of sum(pi * r)."""
    actor = categorical_actor()
    observation, reward = torch.randn(1, 4), torch.tensor([1.0, -2.0, 5.0])
    data = rollout(categorical_actor, batch=(3,)).update(
        {"observation": observation.expand(3, 4), "action": torch.arange(3), "advantage": reward.unsqueeze(-1)}
    )
    probability = actor[0](data.select("observation"))["logits"][0].softmax(-1)
    loss = ReinforceLoss(actor, make_critic(), reduction="none")(data)["loss_actor"]
    estimated = torch.autograd.grad((loss * probability.detach()).sum(), list(actor.parameters()))
    exact = torch.autograd.grad(-(probability * reward).sum(), list(actor.parameters()))
    torch.testing.assert_close(estimated, exact)


def test_no_gradient_reaches_the_advantage() -> None:
    data = rollout()
    advantage = data["advantage"].requires_grad_()
    out = build(ReinforceLoss)(data)
    assert torch.autograd.grad(out["loss_actor"], advantage, allow_unused=True) == (None,)


def test_every_token_of_an_action_shares_its_advantage() -> None:
    data = rollout(lambda seed: normal_actor(seed, Normal))
    check_parity(ReinforceLoss, peer.ReinforceLoss, data, lambda: normal_actor(0, Normal), reduction="none")


def test_the_critic_term_is_available_alone() -> None:
    loss = build(ReinforceLoss, clip_value=0.1)
    loss_value, clip_fraction = loss.loss_critic(rollout())
    out = loss(rollout())
    assert loss_value.shape == (*BATCH, 1)
    torch.testing.assert_close((loss_value.mean(), clip_fraction), (out["loss_value"], out["value_clip_fraction"]))
    assert build(ReinforceLoss).loss_critic(rollout())[1] is None


# -- the delayed critic -------------------------------------------------------------------------------------------


def test_a_delayed_critic_gives_the_next_values_and_only_those() -> None:
    loss = build(ReinforceLoss, delay_value=True)
    move_target(loss)
    delayed = make_critic()
    with torch.no_grad():
        for parameter in delayed.parameters():
            parameter.add_(0.05)
    data = rollout(advantage=False)
    with torch.no_grad():
        value = make_critic()(data.select("observation"))["state_value"]
        next_value = delayed(data["next"].select("observation"))["state_value"]
    given = data.clone().set("state_value", value).set(("next", "state_value"), next_value)
    given = GAE(gamma=0.99, lmbda=0.95, value_network=None)(given)
    torch.testing.assert_close(loss(data).to_dict(), build(ReinforceLoss)(given).to_dict())
    assert not torch.isclose(loss(data)["loss_actor"], build(ReinforceLoss)(data)["loss_actor"])


def test_a_soft_update_moves_the_delayed_critic() -> None:
    loss = build(ReinforceLoss, delay_value=True)
    updater = SoftUpdate(loss, eps=0.5)
    with torch.no_grad():
        for parameter in loss.critic_network_params.values(True, True):
            parameter.add_(0.1)
    data, undelayed = rollout(advantage=False), ReinforceLoss(normal_actor(), loss.get_stateful_net("critic_network"))
    expected = undelayed(data)["loss_actor"]
    before = (loss(data)["loss_actor"] - expected).abs()
    for _ in range(20):
        updater.step()
    assert before > 1e-3
    torch.testing.assert_close(loss(data)["loss_actor"], expected)


def test_a_delayed_critic_needs_the_functional_loss() -> None:
    for cls in (ReinforceLoss, peer.ReinforceLoss):
        with pytest.raises(RuntimeError, match="delay_value"):
            build(cls, delay_value=True, functional=False)


@pytest.mark.parametrize("clip_value", [1, True, "x", torch.ones(2)])
def test_a_clip_value_must_be_a_float_or_one_element(clip_value: Any) -> None:
    for cls in (ReinforceLoss, peer.ReinforceLoss):
        with pytest.raises(ValueError, match="clip_value"):
            build(cls, clip_value=clip_value)


# -- TorchRL ------------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"clip_value": 0.1},
    {"clip_value": torch.tensor([0.3]), "loss_critic_type": "l2"},
    {"loss_critic_type": "l1"},
    {"reduction": "none"},
    {"reduction": "sum"},
    {"functional": False},
    {"separate_losses": True},
    {"delay_value": True},
]


@pytest.mark.parametrize("kwargs", OPTIONS, ids=str)
@pytest.mark.parametrize("advantage", [True, False])
def test_every_option_gives_the_numbers_of_torchrl(kwargs: dict[str, Any], advantage: bool) -> None:
    prepare = move_target if kwargs.get("delay_value") else (lambda loss: None)
    data = rollout(advantage=advantage)
    ours, theirs = check_parity(ReinforceLoss, peer.ReinforceLoss, data, prepare=prepare, **kwargs)
    assert set(ours.state_dict()) >= set(theirs.state_dict())
    assert vars(ours.tensor_keys) == vars(theirs.tensor_keys)


@pytest.mark.parametrize("where", [("collector", "mask"), "shifted_valid"])
def test_masks_give_the_losses_of_torchrl(where: Any) -> None:
    data = rollout()
    data[where] = torch.rand(BATCH) > 0.3
    metrics = frozenset({"value_clip_fraction"})
    for reduction in ("mean", "sum", "none"):
        check_parity(ReinforceLoss, peer.ReinforceLoss, data, but=metrics, clip_value=0.1, reduction=reduction)


@pytest.mark.parametrize("distribution", [Categorical, OneHotCategorical])
def test_discrete_actions_give_the_numbers_of_torchrl(distribution: Any) -> None:
    def make(seed: int = 0) -> Any:
        actor = categorical_actor(seed)
        actor[-1].distribution_class = distribution
        return actor

    check_parity(ReinforceLoss, peer.ReinforceLoss, rollout(make), make)


@pytest.mark.parametrize("aggregate", [False, True])
def test_composite_actions_give_the_numbers_of_torchrl(aggregate: bool) -> None:
    with set_composite_lp_aggregate(aggregate):
        data = rollout(composite_actor)
        outs = [cls(composite_actor(), make_critic())(data.clone()) for cls in (ReinforceLoss, peer.ReinforceLoss)]
    torch.testing.assert_close(outs[0].to_dict(), outs[1].to_dict())


def test_the_parameters_of_the_constructor_are_those_of_torchrl() -> None:
    theirs = dict(inspect.signature(peer.ReinforceLoss.__init__).parameters)
    theirs.pop("self")
    assert theirs["actor_network"].default is inspect.Parameter.empty
    theirs["actor_network"] = theirs["actor_network"].replace(default=None)  # so that ``actor`` works in its place
    ours = inspect.signature(ReinforceLoss).parameters
    assert {k: (p.default, p.kind) for k, p in ours.items()} == {k: (p.default, p.kind) for k, p in theirs.items()}


# -- where we differ on purpose -----------------------------------------------------------------------------------


def test_differently_the_second_call_computes_its_own_advantage() -> None:
    """TorchRL writes the advantage into the caller's data and finds it there when the critic has moved on."""
    data, outs, entries = rollout(advantage=False), [], set(rollout(advantage=False).keys(True, True))
    for cls in (ReinforceLoss, peer.ReinforceLoss):
        actor, critic, batch = normal_actor(), make_critic(), data.clone()
        loss = cls(actor, critic)
        loss(batch)
        if cls is ReinforceLoss:
            assert set(batch.keys(True, True)) == entries
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.add_(0.3)
        outs.append((loss(batch)["loss_actor"], cls(actor, critic)(data.clone())["loss_actor"]))
    (ours, expected), (theirs, their_expected) = outs
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(expected, their_expected)
    assert (theirs - expected).abs() > 1e-3


def test_differently_a_flat_advantage_is_refused() -> None:
    """TorchRL takes it here; the other on-policy losses, and the critic's target beside it, need the trailing 1."""
    data = rollout()
    data["advantage"] = data["advantage"].squeeze(-1)
    build(peer.ReinforceLoss)(data.clone())
    with pytest.raises(ValueError, match=r"\(5, 7\).*\(5, 7, 1\).*unsqueeze"):
        build(ReinforceLoss)(data)


def test_differently_a_stored_action_that_requires_grad_is_refused() -> None:
    """With a reparameterised sample TorchRL's gradient also runs through the action: not the policy gradient."""
    actor = normal_actor()
    data = rollout().exclude("action")
    params = actor[0](data.select("observation"))
    data["action"] = Normal(params["loc"], params["scale"]).rsample()
    peer.ReinforceLoss(actor, make_critic())(data.clone())["loss_actor"].backward()
    theirs = [parameter.grad.clone() for parameter in actor.parameters()]
    with pytest.raises(RuntimeError, match=r"action.*requires grad"):
        ReinforceLoss(actor, make_critic())(data)
    actor.zero_grad()
    ReinforceLoss(actor, make_critic())(data.detach())["loss_actor"].backward()
    assert any(not torch.allclose(a, p.grad) for a, p in zip(theirs, actor.parameters(), strict=True))


def test_differently_a_missing_action_is_a_key_error() -> None:
    data = rollout().exclude("action")
    with pytest.raises(TypeError):
        build(peer.ReinforceLoss)(data.clone())
    with pytest.raises(KeyError, match="'action' was not found"):
        build(ReinforceLoss)(data)


def test_differently_the_keys_of_the_heads_come_from_the_actor() -> None:
    ours, theirs = (cls(composite_actor(), make_critic()) for cls in (ReinforceLoss, peer.ReinforceLoss))
    assert ours.tensor_keys.action == [("agent", "move"), ("agent", "gear")]
    assert theirs.tensor_keys.action == "action"
    assert {("agent", "move"), ("agent", "gear")} <= set(ours.in_keys)


def test_differently_metrics_respect_masks() -> None:
    data = rollout()
    data["shifted_valid"] = mask = torch.rand(BATCH) > 0.3
    ours, theirs = (
        build(cls, clip_value=0.1)(data)["value_clip_fraction"] for cls in (ReinforceLoss, peer.ReinforceLoss)
    )
    loss = build(ReinforceLoss, clip_value=0.1)
    torch.testing.assert_close(ours, loss(rollout()[mask])["value_clip_fraction"])
    torch.testing.assert_close(theirs, loss(rollout())["value_clip_fraction"])
    assert not torch.isclose(ours, theirs)


# -- compile ------------------------------------------------------------------------------------------------------


def test_with_the_advantage_computed_inside_there_is_one_graph_and_never_another() -> None:
    networks = normal_actor(), make_critic()
    loss = ReinforceLoss(*networks, delay_value=True, clip_value=0.1)
    move_target(loss)
    call = torch.compile(loss, fullgraph=True, backend="eager")
    outs = [call(rollout(advantage=False))]  # the first call of all: nothing was built or cached by an eager one
    with torch.compiler.set_stance("fail_on_recompile"):
        check_compiled(loss, call, rollout(advantage=False, seed=4), networks)
        for coefficient in (loss.value_estimator.gamma, loss.value_estimator.lmbda):
            coefficient.fill_(0.3)
            outs.append(check_compiled(loss, call, rollout(advantage=False), networks))
        move_target(loss)
        outs.append(check_compiled(loss, call, rollout(advantage=False), networks))
        loss.clip_value = 0.5
        check_compiled(loss, call, rollout(advantage=False), networks)
    for before, after in pairwise(outs):
        assert not torch.isclose(before["loss_value"], after["loss_value"])


def test_with_the_advantage_in_the_data_there_is_one_graph_and_never_another() -> None:
    networks = composite_actor(), make_critic()
    loss = ReinforceLoss(*networks, functional=False, reduction="sum")
    call = torch.compile(loss, fullgraph=True, backend="aot_eager")
    data = rollout(composite_actor)
    data["collector", "mask"] = torch.rand(BATCH) > 0.3
    check_compiled(loss, call, data, networks)
    with torch.compiler.set_stance("fail_on_recompile"):
        data["collector", "mask"] = torch.rand(BATCH) > 0.3
        check_compiled(loss, call, data, networks)
