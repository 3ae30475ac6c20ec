"""PPOLoss and ClipPPOLoss: the formulas, what masks, keys and options do, and the errors."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Normal

from tritonrl.objectives import SoftUpdate, ValueEstimators
from tritonrl.objectives.ppo import ClipPPOLoss, PPOLoss
from tritonrl.objectives.value import GAE, registry

from .ppo_cases import (
    BATCH,
    categorical_actor,
    composite_actor,
    gradients,
    make_critic,
    normal_actor,
    rollout,
    shared_trunk,
)

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
BOTH = pytest.mark.parametrize("cls", [PPOLoss, ClipPPOLoss])


def build(cls: type[PPOLoss] = ClipPPOLoss, **kwargs: Any) -> PPOLoss:
    return cls(normal_actor(), make_critic(), **kwargs)


# -- the formulas, one step at a time in Python floats ------------------------------------------------------------


def steps_of(loss: PPOLoss, data: TensorDict) -> list[tuple[float, float, float, float]]:
    """(log w, advantage, target, value) of every step, from the networks' outputs and the density of the normal."""
    with torch.no_grad():
        loc_scale = loss.actor_network[0](data.select("observation"))
        value = loss.critic_network(data.select("observation"))["state_value"]
    steps = []
    for index in (
        torch.cartesian_prod(*(torch.arange(size) for size in data.batch_size)).reshape(-1, data.ndim).tolist()
    ):
        step, at = data[tuple(index)], tuple(index)
        log_prob = 0.0
        for loc, scale, action in zip(
            loc_scale["loc"][at].tolist(), loc_scale["scale"][at].tolist(), step["action"].tolist(), strict=True
        ):
            log_prob -= 0.5 * ((action - loc) / scale) ** 2 + math.log(scale) + 0.5 * math.log(2 * math.pi)
        log_weight = log_prob - step["action_log_prob"].item()
        steps.append((log_weight, step["advantage"].item(), step["value_target"].item(), value[at].item()))
    return steps


def double_case(cls: type[PPOLoss], **kwargs: Any) -> tuple[PPOLoss, TensorDict]:
    loss = cls(normal_actor().double(), make_critic().double(), functional=False, **kwargs)
    data = rollout()
    return loss, data.apply(lambda x: x.double() if x.is_floating_point() else x)


def test_the_plain_objective_is_the_importance_weighted_advantage() -> None:
    loss, data = double_case(PPOLoss)
    steps = steps_of(loss, data)
    out = loss(data)
    n = len(steps)
    assert out["loss_objective"].item() == pytest.approx(-sum(math.exp(w) * a for w, a, _, _ in steps) / n)
    assert out["kl_approx"].item() == pytest.approx(-sum(w for w, _, _, _ in steps) / n)


@pytest.mark.parametrize("clip_epsilon", [0.2, (0.1, 0.4)])
def test_the_clipped_objective_takes_the_smaller_gain(clip_epsilon: Any) -> None:
    loss, data = double_case(ClipPPOLoss, clip_epsilon=clip_epsilon)
    low, high = clip_epsilon if isinstance(clip_epsilon, tuple) else (clip_epsilon, clip_epsilon)
    steps = steps_of(loss, data)
    gains = [min(math.exp(w) * a, min(max(math.exp(w), 1 - low), 1 + high) * a) for w, a, _, _ in steps]
    out = loss(data)
    assert out["loss_objective"].item() == pytest.approx(-sum(gains) / len(gains), rel=1e-6)
    outside = [not 1 - low <= math.exp(w) <= 1 + high for w, _, _, _ in steps]
    assert 0 < sum(outside) < len(outside)
    assert out["clip_fraction"].item() == pytest.approx(sum(outside) / len(outside))
    assert out["max_ratio"].item() == pytest.approx(max(math.exp(w) for w, _, _, _ in steps))
    assert out["mean_ratio"].item() == pytest.approx(sum(math.exp(w) for w, _, _, _ in steps) / len(steps))


def test_the_critic_term_is_the_weighted_huber_distance() -> None:
    loss, data = double_case(PPOLoss, critic_coeff=0.5)
    expected = 0.0
    steps = steps_of(loss, data)
    for _, _, target, value in steps:
        x = abs(target - value)
        expected += (0.5 * x * x if x < 1 else x - 0.5) / len(steps)
    assert loss(data)["loss_critic"].item() == pytest.approx(0.5 * expected)


def test_the_entropy_term_is_the_negative_bonus() -> None:
    out = (loss := build(PPOLoss, entropy_coeff=0.3))(data := rollout())
    scale = loss.actor_network[0](data.select("observation"))["scale"]
    expected = (0.5 * (2 * math.pi * math.e * scale**2).log()).sum(-1).mean()
    torch.testing.assert_close(out["entropy"], expected.detach())
    torch.testing.assert_close(out["loss_entropy"], -0.3 * expected)


def test_on_policy_data_has_weight_one_and_nothing_is_clipped() -> None:
    actor = normal_actor()
    data = rollout(lambda seed: actor)
    out = ClipPPOLoss(actor, make_critic())(data)
    torch.testing.assert_close(out["loss_objective"], -data["advantage"].mean())
    torch.testing.assert_close(out["ESS"], torch.ones(BATCH[1]))
    assert out["clip_fraction"] == 0
    assert out["kl_approx"].abs() < 1e-6


# -- gradients ----------------------------------------------------------------------------------------------------


@BOTH
def test_each_term_trains_its_own_network_only(cls: type[PPOLoss]) -> None:
    for term, trains_actor in (("loss_objective", True), ("loss_entropy", True), ("loss_critic", False)):
        actor, critic = normal_actor(), make_critic()
        cls(actor, critic)(rollout(advantage=False))[term].backward()
        assert all((gradient is not None) is trains_actor for gradient in gradients(actor))
        assert all((gradient is None) is trains_actor for gradient in gradients(critic))


@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("separate_losses", [True, False])
def test_separate_losses_keeps_the_critic_away_from_a_shared_trunk(functional: bool, separate_losses: bool) -> None:
    trunk, actor, critic = shared_trunk()
    loss = ClipPPOLoss(actor, critic, separate_losses=separate_losses, functional=functional)
    loss(rollout())["loss_critic"].backward()
    assert all((gradient is None) is separate_losses for gradient in gradients(trunk))
    assert all(gradient is not None for gradient in gradients(critic[1]))
    assert all(parameter.requires_grad for parameter in trunk.parameters())


@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("separate_losses", [True, False])
def test_a_critic_on_the_hidden_state_sees_what_the_current_actor_computes(
    functional: bool, separate_losses: bool
) -> None:
    trunk, actor, critic = shared_trunk()
    data = rollout()
    loss = PPOLoss(actor, critic[1], functional=functional, separate_losses=separate_losses)
    fresh = loss(data)["loss_critic"]
    stale = loss(data.set("hidden", torch.zeros(*BATCH, 16)))["loss_critic"]
    torch.testing.assert_close(fresh, stale)
    fresh.backward()
    assert all((gradient is None) is separate_losses for gradient in gradients(trunk))


class Offset(nn.Module):
    """A value function with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.register_buffer("offset", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.offset


def test_the_advantage_computed_inside_uses_the_parameters_and_buffers_of_the_loss() -> None:
    critic = TensorDictModule(Offset(), in_keys=["observation"], out_keys=["state_value"])
    loss = ClipPPOLoss(normal_actor(), critic).double()
    loss.critic_network_params["module", "offset"].fill_(7.0)
    data = rollout(advantage=False).apply(lambda x: x.double() if x.is_floating_point() else x)
    reference = copy.deepcopy(critic).double()
    reference.module.offset.fill_(7.0)
    given = GAE(gamma=0.99, lmbda=0.95, value_network=reference)(data.clone())
    torch.testing.assert_close(loss(data).to_dict(), loss(given).to_dict())


# -- the data -----------------------------------------------------------------------------------------------------


def entries(data: TensorDict) -> dict[Any, tuple[int, int]]:
    return {key: (id(value), value._version) for key, value in data.items(True, True)}


@BOTH
@pytest.mark.parametrize("advantage", [True, False])
def test_nothing_is_written_into_the_callers_tensordict(cls: type[PPOLoss], advantage: bool) -> None:
    data = rollout(composite_actor, advantage=advantage)
    data["collector", "mask"] = torch.rand(BATCH) > 0.3
    before = entries(data)
    cls(composite_actor(), make_critic(), normalize_advantage=True)(data)
    assert entries(data) == before


def test_the_missing_advantage_is_computed_by_the_value_estimator() -> None:
    loss = build()
    loss.make_value_estimator(ValueEstimators.GAE, gamma=0.9, lmbda=0.8)
    data = rollout(advantage=False)
    given = GAE(gamma=0.9, lmbda=0.8, value_network=make_critic())(data.clone())
    torch.testing.assert_close(loss(data).to_dict(), loss(given).to_dict())


def test_without_critic_and_without_advantage_the_error_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"'advantage' was not found.*no critic network.*pass critic_network"):
        ClipPPOLoss(normal_actor())(rollout(advantage=False))


@BOTH
def test_an_actor_alone_is_enough_if_the_advantage_is_in_the_data(cls: type[PPOLoss]) -> None:
    loss = cls(normal_actor(), critic_coeff=0)
    assert "loss_critic" not in loss.out_keys
    data = rollout().select("observation", "action", "action_log_prob", "advantage")
    out = loss(data)
    assert "loss_critic" not in out
    torch.testing.assert_close(out["loss_objective"], cls(normal_actor(), make_critic())(rollout())["loss_objective"])


@pytest.mark.parametrize("key", ["action", "action_log_prob", "value_target", "observation", "state_value"])
def test_a_missing_entry_is_a_key_error_that_names_it(key: str) -> None:
    with pytest.raises(KeyError, match=key):
        build(clip_value=0.1)(rollout().exclude(key))


@BOTH
def test_a_flat_advantage_is_an_error_and_no_outer_product(cls: type[PPOLoss]) -> None:
    for batch in ((6,), BATCH, (1,)):
        data = rollout(batch=batch)
        data["advantage"] = data["advantage"].squeeze(-1)
        if batch == (1,):
            assert build(cls)(data)["loss_objective"].shape == ()
            continue
        with pytest.raises(ValueError, match="advantage has shape"):
            build(cls)(data)


def test_a_flat_value_target_is_an_error() -> None:
    data = rollout()
    data["value_target"] = data["value_target"].squeeze(-1)
    with pytest.raises(RuntimeError, match=r"value_target has shape \(5, 7\).*\(5, 7, 1\)"):
        build()(data)


def test_every_token_of_an_action_shares_its_advantage() -> None:
    data = rollout(lambda seed: normal_actor(seed, Normal))
    assert data["action_log_prob"].shape == (*BATCH, 3)
    out = PPOLoss(normal_actor(0, Normal), make_critic(), reduction="none")(data)
    assert out["loss_objective"].shape == (*BATCH, 3)
    params = normal_actor(0)[0](data.select("observation"))
    log_weight = Normal(params["loc"], params["scale"]).log_prob(data["action"]) - data["action_log_prob"]
    torch.testing.assert_close(out["loss_objective"], -log_weight.exp() * data["advantage"])


# -- masks and reductions -----------------------------------------------------------------------------------------


def masked_case() -> tuple[TensorDict, torch.Tensor]:
    data = rollout(batch=(11,))
    mask = torch.tensor([True, True, False, True, False, True, True, False, True, True, False])
    return data, mask


@pytest.mark.parametrize("where", [("collector", "mask"), "shifted_valid"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_masked_steps_count_in_no_loss_and_in_no_metric(where: Any, reduction: str) -> None:
    data, mask = masked_case()
    loss = build(clip_value=0.1, reduction=reduction)
    out, compact = loss(data.clone().set(where, mask)), loss(data[mask])
    assert {"clip_fraction", "ESS", "max_ratio", "mean_ratio", "kl_approx", "entropy"} < set(out.keys())
    assert {"explained_variance", "value_clip_fraction"} < set(out.keys())
    for key in set(out.keys()):
        torch.testing.assert_close(out[key], compact[key], msg=lambda text, key=key: f"{key}: {text}")


def test_without_a_mask_key_the_mask_is_ignored() -> None:
    data, mask = masked_case()
    loss = build()
    plain = loss(data)
    loss.loss_mask_key = None
    torch.testing.assert_close(loss(data.set("shifted_valid", mask)).to_dict(), plain.to_dict())


@pytest.mark.parametrize("normalize_advantage", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rubbish_behind_the_mask_reaches_neither_loss_nor_metric_nor_gradient(
    normalize_advantage: bool, bad: float
) -> None:
    data, mask = masked_case()
    dirty = data.apply(
        lambda x: x.masked_fill(~mask.view(-1, *[1] * (x.ndim - 1)), bad) if x.is_floating_point() else x
    )
    results = []
    for candidate in (data, dirty):
        actor, critic = normal_actor(), make_critic()
        loss = ClipPPOLoss(actor, critic, clip_value=0.1, normalize_advantage=normalize_advantage)
        out = loss(candidate.clone().set("shifted_valid", mask))
        loss.total(out).backward()
        results.append((out.to_dict(), gradients(actor, critic)))
    torch.testing.assert_close(results[1], results[0])


def test_nothing_valid_gives_zero_losses_and_finite_metrics() -> None:
    data, mask = masked_case()
    out = build(clip_value=0.1)(data.set("shifted_valid", torch.zeros_like(mask)))
    assert all(out[key] == 0 for key in ("loss_objective", "loss_critic", "loss_entropy"))
    assert all(value.isfinite().all() for value in out.values())


def test_the_normalised_advantage_of_valid_steps_does_not_depend_on_the_padding() -> None:
    data, mask = masked_case()
    loss = build(normalize_advantage=True)
    first = loss(data.clone().set("shifted_valid", mask))
    data["advantage"] = torch.where(mask.unsqueeze(-1), data["advantage"], torch.full((11, 1), 1e6))
    torch.testing.assert_close(loss(data.set("shifted_valid", mask)).to_dict(), first.to_dict())


def test_no_reduction_gives_one_number_for_each_step() -> None:
    none, mean = build(reduction="none")(rollout()), build()(rollout())
    for key in ("loss_objective", "loss_critic", "loss_entropy"):
        assert none[key].shape == BATCH
        torch.testing.assert_close(none[key].mean(), mean[key])


def test_an_unknown_reduction_or_distance_is_named() -> None:
    with pytest.raises(NotImplementedError, match="median"):
        build(reduction="median")(rollout())
    with pytest.raises(NotImplementedError, match="huber"):
        build(loss_critic_type="huber")(rollout())


# -- options ------------------------------------------------------------------------------------------------------


def test_a_mapping_gives_each_head_its_own_coefficient() -> None:
    data = rollout(composite_actor)
    by_head = {("agent", "move"): 0.1, ("agent", "gear"): 0.4}
    out = ClipPPOLoss(composite_actor(), make_critic(), entropy_coeff=by_head)(data)
    heads = out["composite_entropy", "agent"]
    expected = 0.1 * heads["move_entropy"].sum(-1).mean() + 0.4 * heads["gear_entropy"].mean()
    torch.testing.assert_close(out["loss_entropy"].detach(), -expected)
    by_entropy = {("agent", "move_entropy"): 0.1, ("agent", "gear_entropy"): 0.4}
    again = ClipPPOLoss(composite_actor(), make_critic(), entropy_coeff=by_entropy)(data)
    torch.testing.assert_close(again["loss_entropy"], out["loss_entropy"])


def test_equal_coefficients_by_head_are_one_coefficient() -> None:
    data = rollout(composite_actor)
    losses = [
        PPOLoss(composite_actor(), make_critic(), entropy_coeff=coefficient, reduction="none")(data)["loss_entropy"]
        for coefficient in (0.2, {("agent", "move"): 0.2, ("agent", "gear"): 0.2})
    ]
    torch.testing.assert_close(losses[0], losses[1])


def test_a_mapping_needs_every_head_and_a_composite_policy() -> None:
    with pytest.raises(KeyError, match="gear"):
        PPOLoss(composite_actor(), make_critic(), entropy_coeff={("agent", "move"): 0.1})(rollout(composite_actor))
    with pytest.raises(TypeError, match=r"CompositeDistribution.*Independent"):
        PPOLoss(normal_actor(), make_critic(), entropy_coeff={"action": 0.1})(rollout())


def test_the_value_may_not_move_further_than_the_clip_value() -> None:
    data = rollout()
    loss = build(clip_value=0.1, loss_critic_type="l2", reduction="none")
    out = loss(data)
    value = make_critic()(data.select("observation"))["state_value"]
    target, old = data["value_target"], data["state_value"]
    bounded = torch.minimum(torch.maximum(value, old - 0.1), old + 0.1)
    expected = torch.maximum((target - value) ** 2, (target - bounded) ** 2).squeeze(-1)
    torch.testing.assert_close(out["loss_critic"], expected)
    torch.testing.assert_close(out["value_clip_fraction"], ((value - old).abs() > 0.1).float().mean())


def test_clip_value_true_is_the_clip_epsilon() -> None:
    data = rollout()
    torch.testing.assert_close(
        build(clip_value=True, clip_epsilon=0.3)(data).to_dict(),
        build(clip_value=0.3, clip_epsilon=0.3)(data).to_dict(),
    )
    assert build(clip_value=False).clip_value is None


def test_a_delayed_actor_limits_the_step_from_the_proximal_policy() -> None:
    data = rollout()
    loss = build(delay_actor=True)
    torch.testing.assert_close(loss(data)["kl_approx"], torch.tensor(0.0))
    torch.testing.assert_close(loss(data)["loss_objective"], build(PPOLoss)(data)["loss_objective"])
    with torch.no_grad():
        for parameter in loss.target_actor_network_params.values(True, True):
            parameter.add_(0.05)
    proximal = normal_actor()
    with torch.no_grad():
        for parameter in proximal.parameters():
            parameter.add_(0.05)
    log_prob = {
        name: actor.get_dist(data.clone()).log_prob(data["action"]).detach().unsqueeze(-1)
        for name, actor in {"new": normal_actor(), "prox": proximal}.items()
    }
    ratio = (log_prob["new"] - log_prob["prox"]).exp()
    stale = (log_prob["prox"] - data["action_log_prob"].unsqueeze(-1)).exp()
    advantage = data["advantage"]
    expected = -torch.minimum(stale * ratio * advantage, stale * ratio.clamp(0.8, 1.2) * advantage).mean()
    out = loss(data)
    torch.testing.assert_close(out["loss_objective"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out["kl_approx"], -ratio.log().mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out["mean_ratio"], (stale * ratio).mean())


def test_a_soft_update_moves_the_proximal_policy() -> None:
    loss = build(delay_actor=True)
    updater = SoftUpdate(loss, eps=0.9)
    data = rollout()
    with torch.no_grad():
        for parameter in loss.actor_network_params.values(True, True):
            parameter.add_(0.1)
    before = loss(data)["kl_approx"]
    for _ in range(60):
        updater.step()
    assert before.abs() > 1e-3
    assert loss(data)["kl_approx"].abs() < before.abs() / 100


@pytest.mark.parametrize("delay_actor", [False, True])
def test_the_importance_weight_is_limited_but_keeps_its_gradient(delay_actor: bool) -> None:
    data = rollout()
    actor = normal_actor()
    loss = PPOLoss(actor, make_critic(), max_importance_ratio=1.05, delay_actor=delay_actor, reduction="none")
    weight = -loss(data)["loss_objective"] / data["advantage"].squeeze(-1)
    plain = -build(PPOLoss, reduction="none")(data)["loss_objective"] / data["advantage"].squeeze(-1)
    assert (plain > 1.05).any()
    torch.testing.assert_close(weight, plain.clamp_max(1.05), rtol=1e-5, atol=1e-6)
    log_prob = actor.get_dist(data.clone()).log_prob(data["action"])
    expected = torch.autograd.grad((weight.detach() * log_prob).sum(), list(actor.parameters()))
    torch.testing.assert_close(torch.autograd.grad(weight.sum(), list(actor.parameters())), expected)


class CountingNorm:
    """Remembers what it was updated with; the scale is a constant."""

    def __init__(self) -> None:
        self.updates: list[torch.Tensor] = []

    def update(self, value_target: torch.Tensor) -> None:
        self.updates.append(value_target)

    def scale(self) -> torch.Tensor:
        return torch.tensor([2.0])


def test_advantage_norm_scales_and_learns_from_targets_computed_in_training_mode_only() -> None:
    norm = CountingNorm()
    loss = build(PPOLoss, advantage_norm=norm)
    torch.testing.assert_close(loss(rollout())["loss_objective"], build(PPOLoss)(rollout())["loss_objective"] / 2)
    assert norm.updates == []
    loss(rollout(advantage=False))
    assert [update.shape for update in norm.updates] == [(*BATCH, 1)]
    assert not norm.updates[0].requires_grad
    loss.eval()
    loss(rollout(advantage=False))
    assert len(norm.updates) == 1


def test_normalising_several_columns_together_warns_unless_one_is_kept_apart() -> None:
    data = rollout(batch=(6,))
    data["advantage"] = torch.randn(6, 3)
    with pytest.warns(UserWarning, match=r"\(6, 3\).*more entries"):
        build(PPOLoss, normalize_advantage=True)(data)
    build(PPOLoss, normalize_advantage=True, normalize_advantage_exclude_dims=(-1,))(data)


@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("advantage", [True, False])
def test_the_functional_and_the_plain_loss_are_the_same(functional: bool, advantage: bool) -> None:
    data = rollout(advantage=advantage)
    actor, critic = normal_actor(), make_critic()
    loss = ClipPPOLoss(actor, critic, functional=functional)
    loss.total(loss(data)).backward()
    reference = build()
    torch.testing.assert_close(loss(data).to_dict(), reference(data).to_dict())
    reference.total(reference(data)).backward()
    torch.testing.assert_close(gradients(actor, critic), [parameter.grad for parameter in reference.parameters()])
    assert loss.functional is functional
    prefix = "actor_network_params." if functional else "actor_network."
    assert any(key.startswith(prefix) for key in loss.state_dict())


# -- coefficients that a schedule changes -------------------------------------------------------------------------


def test_coefficients_are_buffers_that_assignment_writes_in_place() -> None:
    loss = build(clip_value=0.1, max_importance_ratio=2, entropy_coeff=0, critic_coeff=1)
    for name, value in {
        "clip_epsilon": 0.05,
        "entropy_coeff": 0.4,
        "critic_coeff": 0.25,
        "clip_value": 0.3,
        "max_importance_ratio": 1.5,
    }.items():
        buffer = getattr(loss, name)
        setattr(loss, name, value)
        assert getattr(loss, name) is buffer
        assert buffer.item() == pytest.approx(value)
        assert name in dict(loss.named_buffers())


def test_a_pair_is_scheduled_by_its_two_ends() -> None:
    loss = build(clip_epsilon=(0.1, 0.3))
    low, high = loss.clip_epsilon_low, loss.clip_epsilon_high
    loss.clip_epsilon_low = 0.2
    assert (low.item(), high.item()) == pytest.approx((0.2, 0.3))
    loss.clip_epsilon = (0.05, 0.15)
    assert (low.item(), high.item()) == pytest.approx((0.05, 0.15))
    assert loss.clip_epsilon_low is low


def test_the_wrong_kind_of_range_cannot_be_assigned() -> None:
    with pytest.raises(AttributeError, match="clip_epsilon_low"):
        build(clip_epsilon=(0.1, 0.3)).clip_epsilon = 0.2
    with pytest.raises(AttributeError, match="one number"):
        build().clip_epsilon = (0.1, 0.2)
    with pytest.raises(AttributeError, match="one number"):
        build().clip_epsilon_low = 0.1
    with pytest.raises(AttributeError):
        _ = build(clip_epsilon=(0.1, 0.3)).clip_epsilon
    with pytest.raises(ValueError, match="low < 1"):
        build(clip_epsilon=(0.1, 0.3)).clip_epsilon = (1.5, 0.2)


# -- keys and dispatch --------------------------------------------------------------------------------------------


def test_a_composite_actor_brings_its_own_keys() -> None:
    loss = ClipPPOLoss(composite_actor(), make_critic())
    assert loss.tensor_keys.action == [("agent", "move"), ("agent", "gear")]
    assert loss.tensor_keys.sample_log_prob == [("agent", "move_log_prob"), ("agent", "gear_log_prob")]
    loss.set_keys(action=None, sample_log_prob=None)
    assert loss.tensor_keys.action == [("agent", "move"), ("agent", "gear")]


def test_every_entry_can_be_renamed() -> None:
    names = {
        "advantage": "adv",
        "value_target": ("targets", "value"),
        "value": "vf",
        "sample_log_prob": "old_log_prob",
        "action": ("agents", "act"),
        "reward": "r",
        "done": "d",
        "terminated": "t",
    }
    critic = make_critic()
    critic.out_keys = ["vf"]
    for advantage in (True, False):
        data = rollout(advantage=advantage)
        expected = build(clip_value=0.1)(data)
        for old, new in (("advantage", "adv"), ("value_target", ("targets", "value")), ("state_value", "vf")):
            if advantage:
                data.rename_key_(old, new)
        data.rename_key_("action_log_prob", "old_log_prob")
        data.rename_key_("action", ("agents", "act"))
        for old, new in (("reward", "r"), ("done", "d"), ("terminated", "t")):
            data.rename_key_(("next", old), ("next", new))
        loss = ClipPPOLoss(normal_actor(), critic, clip_value=0.1)
        loss.set_keys(**names)
        torch.testing.assert_close(loss(data).to_dict(), expected.to_dict())
        assert {("agents", "act"), "old_log_prob", ("next", "r"), ("next", "d"), ("next", "t")} <= set(loss.in_keys)


def test_an_unknown_role_is_an_error() -> None:
    with pytest.raises(ValueError, match="advantages"):
        build().set_keys(advantages="adv")


@BOTH
def test_dispatch_by_keywords_returns_the_out_keys_in_order(cls: type[PPOLoss]) -> None:
    loss, data = build(cls, clip_value=0.1), rollout(advantage=False)
    keywords = {
        key if isinstance(key, str) else "_".join(key): value
        for key, value in data.items(True, True)
        if key in set(loss.in_keys)
    }
    result = loss(**keywords)
    out = loss(data)
    assert len(result) == len(loss.out_keys)
    for key, value in zip(loss.out_keys, result, strict=True):
        torch.testing.assert_close(value, out[key])


def test_selected_out_keys_are_all_that_comes_out() -> None:
    loss = build()
    loss.select_out_keys("loss_objective", "loss_critic")
    assert set(loss(rollout()).keys()) == {"loss_objective", "loss_critic"}


# -- construction -------------------------------------------------------------------------------------------------


@BOTH
def test_a_misspelt_keyword_is_a_type_error(cls: type[PPOLoss]) -> None:
    for typo in ("entropy_coef", "critic_coef", "clip_eps", "normalise_advantage"):
        with pytest.raises(TypeError, match=typo):
            build(cls, **{typo: 0.1})


@BOTH
def test_a_network_that_is_missing_is_a_type_error(cls: type[PPOLoss]) -> None:
    with pytest.raises(TypeError, match="actor_network"):
        cls(critic_network=make_critic())
    with pytest.raises(TypeError, match="critic_network"):
        cls(normal_actor(), critic_coeff=0.5)
    with pytest.raises(TypeError, match="actor_network and actor"):
        cls(normal_actor(), make_critic(), actor=normal_actor())
    with pytest.raises(TypeError, match="get_dist"):
        cls(make_critic(), make_critic())


@BOTH
def test_the_short_names_of_the_networks_work(cls: type[PPOLoss]) -> None:
    torch.testing.assert_close(
        cls(actor=normal_actor(), critic=make_critic())(rollout()).to_dict(), build(cls)(rollout()).to_dict()
    )


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"gamma": 0.9}, TypeError, "make_value_estimator"),
        ({"advantage_key": "adv"}, RuntimeError, "set_keys"),
        ({"value_target_key": "x"}, RuntimeError, "set_keys"),
        ({"value_key": "x"}, RuntimeError, "set_keys"),
        ({"delay_actor": True, "functional": False}, ValueError, "functional=True"),
        ({"max_importance_ratio": 0}, ValueError, "max_importance_ratio"),
        ({"max_importance_ratio": -1.0}, ValueError, "max_importance_ratio"),
        ({"max_importance_ratio": math.nan}, ValueError, "max_importance_ratio"),
        ({"normalize_advantage": True, "advantage_norm": CountingNorm()}, ValueError, "exclude each other"),
        ({"advantage_norm": 3.0}, TypeError, "update and scale"),
        ({"entropy_coeff": "high"}, TypeError, "entropy_coeff"),
        ({"entropy_coeff": [0.1]}, TypeError, "entropy_coeff"),
        ({"entropy_coeff": torch.ones(2)}, ValueError, "entropy_coeff"),
        ({"samples_mc_entropy": 0}, ValueError, "samples_mc_entropy"),
        ({"critic_coeff": -0.5}, ValueError, "critic_coeff"),
        ({"critic_coeff": True}, ValueError, "critic_coeff"),
        ({"clip_epsilon": (0.1,)}, ValueError, "pair"),
        ({"clip_epsilon": (-0.1, 0.2)}, ValueError, "low"),
        ({"clip_epsilon": (1.0, 0.2)}, ValueError, "low < 1"),
        ({"clip_epsilon": -0.2}, ValueError, "between 0 and 1"),
        ({"clip_epsilon": 20}, ValueError, "between 0 and 1"),
        ({"clip_epsilon": None}, ValueError, "clip_epsilon"),
        ({"clip_epsilon": True}, ValueError, "clip_epsilon"),
        ({"clip_epsilon": (0.1, 0.2), "clip_value": True}, ValueError, "clip_value=True"),
    ],
)
def test_an_option_out_of_range_is_refused(kwargs: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build(**kwargs)


def test_a_boolean_clip_value_is_refused_by_the_plain_loss() -> None:
    with pytest.raises(ValueError, match="clip_value"):
        build(PPOLoss, clip_value=True)


def test_every_keyword_is_documented_once() -> None:
    for cls, others in ((PPOLoss, ()), (ClipPPOLoss, (PPOLoss,))):
        documented = "".join(c.__doc__ or "" for c in (cls, *others))
        for name, parameter in inspect.signature(cls).parameters.items():
            assert parameter.kind is not inspect.Parameter.VAR_KEYWORD
            assert name in documented


def test_a_critic_coefficient_can_be_switched_on_later() -> None:
    loss = build(critic_coeff=0)
    assert "loss_critic" not in loss(rollout())
    loss.critic_coeff = 0.5
    torch.testing.assert_close(loss(rollout())["loss_critic"], build(critic_coeff=0.5)(rollout())["loss_critic"])


def test_the_critic_term_is_available_alone() -> None:
    loss = build(clip_value=0.1)
    loss_critic, clip_fraction, explained = loss.loss_critic(rollout())
    out = loss(rollout())
    torch.testing.assert_close(loss_critic.mean(), out["loss_critic"])
    torch.testing.assert_close((clip_fraction, explained), (out["value_clip_fraction"], out["explained_variance"]))
    with pytest.raises(RuntimeError, match="no critic term"):
        ClipPPOLoss(normal_actor()).loss_critic(rollout())


# -- copies and checkpoints ---------------------------------------------------------------------------------------


def used_loss(**kwargs: Any) -> ClipPPOLoss:
    loss = ClipPPOLoss(categorical_actor(), make_critic(), **kwargs)
    loss(rollout(categorical_actor, advantage=False))
    loss.clip_epsilon = 0.07
    return loss


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch"])
def test_a_used_loss_can_be_copied(how: str) -> None:
    loss = used_loss(delay_actor=True, entropy_coeff=0.02)
    if how == "deepcopy":
        twin = copy.deepcopy(loss)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(loss))
    else:
        buffer = io.BytesIO()
        torch.save(loss, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    data = rollout(categorical_actor, advantage=False)
    torch.testing.assert_close(twin(data).to_dict(), loss(data).to_dict())
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    assert not torch.equal(next(twin.parameters()), next(loss.parameters()))


def test_the_state_of_a_used_loss_loads_strictly_into_a_fresh_one_and_back() -> None:
    loss = used_loss()
    loss.make_value_estimator(ValueEstimators.GAE, gamma=0.5, lmbda=0.3)
    fresh = ClipPPOLoss(categorical_actor(9), make_critic(9))
    fresh.load_state_dict(loss.state_dict())
    data = rollout(categorical_actor, advantage=False)
    torch.testing.assert_close(fresh(data).to_dict(), loss(data).to_dict())
    loss.load_state_dict(ClipPPOLoss(categorical_actor(), make_critic()).state_dict())


class UndiscountedGAE(GAE):
    """Another estimator, with other entries in its state."""

    def __init__(self, *, lmbda: float, value_network: Any, device: Any = None) -> None:
        super().__init__(gamma=1.0, lmbda=lmbda, value_network=value_network, device=device)
        self.register_buffer("offset", torch.zeros(()))


def test_a_loaded_state_brings_its_kind_of_value_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry.ValueEstimatorEntry(UndiscountedGAE, {"lmbda": 0.7})
    monkeypatch.setitem(registry._ENTRIES, ValueEstimators.TDLambda, entry)
    loss = build()
    loss.make_value_estimator("tdlambda", lmbda=0.2)
    fresh = build()
    fresh.load_state_dict(loss.state_dict())
    assert type(fresh.value_estimator) is UndiscountedGAE
    data = rollout(advantage=False)
    torch.testing.assert_close(fresh(data).to_dict(), loss(data).to_dict())
    chosen = build()
    chosen.make_value_estimator("gae")
    with pytest.raises(RuntimeError, match="offset"):
        chosen.load_state_dict(loss.state_dict())


def test_a_state_without_a_value_estimator_loads_strictly() -> None:
    loss = build()
    state = {key: value for key, value in loss.state_dict().items() if not key.startswith("_value_estimator")}
    assert len(state) < len(loss.state_dict())
    build().load_state_dict(state)


def test_a_critic_under_another_key_is_found_after_set_keys() -> None:
    critic = make_critic()
    critic.out_keys = ["vf"]
    loss = ClipPPOLoss(normal_actor(), critic)
    loss.set_keys(value="vf")
    torch.testing.assert_close(loss(rollout(advantage=False)).to_dict(), build()(rollout(advantage=False)).to_dict())


def test_training_on_a_rollout_improves_its_objective() -> None:
    actor, critic = normal_actor(), make_critic()
    loss = ClipPPOLoss(actor, critic, entropy_bonus=False)
    data = rollout(lambda seed: actor)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
    assert {id(p) for p in loss.parameters()} == {id(p) for m in (actor, critic) for p in m.parameters()}
    first = loss(data)
    for _ in range(20):
        optimizer.zero_grad()
        loss.total(loss(data)).backward()
        nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
        optimizer.step()
    last = loss(data)
    assert last["loss_objective"] < first["loss_objective"] - 0.01
    assert last["loss_critic"] < first["loss_critic"]
