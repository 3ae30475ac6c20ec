"""State dicts of losses: used into fresh, fresh into used, and what does not fit."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn

from tritonrl.objectives import LossModule, ValueEstimators
from tritonrl.objectives.value import GAE


class CriticLoss(LossModule):
    """A value loss whose estimator is made when it is first used."""

    @dataclass
    class _AcceptedKeys:
        advantage: Any = "advantage"
        value_target: Any = "value_target"
        value: Any = "state_value"
        reward: Any = "reward"
        done: Any = "done"
        terminated: Any = "terminated"

    default_value_estimator = ValueEstimators.GAE
    SUPPORTED_VALUE_ESTIMATORS = tuple(ValueEstimators)
    _schedulable_buffers = frozenset({"coeff"})

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        critic = TensorDictModule(layers, in_keys=["observation"], out_keys=["state_value"])
        self.convert_to_functional(critic.eval(), "critic_network", create_target_params=True, **kwargs)
        self.register_coeff_buffer("coeff", 0.5)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def _no_target_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL_WARNINGS", "False")


def used(**kwargs: Any) -> CriticLoss:
    loss = CriticLoss(**kwargs)
    loss.critic_network_params["module", "1", "running_mean"].fill_(3.0)
    assert loss.value_estimator is not None
    return loss


def assert_equal(a: LossModule, b: LossModule) -> None:
    theirs = b.state_dict()
    assert a.state_dict().keys() == theirs.keys()
    for key, value in a.state_dict().items():
        assert torch.equal(value, theirs[key]), key


def test_a_used_loss_loads_strictly_into_a_fresh_one() -> None:
    old, fresh = used(), CriticLoss()
    assert "_value_estimator.gamma" in old.state_dict()
    assert "_value_estimator.gamma" not in fresh.state_dict()
    assert str(fresh.load_state_dict(old.state_dict())) == "<All keys matched successfully>"
    assert_equal(fresh, old)


def test_a_fresh_loss_loads_strictly_into_a_used_one_which_keeps_its_estimator() -> None:
    old, fresh = used(), CriticLoss()
    old.make_value_estimator("gae", gamma=0.5)
    old.load_state_dict(fresh.state_dict())
    assert float(old.value_estimator.gamma) == 0.5
    for key, value in fresh.state_dict().items():
        assert torch.equal(old.state_dict()[key], value)


def test_the_kind_of_estimator_and_its_numbers_survive_a_file() -> None:
    old = CriticLoss()
    old.make_value_estimator("gae", gamma=0.6, lmbda=0.3)
    with torch.no_grad():
        old.value_estimator.gamma.fill_(0.25)
    file = io.BytesIO()
    torch.save(old.state_dict(), file)
    file.seek(0)
    fresh = CriticLoss()
    fresh.default_value_estimator = None  # type: ignore[misc]
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert isinstance(fresh.value_estimator, GAE)
    assert fresh.value_type is ValueEstimators.GAE
    assert float(fresh.value_estimator.gamma) == 0.25
    assert float(fresh.value_estimator.lmbda) == pytest.approx(0.3)


def test_a_plain_dict_loads_too() -> None:
    old, fresh = used(), CriticLoss()
    fresh.load_state_dict(dict(old.state_dict()))
    assert_equal(fresh, old)


def test_a_loss_inside_a_module_loads_as_well() -> None:
    old, fresh = nn.ModuleDict({"loss": used()}), nn.ModuleDict({"loss": CriticLoss()})
    fresh.load_state_dict(old.state_dict())
    assert_equal(fresh["loss"], old["loss"])


def test_loading_copies_into_the_users_own_parameters() -> None:
    old, fresh = used(), CriticLoss()
    weight = fresh.critic_network.module[0].weight
    fresh.load_state_dict(old.state_dict())
    assert fresh.critic_network_params["module", "0", "weight"] is weight
    assert torch.equal(weight, old.critic_network_params["module", "0", "weight"])


def test_an_ensemble_with_shared_layers_loads() -> None:
    def make() -> CriticLoss:
        loss = CriticLoss()
        shared = [loss.critic_network.module[0].weight]
        loss.convert_to_functional(loss.critic_network, "many", expand_dim=3, compare_against=shared)
        return loss

    old, fresh = make(), make()
    fresh.load_state_dict(old.state_dict())
    assert_equal(fresh, old)
    view = fresh.many_params["module", "0", "weight"]
    assert view.data_ptr() == fresh.critic_network_params["module", "0", "weight"].data_ptr()


def test_a_lazy_loss_that_has_run_loads_the_target_of_a_used_one() -> None:
    def make() -> LossModule:
        loss = LossModule()
        loss.convert_to_functional(nn.LazyLinear(2), "net", create_target_params=True)
        loss.net(torch.ones(1, 3))
        return loss

    old, fresh = make(), make()
    old.target_net_params["weight"].fill_(4.0)
    fresh.load_state_dict(old.state_dict())
    assert torch.equal(fresh.target_net_params["weight"], torch.full((2, 3), 4.0))


@pytest.mark.parametrize("strict", [True, False])
def test_missing_and_unknown_entries_are_reported(strict: bool) -> None:
    fresh = CriticLoss()
    state = dict(fresh.state_dict())
    removed = "critic_network_params.module.0.weight"
    del state[removed]
    state["critic_network_params.module.0.nonsense"] = torch.ones(1)
    state["nonsense"] = torch.ones(1)
    if strict:
        with pytest.raises(RuntimeError, match=r"(?s)Missing key.*module\.0\.weight.*Unexpected key.*nonsense"):
            fresh.load_state_dict(state)
    else:
        report = fresh.load_state_dict(state, strict=False)
        assert report.missing_keys == [removed]
        assert sorted(report.unexpected_keys) == ["critic_network_params.module.0.nonsense", "nonsense"]
    assert "critic_network_params.module.0.nonsense" not in fresh.state_dict()


def test_a_whole_missing_network_is_reported_once() -> None:
    fresh = CriticLoss()
    state = {key: value for key, value in fresh.state_dict().items() if not key.startswith("target_")}
    report = fresh.load_state_dict(state, strict=False)
    expected = [key for key in fresh.state_dict() if key.startswith("target_")]
    assert report.missing_keys == expected


def test_another_shape_is_reported_as_by_torch() -> None:
    fresh = CriticLoss()
    state = dict(fresh.state_dict())
    state["critic_network_params.module.0.weight"] = torch.ones(5, 3)
    with pytest.raises(RuntimeError, match=r"size mismatch for critic_network_params\.module\.0\.weight"):
        fresh.load_state_dict(state)
    assert fresh.critic_network_params["module", "0", "weight"].shape == (4, 3)


def test_the_estimator_of_another_kind_is_reported() -> None:
    old, fresh = used(), CriticLoss()
    state = dict(old.state_dict())
    del state["_value_estimator.lmbda"]
    with pytest.raises(RuntimeError, match="lmbda"):
        fresh.load_state_dict(state)


def test_a_scheduled_coefficient_is_saved() -> None:
    old, fresh = CriticLoss(), CriticLoss()
    old.coeff = 0.125
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.load_state_dict(old.state_dict())
    assert fresh.coeff == 0.125
