"""Target updaters: the rules in plain arithmetic, TorchRL beside them, buffers, errors."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torchrl.objectives as torchrl_objectives
from tensordict import TensorDict, TensorDictBase
from torch import nn

import tritonrl.objectives as tritonrl_objectives
from tritonrl.objectives import HardUpdate, LossModule, SoftUpdate, TargetNetUpdater


def make_loss(base: Any = LossModule, target: bool = True, net: nn.Module | None = None, **kwargs: Any) -> Any:
    class Loss(base):  # type: ignore[misc]
        def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
            return TensorDict({"loss": torch.zeros(())})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        loss = Loss()
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)) if net is None else net
        loss.convert_to_functional(net, "net", create_target_params=target, **kwargs)
    return loss


def move(loss: Any, amount: float) -> None:
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(amount)


def target_of(loss: Any) -> Any:
    return loss._modules["target_net_params"]


def test_construction_copies_the_source_and_ends_the_warning() -> None:
    loss = make_loss()
    move(loss, 1.0)
    SoftUpdate(loss, tau=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target = loss.target_net_params
        loss(TensorDict())
    assert torch.equal(target["0", "weight"], loss.net_params["0", "weight"])


@pytest.mark.parametrize("kwargs", [{"eps": 0.75}, {"tau": 0.25}])
def test_a_soft_update_is_a_weighted_mean(kwargs: dict[str, float]) -> None:
    loss = make_loss().double()
    updater = SoftUpdate(loss, **kwargs)
    start = loss.net_params["0", "weight"].clone()
    move(loss, 1.0)
    updater.step()
    torch.testing.assert_close(target_of(loss)["0", "weight"], start + 0.25)
    updater.step()
    torch.testing.assert_close(target_of(loss)["0", "weight"], start + 0.25 + 0.25 * 0.75)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("SoftUpdate", {"tau": 0.3}),
        ("SoftUpdate", {"eps": 0.995}),
        ("HardUpdate", {"value_network_update_interval": 2}),
    ],
)
@pytest.mark.parametrize("expand_dim", [None, 3])
def test_every_step_is_torchrls(name: str, kwargs: dict[str, Any], expand_dim: int | None) -> None:
    def make(base: Any) -> Any:
        return make_loss(base, net=nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), expand_dim=expand_dim)

    reference, ours = make(torchrl_objectives.LossModule), make(LossModule)
    reference.load_state_dict(ours.state_dict())
    updaters = [
        getattr(torchrl_objectives, name)(reference, **kwargs),
        getattr(tritonrl_objectives, name)(ours, **kwargs),
    ]
    for step in range(8):
        for loss, updater in zip((reference, ours), updaters, strict=True):
            move(loss, 0.1 * step)
            updater.step()
        for key, value in reference.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value)
        assert updaters[0].state_dict() == updaters[1].state_dict()


def test_a_hard_update_copies_when_the_counter_reaches_the_interval() -> None:
    loss = make_loss()
    updater = HardUpdate(loss, value_network_update_interval=2)
    move(loss, 1.0)
    equal = []
    for _ in range(6):
        updater.step()
        equal.append(torch.equal(target_of(loss)["0", "weight"], loss.net_params["0", "weight"]))
        move(loss, 1.0)
    assert equal == [False, False, True, False, False, True]


def test_running_statistics_and_frozen_parameters_follow_their_source() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    net[0].requires_grad_(False)
    loss = make_loss(net=net)
    updater = SoftUpdate(loss, tau=0.01)
    net(torch.randn(16, 3))
    with torch.no_grad():
        net[0].weight.fill_(2.0)
    updater.step()
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(target_of(loss)["1", key], getattr(net[1], key))
    assert torch.equal(target_of(loss)["0", "weight"], net[0].weight)
    hard = HardUpdate(loss, value_network_update_interval=0)
    net(torch.randn(16, 3))
    hard.step()
    assert target_of(loss)["1", "num_batches_tracked"] == 2


def test_several_networks_are_updated_together_and_those_without_a_target_are_not() -> None:
    loss = make_loss()
    loss.convert_to_functional(nn.Linear(2, 2), "other", expand_dim=2, create_target_params=True)
    loss.convert_to_functional(nn.Linear(2, 2), "third")
    updater = SoftUpdate(loss, tau=1.0 - 0.5)
    assert set(updater._targets.keys()) == {"target_net_params", "target_other_params"}
    assert set(updater._sources.keys()) == {"net_params", "other_params"}
    before = loss._modules["target_other_params"]["weight"].clone()
    move(loss, 1.0)
    updater.step()
    torch.testing.assert_close(loss._modules["target_other_params"]["weight"], before + 0.5)


def test_an_updater_still_works_after_a_move_and_in_a_copy() -> None:
    loss = make_loss()
    updater = SoftUpdate(loss, tau=0.25)
    loss.double()
    start = loss.net_params["0", "weight"].clone()
    move(loss, 1.0)
    updater.step()
    torch.testing.assert_close(target_of(loss)["0", "weight"], start + 0.25)
    other_loss, other = copy.deepcopy((loss, updater))
    assert other.loss_module is other_loss
    other.step()
    torch.testing.assert_close(target_of(other_loss)["0", "weight"], start + 0.25 + 0.25 * 0.75)
    torch.testing.assert_close(target_of(loss)["0", "weight"], start + 0.25)


def test_a_lazy_network_gets_its_target_with_its_updater() -> None:
    loss = make_loss(net=nn.LazyLinear(2))
    with pytest.raises(RuntimeError):
        SoftUpdate(loss, tau=0.1)
    loss.net(torch.ones(1, 3))
    SoftUpdate(loss, tau=0.1)
    assert torch.equal(target_of(loss)["weight"], loss.net_params["weight"])


def test_the_state_of_an_updater_can_be_saved() -> None:
    loss = make_loss()
    updater = HardUpdate(loss, value_network_update_interval=3)
    updater.step()
    updater.step()
    state = pickle.loads(pickle.dumps(updater.state_dict()))
    assert state == {"initialized": True, "counter": 2}
    fresh = HardUpdate(make_loss(), value_network_update_interval=3)
    fresh.load_state_dict(state)
    assert fresh.counter == 2


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({}, RuntimeError),
        ({"eps": 0.9, "tau": 0.1}, ValueError),
        ({"eps": 1.5}, ValueError),
        ({"eps": -0.1}, ValueError),
        ({"tau": 1.5}, ValueError),
    ],
)
def test_wrong_shares_are_refused_as_in_torchrl(kwargs: dict[str, float], error: type[Exception]) -> None:
    for base, package in ((torchrl_objectives.LossModule, torchrl_objectives), (LossModule, tritonrl_objectives)):
        with pytest.raises(error):
            package.SoftUpdate(make_loss(base), **kwargs)


def test_a_share_that_looks_like_tau_gives_a_warning() -> None:
    with pytest.warns(UserWarning, match="tau"):
        SoftUpdate(make_loss(), eps=0.1)


def test_what_has_no_target_cannot_be_updated() -> None:
    with pytest.raises(ValueError, match="Linear"):
        SoftUpdate(nn.Linear(2, 2), tau=0.1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no target parameters"):
        SoftUpdate(make_loss(target=False), tau=0.1)
    orphan = make_loss()
    del orphan._modules["net_params"]
    with pytest.raises(RuntimeError, match="no source"):
        SoftUpdate(orphan, tau=0.1)
    frozen = make_loss(net=nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(RuntimeError, match="nothing to update"):
        SoftUpdate(frozen, tau=0.1)


def test_a_target_that_requires_a_gradient_is_refused() -> None:
    loss = make_loss(net=nn.Linear(2, 2))
    updater = SoftUpdate(loss, tau=0.1)
    target_of(loss)["weight"].requires_grad_(True)
    with pytest.raises(RuntimeError, match="requires a gradient"):
        updater.step()


def test_a_second_initialisation_copies_with_a_warning() -> None:
    loss = make_loss()
    updater = SoftUpdate(loss, tau=0.1)
    move(loss, 1.0)
    with pytest.warns(UserWarning, match="second time"):
        updater.init_()
    assert torch.equal(target_of(loss)["0", "weight"], loss.net_params["0", "weight"])


def test_a_step_before_initialisation_is_refused() -> None:
    updater = SoftUpdate(make_loss(), tau=0.1)
    updater.initialized = False
    with pytest.raises(RuntimeError, match="initialized"):
        updater.step()


def test_the_base_class_has_no_rule() -> None:
    with pytest.raises(NotImplementedError):
        TargetNetUpdater(make_loss()).step()
