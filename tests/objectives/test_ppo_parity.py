"""PPOLoss and ClipPPOLoss against TorchRL 0.14.1: values, gradients, entries, in_keys and out_keys of every option."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchrl.objectives as peer
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule, set_composite_lp_aggregate
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal, OneHotCategorical
from torchrl.modules import (
    MLP,
    ActorValueOperator,
    MaskedCategorical,
    PopArtValueNorm,
    ProbabilisticActor,
    TanhNormal,
    TruncatedNormal,
    ValueOperator,
)

from tritonrl.objectives.ppo import ClipPPOLoss, PPOLoss

from .ppo_cases import BATCH, composite_actor, gradients, make_critic, mlp, normal_actor, rollout

pytestmark = pytest.mark.filterwarnings("ignore")
OURS: dict[str, type[PPOLoss]] = {"PPOLoss": PPOLoss, "ClipPPOLoss": ClipPPOLoss}
NAMES = pytest.mark.parametrize("name", sorted(OURS))
OPTIONS: list[dict[str, Any]] = [
    {},
    {"clip_value": 0.1},
    {"entropy_bonus": False},
    {"entropy_coeff": 0.3},
    {"log_explained_variance": False},
    {"critic_coeff": 0.5},
    {"critic_coeff": 0},
    {"loss_critic_type": "l1"},
    {"loss_critic_type": "l2", "clip_value": 0.3},
    {"reduction": "none"},
    {"reduction": "sum"},
    {"normalize_advantage": True},
    {"normalize_advantage": True, "normalize_advantage_exclude_dims": (0,)},
    {"normalize_advantage": True, "normalize_advantage_exclude_dims": (-2,)},
    {"functional": False},
    {"separate_losses": True},
    {"delay_actor": True},
    {"max_importance_ratio": 1.1},
    {"delay_actor": True, "max_importance_ratio": 1.1},
]


def evaluate(
    cls: Any, actor: nn.Module, critic: nn.Module, data: TensorDict, **kwargs: Any
) -> tuple[Any, TensorDict, Any]:
    """The loss, its output, and the gradients of the sum of its terms."""
    loss = cls(actor, critic, **kwargs)
    if kwargs.get("delay_actor"):
        with torch.no_grad():
            for parameter in loss.target_actor_network_params.values(True, True):
                parameter.add_(0.05)
    torch.manual_seed(9)
    out = loss(data)
    sum(value.sum() for key, value in out.items() if key.startswith("loss_")).backward()
    return loss, out, gradients(actor, critic)


def tensors(out: TensorDict, but: frozenset[str] = frozenset()) -> dict[Any, Tensor]:
    return {key: value for key, value in out.items(True, True) if key not in but}


def check(
    name: str, make: Callable[[], Any], data: TensorDict, but: frozenset[str] = frozenset(), **kwargs: Any
) -> tuple[Any, Any]:
    """Both implementations on the same networks and data; ``but`` are metrics that are meant to differ."""
    theirs, their_out, their_gradients = evaluate(getattr(peer, name), make(), make_critic(), data.clone(), **kwargs)
    ours, our_out, our_gradients = evaluate(OURS[name], make(), make_critic(), data.clone(), **kwargs)
    assert list(our_out.keys()) == list(their_out.keys())
    torch.testing.assert_close(tensors(our_out, but), tensors(their_out, but), rtol=1e-5, atol=1e-6)
    grad_flags = [{key: value.requires_grad for key, value in tensors(out).items()} for out in (our_out, their_out)]
    assert grad_flags[0] == grad_flags[1]
    assert [g is None for g in our_gradients] == [g is None for g in their_gradients]
    for ours_, theirs_ in zip(our_gradients, their_gradients, strict=True):
        if ours_ is not None:
            torch.testing.assert_close(ours_, theirs_, rtol=1e-4, atol=1e-6)
    assert set(ours.in_keys) == set(theirs.in_keys)
    if kwargs.get("critic_coeff") != 0:  # TorchRL lists loss_critic even where there is none
        assert ours.out_keys == theirs.out_keys
    return ours, theirs


@NAMES
@pytest.mark.parametrize("kwargs", OPTIONS, ids=str)
def test_every_option_gives_the_same_numbers(name: str, kwargs: dict[str, Any]) -> None:
    check(name, normal_actor, rollout(), **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"clip_value": 0.1, "normalize_advantage": True}, {"functional": False}, {"separate_losses": True}],
    ids=str,
)
def test_the_advantage_computed_inside_gives_the_same_numbers(kwargs: dict[str, Any]) -> None:
    check("ClipPPOLoss", normal_actor, rollout(advantage=False), **kwargs)


@pytest.mark.parametrize(
    "kwargs", [{"clip_epsilon": (0.1, 0.4)}, {"clip_epsilon": 0.05}, {"clip_value": True}], ids=str
)
def test_every_range_gives_the_same_numbers(kwargs: dict[str, Any]) -> None:
    check("ClipPPOLoss", normal_actor, rollout(), **kwargs)


@NAMES
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_composite_actions_give_the_same_numbers(name: str, reduction: str) -> None:
    ours, theirs = check(name, composite_actor, rollout(composite_actor), reduction=reduction)
    assert vars(ours.tensor_keys) == vars(theirs.tensor_keys)


@NAMES
def test_a_distribution_over_tokens_gives_the_same_numbers(name: str) -> None:
    data = rollout(lambda seed: normal_actor(seed, Normal))
    for reduction in ("mean", "none"):
        check(name, lambda: normal_actor(0, Normal), data, reduction=reduction)


def peer_actor(distribution: Any, seed: int = 0) -> ProbabilisticActor:
    """An actor of torchrl.modules."""
    torch.manual_seed(seed)
    if distribution in (TanhNormal, TruncatedNormal):
        names, network = ["loc", "scale"], nn.Sequential(mlp(4, 6), NormalParamExtractor())
    else:
        names, network = ["logits"], mlp(4, 3)
    module = TensorDictModule(network, in_keys=["observation"], out_keys=names)
    return ProbabilisticActor(module, in_keys=names, distribution_class=distribution, return_log_prob=True)


@NAMES
@pytest.mark.parametrize("distribution", [TanhNormal, TruncatedNormal, Categorical, OneHotCategorical])
@pytest.mark.parametrize("samples", [1, 4])
def test_actors_of_torchrl_give_the_same_numbers(name: str, distribution: Any, samples: int) -> None:
    data = rollout(lambda seed: peer_actor(distribution, seed))
    check(name, lambda: peer_actor(distribution), data, samples_mc_entropy=samples)


def test_an_actor_value_operator_with_a_shared_trunk_gives_the_same_numbers() -> None:
    def make(seed: int) -> ActorValueOperator:
        torch.manual_seed(seed)
        trunk = TensorDictModule(MLP(in_features=4, out_features=16, depth=1, num_cells=8), ["observation"], ["hidden"])
        head = TensorDictModule(nn.Sequential(nn.Linear(16, 6), NormalParamExtractor()), ["hidden"], ["loc", "scale"])
        actor = ProbabilisticActor(head, in_keys=["loc", "scale"], distribution_class=TanhNormal, return_log_prob=True)
        return ActorValueOperator(trunk, actor, ValueOperator(nn.Linear(16, 1), in_keys=["hidden"]))

    data = rollout(lambda seed: make(seed).get_policy_operator())
    for separate_losses in (False, True):
        for advantage in (True, False):
            batch = data if advantage else data.exclude("advantage", "value_target", "state_value")
            results = []
            for cls in (peer.ClipPPOLoss, ClipPPOLoss):
                model = make(0)
                actor, critic = model.get_policy_operator(), model.get_value_operator()
                _, out, _ = evaluate(cls, actor, critic, batch.clone(), separate_losses=separate_losses)
                results.append((tensors(out), gradients(model)))
            torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


def test_a_masked_categorical_gives_the_same_numbers() -> None:
    def make(seed: int = 0) -> ProbabilisticActor:
        torch.manual_seed(seed)
        module = TensorDictModule(mlp(4, 3), in_keys=["observation"], out_keys=["logits"])
        in_keys = {"logits": "logits", "mask": "action_mask"}
        return ProbabilisticActor(module, in_keys=in_keys, distribution_class=MaskedCategorical, return_log_prob=True)

    data = rollout()
    data = data.exclude("action", "action_log_prob", "loc", "scale")
    data["action_mask"] = torch.rand(*BATCH, 3) < 0.7
    data["action_mask"][..., 0] = True
    with torch.no_grad():
        make(42)(data)
    check("ClipPPOLoss", make, data)


@NAMES
@pytest.mark.parametrize("where", [("collector", "mask"), "shifted_valid"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_masks_give_the_same_losses(name: str, where: Any, reduction: str) -> None:
    data = rollout()
    data[where] = torch.rand(BATCH) > 0.3
    metrics = ["kl_approx", "entropy", "explained_variance", "clip_fraction", "ESS", "max_ratio", "mean_ratio"]
    check(name, normal_actor, data, but=frozenset(metrics), reduction=reduction)


def test_normalising_behind_shifted_valid_gives_the_same_losses() -> None:
    data = rollout()
    data["shifted_valid"] = torch.rand(BATCH) > 0.3
    metrics = ["kl_approx", "entropy", "explained_variance", "clip_fraction", "ESS", "max_ratio", "mean_ratio"]
    check("ClipPPOLoss", normal_actor, data, but=frozenset(metrics), normalize_advantage=True)


def test_a_value_norm_of_torchrl_gives_the_same_numbers() -> None:
    results = []
    for cls in (peer.PPOLoss, PPOLoss):
        loss = cls(normal_actor(), make_critic(), advantage_norm=PopArtValueNorm(shape=1, beta=0.9))
        outs = [loss(rollout(advantage=False, seed=seed))["loss_objective"] for seed in (3, 4)]
        outs.append(loss(rollout())["loss_objective"])
        loss.eval()
        outs.append(loss(rollout(advantage=False, seed=5))["loss_objective"])
        results.append(torch.stack(outs))
        assert any(key.startswith("advantage_norm") for key in loss.state_dict())
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_entries_can_be_renamed_in_both() -> None:
    data = rollout().rename_key_("action", "act").rename_key_("action_log_prob", "old")
    results = []
    for cls in (peer.ClipPPOLoss, ClipPPOLoss):
        loss = cls(normal_actor(), make_critic())
        loss.set_keys(action="act", sample_log_prob="old")
        results.append((loss(data).to_dict(), set(loss.in_keys)))
    torch.testing.assert_close(results[1][0], results[0][0])
    assert results[0][1] == results[1][1]


@NAMES
def test_the_parameters_of_the_constructor_have_the_same_names_and_defaults(name: str) -> None:
    theirs = dict(inspect.signature(peer.PPOLoss).parameters) | dict(inspect.signature(getattr(peer, name)).parameters)
    theirs.pop("kwargs")
    ours = inspect.signature(OURS[name]).parameters
    assert set(ours) == set(theirs)
    for key, parameter in ours.items():
        assert (parameter.default, parameter.kind) == (theirs[key].default, theirs[key].kind)


def test_checkpoints_of_torchrl_load_strictly() -> None:
    theirs = peer.ClipPPOLoss(normal_actor(5), make_critic(5), clip_epsilon=0.07)
    ours = ClipPPOLoss(normal_actor(), make_critic())
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(rollout()).to_dict(), theirs(rollout()).to_dict())
    theirs(rollout(advantage=False))
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(rollout(advantage=False)).to_dict(), theirs(rollout(advantage=False)).to_dict())


# -- where we differ on purpose -----------------------------------------------------------------------------------


def test_differently_a_mapping_weighs_the_summed_features_of_a_head() -> None:
    """TorchRL takes the mean over a head's features with a mapping but their sum with one number."""
    data = rollout(composite_actor)
    keys = {("agent", "move_entropy"): 0.1, ("agent", "gear_entropy"): 0.1}
    with pytest.raises(RuntimeError):
        peer.PPOLoss(composite_actor(), make_critic(), entropy_coeff=keys)(data)
    ours = PPOLoss(composite_actor(), make_critic(), entropy_coeff=keys)(data)["loss_entropy"]
    theirs = peer.PPOLoss(composite_actor(), make_critic(), entropy_coeff=0.1)(data)["loss_entropy"]
    torch.testing.assert_close(ours, theirs)


def test_differently_a_stored_log_probability_with_a_trailing_one_is_no_outer_product() -> None:
    data = rollout(batch=(6,))
    expected = peer.PPOLoss(normal_actor(), make_critic())(data)["loss_objective"]
    data["action_log_prob"] = data["action_log_prob"].unsqueeze(-1)
    assert not torch.isclose(peer.PPOLoss(normal_actor(), make_critic())(data)["loss_objective"], expected)
    torch.testing.assert_close(PPOLoss(normal_actor(), make_critic())(data)["loss_objective"], expected)


def test_differently_aggregated_composite_log_probabilities_work() -> None:
    with set_composite_lp_aggregate(False):
        expected = PPOLoss(composite_actor(), make_critic())(rollout(composite_actor))
    with set_composite_lp_aggregate(True):
        data = rollout(composite_actor)
        with pytest.raises(AttributeError):
            peer.PPOLoss(composite_actor(), make_critic())(data)
        out = PPOLoss(composite_actor(), make_critic())(data)
    torch.testing.assert_close(tensors(out), tensors(expected))


def test_differently_an_entropy_in_closed_form_is_never_replaced_by_samples() -> None:
    """TorchRL replaces the whole batch by Monte Carlo if one entry is not finite, which waits for the device."""

    class Broken(Independent):
        def __init__(self, loc: Tensor, scale: Tensor) -> None:
            super().__init__(Normal(loc, scale), 1)

        def entropy(self) -> Tensor:
            return super().entropy().index_fill(0, torch.tensor([0]), torch.nan)

    data = rollout()
    assert peer.PPOLoss(normal_actor(0, Broken), make_critic())(data)["entropy"].isfinite()
    assert PPOLoss(normal_actor(0, Broken), make_critic())(data)["entropy"].isnan()
