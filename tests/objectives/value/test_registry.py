"""The registry of value estimators: names, defaults, and how a loss gets one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tritonrl.objectives.value import GAE, TD0Estimator
from tritonrl.objectives.value.registry import (
    ValueEstimators,
    build_value_estimator,
    default_value_kwargs,
    dispatch_value_estimator,
    get_value_estimator_entry,
    register_value_estimator,
)


def test_members_are_those_of_torchrl() -> None:
    from torchrl.objectives.utils import ValueEstimators as Theirs

    assert {member.name: member.value for member in ValueEstimators} == {member.name: member.value for member in Theirs}


@pytest.mark.parametrize("name", ["TD0", "TD1", "TDLambda", "GAE", "MAGAE", "VTrace"])
def test_defaults_are_those_of_torchrl(name: str) -> None:
    from torchrl.objectives.utils import ValueEstimators as Theirs
    from torchrl.objectives.utils import default_value_kwargs as their_defaults

    assert default_value_kwargs(ValueEstimators[name]) == their_defaults(Theirs[name])
    for alias in (name, name.lower(), name.upper()):
        assert default_value_kwargs(alias) == default_value_kwargs(ValueEstimators[name])


def test_defaults_are_a_dict_of_ones_own() -> None:
    default_value_kwargs("gae")["gamma"] = 0.0
    assert default_value_kwargs("gae")["gamma"] == 0.99


@pytest.mark.parametrize(("value_type", "error"), [("sarsa", KeyError), (None, TypeError), (GAE, TypeError)])
def test_what_is_no_estimator_is_refused(value_type: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        default_value_kwargs(value_type)


def test_a_member_without_a_class_is_not_implemented(monkeypatch: pytest.MonkeyPatch) -> None:
    import tritonrl.objectives.value.registry as registry

    monkeypatch.setattr(registry, "_ENTRIES", {})
    with pytest.raises(NotImplementedError, match="VTrace"):
        default_value_kwargs("vtrace")


def test_a_class_can_be_registered_in_the_place_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    import tritonrl.objectives.value.registry as registry

    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    @register_value_estimator("gae", default_kwargs={"gamma": 0.5, "lmbda": 0.5})
    class Mine(GAE):
        pass

    assert get_value_estimator_entry(ValueEstimators.GAE).cls is Mine
    assert isinstance(build_value_estimator(nn.Module(), "GAE"), Mine)


def test_hyperparameters_win_over_the_losss_gamma_and_that_over_the_defaults() -> None:
    class Loss(nn.Module):
        gamma = torch.tensor(0.7)

    def gamma(loss: nn.Module, **hyperparams: float) -> float:
        dispatch_value_estimator(loss, "gae", supported=[ValueEstimators.GAE], **hyperparams)
        return round(loss._value_estimator.gamma.item(), 6)

    assert gamma(nn.Module()) == 0.99
    assert gamma(Loss()) == 0.7
    assert gamma(Loss(), gamma=0.5) == 0.5


def test_dispatch_builds_names_keys_and_stores() -> None:
    loss = nn.Module()
    result = dispatch_value_estimator(
        loss, "TD0", supported=("td0", ValueEstimators.TD1), tensor_keys={"reward": "r"}, gamma=0.4
    )
    assert result is None
    assert loss.value_type is ValueEstimators.TD0
    assert isinstance(loss._value_estimator, TD0Estimator)
    assert loss._value_estimator.differentiable
    assert loss._value_estimator.reward_key == "r"
    assert loss._value_estimator.gamma.item() == 0.4


@pytest.mark.parametrize(
    ("value_type", "options", "error", "message"),
    [
        ("gae", {}, NotImplementedError, "Module does not support GAE; it supports .*TD0"),
        ("td0", {"lmbda": 0.4}, TypeError, "lmbda"),
        ("td0", {"tensor_keys": {"nothing": "r"}}, KeyError, "nothing"),
        ("sarsa", {}, KeyError, "sarsa"),
    ],
)
def test_after_an_error_the_loss_is_as_it_was(
    value_type: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    loss = nn.Module()
    with pytest.raises(error, match=message):
        dispatch_value_estimator(loss, value_type, supported=["td0"], **options)
    assert not hasattr(loss, "value_type")
    assert not hasattr(loss, "_value_estimator")
