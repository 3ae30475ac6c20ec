"""What DDPG, TD3 and REDQ have in common: keys, masks, priorities, estimators, errors, copies and torch.compile."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchrl.objectives as peer
from tensordict import TensorDict

from tritonrl.objectives import SoftUpdate, ValueEstimators
from tritonrl.objectives.ddpg import DDPGLoss
from tritonrl.objectives.redq import REDQLoss
from tritonrl.objectives.td3 import TD3Loss
from tritonrl.objectives.value import TD0Estimator, TDLambdaEstimator

from .off_policy_cases import (
    BATCH,
    backward,
    check_compile_once,
    check_parity,
    check_training_compiles,
    deterministic_actor,
    fresh_dynamo,
    make_qvalue,
    perturb_targets,
    run,
    tanh_normal_actor,
    transitions,
)

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["fresh_dynamo"]
compiles = pytest.mark.usefixtures("fresh_dynamo")


@dataclass
class Case:
    """A loss, its twin in TorchRL, the actor it takes and the arguments it needs."""

    ours: Any
    theirs: Any
    actor: Callable[..., Any]
    arguments: dict[str, Any]
    detaches: bool = False

    def build(self, cls: Any = None, seed: int = 0, key: str = "state_action_value", **kwargs: Any) -> Any:
        networks = self.actor(seed), make_qvalue(seed + 1, key)
        return (self.ours if cls is None else cls)(*networks, **{**self.arguments, **kwargs})

    def moved(self, **kwargs: Any) -> Any:
        """Ours, with targets that differ from their sources."""
        loss = self.build(**kwargs)
        perturb_targets(loss)
        return loss

    def check_parity(self, data: TensorDict, **kwargs: Any) -> Any:
        build = kwargs.pop("build", self.build)
        return check_parity(build, self.ours, self.theirs, data, **kwargs)


CASES = {
    "ddpg": Case(DDPGLoss, peer.DDPGLoss, deterministic_actor, {}, detaches=True),
    "td3": Case(TD3Loss, peer.TD3Loss, deterministic_actor, {"bounds": (-0.6, 0.6)}),
    "redq": Case(REDQLoss, peer.REDQLoss, tanh_normal_actor, {"num_qvalue_nets": 4, "target_entropy": -3.0}),
}
WITH_ENSEMBLE = ["td3", "redq"]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(params=WITH_ENSEMBLE)
def ensemble_case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


# -- names --------------------------------------------------------------------------------------------------------


def test_the_constructor_takes_what_torchrls_takes(case: Case) -> None:
    ours, theirs = (inspect.signature(cls.__init__).parameters.values() for cls in (case.ours, case.theirs))
    assert [(p.name, p.default, p.kind) for p in ours] == [(p.name, p.default, p.kind) for p in theirs]
    assert case.ours.default_value_estimator.name == case.theirs.default_value_estimator.name


def test_states_have_the_names_of_torchrls_before_and_after_use(case: Case) -> None:
    loss, twin = case.build(), case.build(case.theirs)
    loss.load_state_dict(twin.state_dict())
    twin(transitions())
    loss(transitions())
    assert set(loss.state_dict()) == set(twin.state_dict())
    loss.load_state_dict(twin.state_dict())


def test_renamed_entries_give_the_numbers_of_torchrl(case: Case) -> None:
    data = transitions()
    renamed = {"reward": ("agent", "r"), "done": "d", "terminated": ("agent", "z")}
    for old, new in renamed.items():
        data["next"].rename_key_(old, new)
    keys = {**renamed, "priority": "prio", "state_action_value": "q"}
    ours, _ = case.check_parity(
        data, build=lambda cls: case.build(cls, key="q"), prepare=lambda loss: loss.set_keys(**keys)
    )
    assert ("next", "agent", "r") in ours.in_keys


def test_dispatch_takes_the_entries_as_keywords(case: Case) -> None:
    data, results = transitions(), []
    keywords = {"_".join(key) if isinstance(key, tuple) else key: value for key, value in data.items(True, True)}
    losses = [case.build(), case.build(case.theirs)]
    losses[0].load_state_dict(losses[1].state_dict())
    for loss in losses:
        torch.manual_seed(0)
        results.append([value.detach() for value in loss(**keywords)])
    assert len(results[0]) == len(losses[0].out_keys)
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


# -- masks --------------------------------------------------------------------------------------------------------


def test_rubbish_behind_the_mask_reaches_neither_loss_nor_metric_nor_gradient(case: Case) -> None:
    data = transitions(mask=True)
    invalid = ~data["shifted_valid"]
    spoilt = data.clone()
    for key in ("observation", "action", ("next", "observation"), ("next", "reward")):
        spoilt[key][invalid] = float("nan")
    other = data.clone()
    for key in ("observation", ("next", "observation"), ("next", "reward")):
        other[key][invalid] = 3.0
    results = []
    for given in (data, spoilt, other):
        loss = case.moved()
        out, _, _ = run(loss, given)
        scalars = {key: value.detach() for key, value in out.items() if value.ndim == 0}
        results.append((scalars, backward(loss, out)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_a_mean_over_valid_steps_is_that_of_the_elements(case: Case) -> None:
    data = transitions(mask=True)
    valid = data["shifted_valid"]
    elements, _, _ = run(case.moved(reduction="none"), data)
    for reduction in ("mean", "sum"):
        out, _, _ = run(case.moved(reduction=reduction), data)
        for key, value in [(key, value) for key, value in out.items() if key.startswith("loss")]:
            kept = elements[key][..., valid]
            torch.testing.assert_close(value, kept.mean() if reduction == "mean" else kept.sum())
            assert (elements[key][..., ~valid] == 0).all()


# -- targets ------------------------------------------------------------------------------------------------------


def test_what_is_behind_a_terminated_step_is_not_looked_at(case: Case) -> None:
    data = transitions()
    terminated = data["next", "terminated"].squeeze(-1)
    data["next", "observation"][terminated] = float("inf")
    loss = case.moved()
    out, _, _ = run(loss, data)
    torch.testing.assert_close(out["target_value"][terminated], data["next", "reward"].squeeze(-1)[terminated])
    assert out["target_value"].isfinite().all()
    for grads in backward(loss, out).values():
        assert all(grad.isfinite().all() for grad in grads.values())


def test_a_truncated_step_still_bootstraps(case: Case) -> None:
    data = transitions()
    expected, _, _ = run(case.moved(), data)
    data["next", "done"] = torch.ones_like(data["next", "done"])
    out, _, _ = run(case.moved(), data)
    torch.testing.assert_close(out["target_value"], expected["target_value"])


def test_a_nan_next_observation_stands_for_the_observation_itself(case: Case) -> None:
    data, repaired = transitions(), transitions()
    data["next", "observation"][2] = float("nan")
    repaired["next", "observation"][2] = repaired["observation"][2]
    outs = [run(case.moved(), given)[0]["target_value"] for given in (data, repaired)]
    torch.testing.assert_close(outs[0], outs[1])


@pytest.mark.parametrize("value_type", ["TD0", "TD1", "TDLambda"])
def test_every_estimator_gives_the_numbers_of_torchrl(case: Case, value_type: str) -> None:
    def prepare(loss: Any) -> None:
        types = ValueEstimators if isinstance(loss, case.ours) else peer.ValueEstimators
        loss.make_value_estimator(types[value_type], gamma=0.7)

    case.check_parity(transitions(batch=(3, 5)), prepare=prepare)


def test_an_estimator_may_be_an_alias_a_class_or_an_instance(case: Case) -> None:
    data, targets = transitions(batch=(2, 4)), []
    options: dict[str, Any] = {"gamma": 0.9, "lmbda": 0.8}
    for choose in (
        lambda loss: loss.make_value_estimator("TDLambda", **options),
        lambda loss: loss.make_value_estimator(ValueEstimators.TDLambda, **options),
        lambda loss: loss.make_value_estimator(TDLambdaEstimator, value_network=None, **options),
        lambda loss: loss.make_value_estimator(TDLambdaEstimator(value_network=None, **options)),
    ):
        loss = case.moved()
        choose(loss)
        targets.append(run(loss, data)[0]["target_value"])
    for target in targets[1:]:
        torch.testing.assert_close(target, targets[0])
    loss = case.build().make_value_estimator(TD0Estimator(gamma=0.0, value_network=None))
    torch.testing.assert_close(loss(data.clone())["target_value"], data["next", "reward"].squeeze(-1))


# -- gradients ----------------------------------------------------------------------------------------------------


def test_no_metric_carries_a_graph(case: Case) -> None:
    out = case.build()(transitions())
    with_graph = {key for key, value in out.items() if value.requires_grad}
    assert with_graph == {key for key in set(out.keys()) if key.startswith("loss")}


def test_an_encoder_outside_the_loss_gets_the_gradients_of_torchrl(case: Case) -> None:
    losses, grads = [case.build(), case.build(case.theirs)], []
    losses[0].load_state_dict(losses[1].state_dict())
    for loss in losses:
        data = transitions()
        observation = data["observation"].requires_grad_()
        torch.manual_seed(0)
        out = loss(data)
        term = sum(value for key, value in out.items() if key.startswith("loss"))
        grads.append(torch.autograd.grad(term, observation, allow_unused=True)[0])
    if case.detaches:
        assert grads == [None, None]
    else:
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


def test_without_gradients_the_numbers_are_the_same(case: Case) -> None:
    loss = case.moved()
    expected, _, _ = run(loss, transitions())
    with torch.no_grad():
        out, _, _ = run(loss, transitions())
    torch.testing.assert_close(dict(out.items()), {key: value.detach() for key, value in expected.items()})


# -- the priority -------------------------------------------------------------------------------------------------


def test_the_priority_is_written_over_an_old_one_in_place(case: Case) -> None:
    loss, data = case.moved(), transitions()
    _, written, _ = run(loss, data)
    data["td_error"] = torch.zeros(BATCH)
    buffer = data["td_error"]
    torch.manual_seed(11)
    loss(data.lock_())
    assert data["td_error"] is buffer
    assert list(written) == ["td_error"]
    torch.testing.assert_close(buffer, written["td_error"])


def test_a_priority_that_cannot_be_written_is_an_error(case: Case) -> None:
    with pytest.raises(RuntimeError, match="lock"):
        case.build()(transitions().lock_())
    data = transitions()
    data["td_error"] = torch.zeros(*BATCH, 1)
    with pytest.raises((ValueError, RuntimeError)):
        case.build()(data)


# -- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kwargs", [{"gamma": 0.9}, {"no_such_option": True}], ids=str)
def test_a_wrong_keyword_is_a_type_error_as_in_torchrl(case: Case, kwargs: dict[str, Any]) -> None:
    for cls in (case.ours, case.theirs):
        with pytest.raises(TypeError):
            case.build(cls, **kwargs)


def test_unknown_keys_reductions_distances_and_estimators_are_refused_as_in_torchrl(case: Case) -> None:
    for cls in (case.ours, case.theirs):
        with pytest.raises(ValueError, match="accepted"):
            case.build(cls).set_keys(advantages="other")
        for kwargs in ({"reduction": "median"}, {"loss_function": "l3"}):
            with pytest.raises(NotImplementedError):
                case.build(cls, **kwargs)(transitions())
        with pytest.raises(NotImplementedError):
            case.build(cls).make_value_estimator((ValueEstimators if cls is case.ours else peer.ValueEstimators).GAE)
    with pytest.raises(TypeError):
        case.build().make_value_estimator("td0", gama=0.9)


@pytest.mark.parametrize("key", ["action", "observation", ("next", "observation"), ("next", "reward")])
def test_a_missing_entry_is_a_key_error_that_names_it_and_leaves_the_data_alone(case: Case, key: Any) -> None:
    data = transitions().exclude(key)
    before = set(data.keys(True, True))
    with pytest.raises(KeyError, match=key if isinstance(key, str) else key[-1]):
        case.build()(data)
    assert set(data.keys(True, True)) == before


def test_a_critic_that_writes_another_entry_is_a_key_error_that_says_so(case: Case) -> None:
    with pytest.raises(KeyError, match=r"state_action_value.*set_keys"):
        case.build(key="q")(transitions())


def test_a_key_in_the_constructor_is_refused_as_in_torchrl(ensemble_case: Case) -> None:
    for cls in (ensemble_case.ours, ensemble_case.theirs):
        with pytest.raises(RuntimeError, match="set_keys"):
            ensemble_case.build(cls, priority_key="prio")


def test_a_critic_listed_twice_or_a_list_of_another_length_is_refused(ensemble_case: Case) -> None:
    critic, arguments = make_qvalue(), ensemble_case.arguments
    with pytest.raises(ValueError, match="are the same module"):
        ensemble_case.ours(ensemble_case.actor(), [critic, critic], **{**arguments, "num_qvalue_nets": 2})
    with pytest.raises(RuntimeError, match="3"):
        ensemble_case.ours(ensemble_case.actor(), [critic, make_qvalue(5)], **{**arguments, "num_qvalue_nets": 3})
    with pytest.raises(ValueError, match="at least 1"):
        ensemble_case.build(num_qvalue_nets=0)


# -- ensembles ----------------------------------------------------------------------------------------------------


def test_a_list_of_critics_gives_the_numbers_of_torchrl(ensemble_case: Case) -> None:
    def make(cls: Any) -> Any:
        critics = [make_qvalue(seed) for seed in (5, 6, 7)]
        return cls(ensemble_case.actor(), critics, **{**ensemble_case.arguments, "num_qvalue_nets": 3})

    ours, _ = ensemble_case.check_parity(transitions(), build=make)
    assert ours(transitions())["state_action_value_actor"].shape == (3, *BATCH)


def test_critics_one_after_the_other_give_the_numbers_of_all_at_once(ensemble_case: Case) -> None:
    results = []
    loop, at_once = (ensemble_case.moved(deactivate_vmap=flag) for flag in (True, False))
    loop.load_state_dict(at_once.state_dict())
    for loss in (loop, at_once):
        out, _, _ = run(loss, transitions())
        results.append(({key: value.detach() for key, value in out.items()}, backward(loss, out)))
    torch.testing.assert_close(results[0], results[1])
    with pytest.raises(ValueError, match="deactivate_vmap"):
        loop.set_vmap_randomness("same")


# -- copies and checkpoints ---------------------------------------------------------------------------------------


def test_a_used_loss_is_copied_pickled_and_loaded_strictly(case: Case) -> None:
    used = case.moved()
    expected, _, _ = run(used, transitions())
    fresh = case.build(seed=5)
    fresh.load_state_dict(used.state_dict())
    for copied in (fresh, copy.deepcopy(used), pickle.loads(pickle.dumps(used))):
        out, _, _ = run(copied, transitions())
        torch.testing.assert_close(
            {k: v.detach() for k, v in out.items()}, {k: v.detach() for k, v in expected.items()}
        )
        assert not {id(parameter) for parameter in copied.parameters()} & {id(p) for p in used.parameters()}


# -- torch.compile ------------------------------------------------------------------------------------------------


def full_data(**kwargs: Any) -> TensorDict:
    """Everything a transition may have, an old priority included, as replay buffers hand it out."""
    data = transitions(weights=True, mask=True, n_step=True, **kwargs)
    data["td_error"] = torch.zeros(data.shape)
    return data


@compiles
def test_one_graph_gives_the_eager_numbers_and_there_is_never_another(case: Case) -> None:
    loss = case.moved()

    def change() -> None:
        loss.value_estimator.gamma.fill_(0.5)
        if case.ours is TD3Loss:
            loss.policy_noise, loss.noise_clip = 0.4, 0.3

    check_compile_once(loss, full_data, change, sizes=case.ours is TD3Loss)


@compiles
def test_a_whole_training_step_compiles_into_one_graph(ensemble_case: Case) -> None:
    check_training_compiles(ensemble_case.build, lambda loss: SoftUpdate(loss, tau=0.1), transitions)
