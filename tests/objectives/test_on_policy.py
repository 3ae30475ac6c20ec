"""What A2C and REINFORCE owe to their common base: data left alone, masks, keys, errors, copies, checkpoints."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
from typing import Any

import pytest
import torch
import torchrl.objectives as peer
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor
from torch.distributions import Independent, Normal

from tritonrl import objectives
from tritonrl.objectives import A2CLoss, LossModule, ReinforceLoss, ValueEstimators
from tritonrl.objectives.on_policy import OnPolicyLoss
from tritonrl.objectives.value import GAE

from .policy_gradient_cases import build, present, tensors
from .ppo_cases import (
    BATCH,
    categorical_actor,
    composite_actor,
    gradients,
    make_critic,
    normal_actor,
    rollout,
    shared_trunk,
    team_networks,
    team_rollout,
)

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
BOTH = pytest.mark.parametrize("cls", [A2CLoss, ReinforceLoss])
ACTOR = {A2CLoss: "loss_objective", ReinforceLoss: "loss_actor"}
CRITIC = {A2CLoss: "loss_critic", ReinforceLoss: "loss_value"}


# -- the data -----------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("advantage", [True, False])
def test_nothing_is_written_into_the_callers_tensordict(cls: Any, advantage: bool) -> None:
    data = rollout(composite_actor, advantage=advantage)
    data["collector", "mask"] = torch.rand(BATCH) > 0.3
    before = {key: (id(value), value._version) for key, value in data.items(True, True)}
    cls(composite_actor(), make_critic())(data)
    assert {key: (id(value), value._version) for key, value in data.items(True, True)} == before


@BOTH
def test_every_call_computes_the_advantage_anew(cls: Any) -> None:
    actor, critic, data = normal_actor(), make_critic(), rollout(advantage=False)
    loss = cls(actor, critic)
    first = loss(data)[ACTOR[cls]]
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(0.3)
    second = loss(data)[ACTOR[cls]]
    assert (second - first).abs() > 1e-3
    torch.testing.assert_close(second, cls(actor, critic)(data)[ACTOR[cls]])


@BOTH
def test_the_missing_advantage_is_that_of_the_value_estimator(cls: Any) -> None:
    loss = build(cls)
    loss.make_value_estimator(ValueEstimators.GAE, gamma=0.9, lmbda=0.8)
    data = rollout(advantage=False)
    given = GAE(gamma=0.9, lmbda=0.8, value_network=make_critic())(data.clone())
    torch.testing.assert_close(loss(data).to_dict(), loss(given).to_dict())


class StoredNormal(Independent):
    """Its deterministic sample is the stored action: TorchRL's V-trace scores what it draws, ours what is stored."""

    stored: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(Normal(loc, scale), 1)

    @property
    def deterministic_sample(self) -> Tensor:
        return self.stored


def estimator_case(name: str) -> tuple[tuple[Any, Any], TensorDict, dict[str, Any]]:
    """Networks, data without an advantage, and keys, for a loss with this estimator."""
    if name == "MAGAE":
        networks = team_networks()
        keys = {"value": "state_value", "advantage": "advantage", "action": "action", "sample_log_prob": "log_prob"}
        keys = {role: ("agents", key) for role, key in keys.items()}
        return networks, team_rollout(networks[0]), keys
    if name == "VTrace":
        data = rollout(advantage=False)
        StoredNormal.stored = data["action"].clone()
        return (normal_actor(0, StoredNormal), make_critic()), data, {}
    return (normal_actor(), make_critic()), rollout(advantage=False), {}


@pytest.mark.parametrize("loss_name", ["PPOLoss", "ClipPPOLoss", "KLPENPPOLoss", "A2CLoss", "ReinforceLoss"])
@pytest.mark.parametrize(
    ("name", "hyperparams"),
    [
        ("TD0", {"gamma": 0.9}),
        ("TD1", {}),
        ("TDLambda", {"lmbda": 0.7}),
        ("GAE", {"gamma": 0.9, "lmbda": 0.8}),
        ("MAGAE", {"gamma": 0.9, "lmbda": 0.8}),
        ("VTrace", {"gamma": 0.9, "rho_thresh": 0.8, "c_thresh": 0.6}),
    ],
)
def test_every_value_estimator_gives_the_numbers_of_torchrl(
    loss_name: str, name: str, hyperparams: dict[str, float]
) -> None:
    outs, grads = [], []
    for module in (objectives, peer):
        networks, data, keys = estimator_case(name)
        # TorchRL's penalty is differentiated with the beta of the next call, ours with this call's: here they are one.
        fixed_beta = {"increment": 1, "decrement": 1} if loss_name == "KLPENPPOLoss" else {}
        loss = getattr(module, loss_name)(*networks, **fixed_beta)
        loss.set_keys(**keys)
        loss.make_value_estimator(module.ValueEstimators[name], **hyperparams)
        out = loss(data)
        sum(value for key, value in out.items() if key.startswith("loss_")).backward()
        outs.append(tensors(out))
        grads.append(present(gradients(*networks)))
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)
    assert grads[0] and all(gradient.abs().max() > 0 for gradient in grads[0])


@BOTH
@pytest.mark.parametrize("key", ["action", "value_target", "observation", "state_value"])
def test_a_missing_entry_is_a_key_error_that_names_it(cls: Any, key: str) -> None:
    with pytest.raises(KeyError, match=key):
        build(cls, clip_value=0.1)(rollout().exclude(key))


@BOTH
def test_the_stored_log_probability_is_not_needed(cls: Any) -> None:
    data = rollout()
    torch.testing.assert_close(build(cls)(data.exclude("action_log_prob")).to_dict(), build(cls)(data).to_dict())


@BOTH
@pytest.mark.parametrize("batch", [(6,), BATCH, (1, 1)])
@pytest.mark.parametrize("key", ["advantage", "value_target", "state_value"])
def test_a_flat_entry_is_an_error_and_no_outer_product(cls: Any, batch: tuple[int, ...], key: str) -> None:
    data = rollout(batch=batch)
    data[key] = data[key].squeeze(-1)
    if key == "advantage" and batch == (1, 1):
        torch.testing.assert_close(build(cls)(data).to_dict(), build(cls)(rollout(batch=batch)).to_dict())
        return
    with pytest.raises((ValueError, RuntimeError), match=r"has shape \([1567, ]*\).* has shape \([1567, ]* 1\)"):
        build(cls, clip_value=0.1)(data)


@BOTH
def test_a_stored_action_that_requires_grad_is_refused(cls: Any) -> None:
    data = rollout()
    data["action"].requires_grad_()
    with pytest.raises(RuntimeError, match=r"action.*requires grad"):
        build(cls)(data)


# -- gradients ----------------------------------------------------------------------------------------------------


@BOTH
def test_each_term_trains_its_own_network_only(cls: Any) -> None:
    for term, trains_actor in ((ACTOR[cls], True), (CRITIC[cls], False)):
        actor, critic = normal_actor(), make_critic()
        cls(actor, critic)(rollout(advantage=False))[term].backward()
        assert all((gradient is not None) is trains_actor for gradient in gradients(actor))
        assert all((gradient is None) is trains_actor for gradient in gradients(critic))


@BOTH
@pytest.mark.parametrize("functional", [True, False])
@pytest.mark.parametrize("separate_losses", [True, False])
def test_separate_losses_keeps_the_critic_away_from_a_shared_trunk(
    cls: Any, functional: bool, separate_losses: bool
) -> None:
    grads = []
    for module in (cls, getattr(peer, cls.__name__)):
        trunk, actor, critic = shared_trunk()
        loss = module(actor, critic, separate_losses=separate_losses, functional=functional or module is not cls)
        out = loss(rollout())
        out[CRITIC[cls]].backward(retain_graph=True)
        assert all((gradient is None) is separate_losses for gradient in gradients(trunk))
        out[ACTOR[cls]].backward()
        grads.append(gradients(actor, critic))
    torch.testing.assert_close(grads[0], grads[1])


# -- masks and reductions -----------------------------------------------------------------------------------------


def masked_case() -> tuple[TensorDict, Tensor]:
    return rollout(batch=(11,)), torch.tensor([1, 1, 0, 1, 0, 1, 1, 0, 1, 1, 0], dtype=torch.bool)


@BOTH
@pytest.mark.parametrize("where", [("collector", "mask"), "shifted_valid"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_masked_steps_count_in_no_loss_and_in_no_metric(cls: Any, where: Any, reduction: str) -> None:
    data, mask = masked_case()
    loss = build(cls, clip_value=0.1, reduction=reduction)
    out, compact = loss(data.clone().set(where, mask)), loss(data[mask])
    assert "value_clip_fraction" in out
    assert "entropy" in out or cls is ReinforceLoss
    torch.testing.assert_close(out.to_dict(), compact.to_dict())


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rubbish_behind_the_mask_reaches_neither_loss_nor_metric_nor_gradient(cls: Any, bad: float) -> None:
    data, mask = masked_case()
    dirty = data.apply(
        lambda x: x.masked_fill(~mask.view(-1, *[1] * (x.ndim - 1)), bad) if x.is_floating_point() else x
    )
    results = []
    for candidate in (data, dirty):
        actor, critic = normal_actor(), make_critic()
        loss = cls(actor, critic, clip_value=0.1)
        out = loss(candidate.clone().set("shifted_valid", mask))
        loss.total(out).backward()
        results.append((out.to_dict(), gradients(actor, critic)))
    torch.testing.assert_close(results[1], results[0])


@BOTH
def test_no_reduction_gives_one_number_for_each_step(cls: Any) -> None:
    none, mean = build(cls, reduction="none")(rollout()), build(cls)(rollout())
    for key in (ACTOR[cls], CRITIC[cls]):
        assert none[key].shape == BATCH
        torch.testing.assert_close(none[key].mean(), mean[key])


@BOTH
def test_an_unknown_reduction_or_distance_is_named(cls: Any) -> None:
    with pytest.raises(NotImplementedError, match="median"):
        build(cls, reduction="median")(rollout())
    with pytest.raises(NotImplementedError, match="huber"):
        build(cls, loss_critic_type="huber")(rollout())


# -- keys and dispatch --------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("advantage", [True, False])
def test_every_entry_can_be_renamed(cls: Any, advantage: bool) -> None:
    critic = make_critic()
    critic.out_keys = ["vf"]
    data = rollout(advantage=advantage)
    expected = build(cls, clip_value=0.1)(data)
    renamed = {"advantage": "adv", "value_target": ("targets", "value"), "state_value": "vf"} if advantage else {}
    renamed["action"] = ("agents", "act")
    renamed |= {("next", "reward"): ("next", "r"), ("next", "done"): ("next", "d")}
    renamed["next", "terminated"] = ("next", "t")
    for old, new in renamed.items():
        data.rename_key_(old, new)
    loss = cls(normal_actor(), critic, clip_value=0.1)
    loss.set_keys(advantage="adv", value_target=("targets", "value"), value="vf", action=("agents", "act"))
    loss.set_keys(reward="r", done="d", terminated="t")
    torch.testing.assert_close(loss(data).to_dict(), expected.to_dict())
    assert {("agents", "act"), ("next", "r"), ("next", "d"), ("next", "t")} <= set(loss.in_keys)
    with pytest.raises(ValueError, match="advantages"):
        loss.set_keys(advantages="adv")


@BOTH
def test_dispatch_by_keywords_returns_the_out_keys_in_order(cls: Any) -> None:
    loss, data = build(cls, clip_value=0.1), rollout(advantage=False)
    keywords = {
        key if isinstance(key, str) else "_".join(key): value
        for key, value in data.items(True, True)
        if key in set(loss.in_keys)
    }
    result, out = loss(**keywords), loss(data)
    assert len(result) == len(loss.out_keys)
    for key, value in zip(loss.out_keys, result, strict=True):
        torch.testing.assert_close(value, out[key])


# -- construction -------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"gamma": 0.9}, TypeError, "make_value_estimator"),
        ({"advantage_key": "adv"}, RuntimeError, "set_keys"),
        ({"value_target_key": "x"}, RuntimeError, "set_keys"),
        ({"normalise_advantage": True}, TypeError, "normalise_advantage"),
        ({"actor": normal_actor()}, TypeError, "actor_network and actor"),
        ({"critic": make_critic()}, TypeError, "critic_network and critic"),
    ],
)
def test_a_wrong_keyword_is_refused(cls: Any, kwargs: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build(cls, **kwargs)


@BOTH
def test_a_network_that_is_missing_is_a_type_error(cls: Any) -> None:
    with pytest.raises(TypeError, match="actor_network"):
        cls(critic_network=make_critic())
    with pytest.raises(TypeError, match="critic_network"):
        cls(normal_actor())
    with pytest.raises(TypeError, match="get_dist"):
        cls(make_critic(), make_critic())


@BOTH
def test_the_short_names_of_the_networks_work(cls: Any) -> None:
    loss = cls(actor=normal_actor(), critic=make_critic())
    torch.testing.assert_close(loss(rollout()).to_dict(), build(cls)(rollout()).to_dict())


@BOTH
def test_every_keyword_is_documented(cls: Any) -> None:
    for name, parameter in inspect.signature(cls).parameters.items():
        assert parameter.kind is not inspect.Parameter.VAR_KEYWORD
        assert name in (cls.__doc__ or "")


class LateKeys(OnPolicyLoss):
    """Needs, for its in_keys, what only its own constructor sets."""

    collected = 0

    def __init__(self) -> None:
        super().__init__()
        self._register_networks(normal_actor(), make_critic(), functional=True)
        self.extra = "goal"

    def _set_in_keys(self) -> None:
        self.collected += 1
        super()._set_in_keys()
        self._in_keys.append(self.extra)


class LaterKeys(LateKeys):
    """Leaves nothing to do for its parent's constructor but the work."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = "map"


class Inherits(LaterKeys):
    """Has no constructor."""


@pytest.mark.parametrize(("cls", "key"), [(LateKeys, "goal"), (LaterKeys, "map"), (Inherits, "map")])
def test_in_keys_are_collected_once_when_the_outermost_constructor_is_through(cls: Any, key: str) -> None:
    loss: LossModule = cls()
    assert loss.collected == 1
    assert loss.in_keys[-1] == key
    assert copy.deepcopy(loss).in_keys == loss.in_keys
    assert loss.collected == 1


# -- copies and checkpoints ---------------------------------------------------------------------------------------


def used_loss(cls: Any, **kwargs: Any) -> Any:
    loss = cls(categorical_actor(), make_critic(), clip_value=0.1, **kwargs)
    loss(rollout(categorical_actor, advantage=False))
    loss.clip_value = 0.3
    return loss


@BOTH
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch"])
def test_a_used_loss_can_be_copied(cls: Any, how: str) -> None:
    loss = used_loss(cls, **({"delay_value": True} if cls is ReinforceLoss else {"entropy_coeff": 0.02}))
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
    expected = loss(data)
    torch.testing.assert_close(twin(data).to_dict(), expected.to_dict())
    twin.total(twin(data)).backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert not torch.isclose(twin(data)[ACTOR[cls]], expected[ACTOR[cls]])
    torch.testing.assert_close(loss(data).to_dict(), expected.to_dict())


@BOTH
def test_a_used_loss_loads_strictly_into_a_fresh_one_and_back(cls: Any) -> None:
    loss = used_loss(cls)
    loss.make_value_estimator(ValueEstimators.GAE, gamma=0.5, lmbda=0.3)
    fresh = cls(categorical_actor(9), make_critic(9), clip_value=0.1)
    fresh.load_state_dict(loss.state_dict())
    data = rollout(categorical_actor, advantage=False)
    torch.testing.assert_close(fresh(data).to_dict(), loss(data).to_dict())
    loss.load_state_dict(cls(categorical_actor(), make_critic(), clip_value=0.1).state_dict())
    theirs = getattr(peer, cls.__name__)
    with pytest.raises(RuntimeError, match="_value_estimator"):
        theirs(categorical_actor(9), make_critic(9), clip_value=0.1).load_state_dict(used_loss(theirs).state_dict())


@BOTH
def test_checkpoints_of_torchrl_load_strictly(cls: Any) -> None:
    theirs = build(getattr(peer, cls.__name__), clip_value=torch.tensor([0.3]))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1)
    ours = build(cls, clip_value=0.1)
    for advantage in (True, False):
        data = rollout(advantage=advantage)
        expected = theirs(data.clone())
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(data).to_dict(), expected.to_dict())


@BOTH
def test_a_critic_with_an_input_of_its_own_works(cls: Any) -> None:
    critic = TensorDictModule(torch.nn.Linear(2, 1), in_keys=["state"], out_keys=["state_value"])
    data = rollout(advantage=False)
    data["state"], data["next", "state"] = torch.randn(*BATCH, 2), torch.randn(*BATCH, 2)
    ours, theirs = cls(normal_actor(), critic), getattr(peer, cls.__name__)(normal_actor(), critic)
    torch.testing.assert_close(ours(data).to_dict(), theirs(data.clone()).to_dict())
    assert set(ours.in_keys) == set(theirs.in_keys)
