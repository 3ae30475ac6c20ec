"""Networks of a loss: extraction, targets, ensembles, ties, stateful copies."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torchrl.objectives as torchrl_objectives
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictParams
from torch import nn

from tritonrl.objectives import LossModule, add_random_module
from tritonrl.objectives import random_modules as random_modules_file
from tritonrl.objectives.cached_values import cache_values
from tritonrl.objectives.ensemble import EnsembleCall, vmap_module
from tritonrl.objectives.functional_params import initialize_member, swap_params


class Loss(LossModule):
    """Whatever networks a test wants."""

    def __init__(self, module: Any = None, name: str = "net", **kwargs: Any) -> None:
        super().__init__()
        if module is not None:
            self.convert_to_functional(module, name, **kwargs)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        with swap_params(self.net_params, self.net):
            return TensorDict({"loss": self.net(tensordict["x"]).square().mean()})

    @property
    @cache_values
    def net_params_detached(self) -> TensorDictBase:
        return self.net_params.detach()


def make_net(inputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, 1))


def make_shared() -> tuple[nn.Module, nn.Module, nn.Module]:
    trunk = nn.Linear(3, 4)
    return trunk, nn.Sequential(trunk, nn.Linear(4, 2)), nn.Sequential(trunk, nn.Linear(4, 1))


# -- extraction -------------------------------------------------------------------------------------------------------


def test_the_parameters_of_a_loss_are_the_users_own_objects() -> None:
    net = make_net()
    loss = Loss(net)
    assert loss.net_params["0", "weight"] is net[0].weight
    assert all(a is b for a, b in zip(loss.parameters(), net.parameters(), strict=True))
    assert loss.net is net
    assert [name for name, _ in loss.named_children()] == ["net_params"]


def test_buffers_share_the_users_storage() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    loss = Loss(net)
    net(torch.randn(5, 3))
    torch.testing.assert_close(loss.net_params["1", "running_mean"], net[1].running_mean)
    assert "net_params.1.running_mean" in dict(loss.named_buffers())


def test_a_layer_that_two_networks_share_is_listed_once() -> None:
    trunk, actor, critic = make_shared()
    loss = Loss(actor, "actor")
    loss.convert_to_functional(critic, "critic")
    assert sum(parameter is trunk.weight for parameter in loss.parameters()) == 1
    assert loss.critic_params["0", "weight"] is loss.actor_params["0", "weight"]


def test_compare_against_detaches_what_the_other_network_trains() -> None:
    trunk, actor, critic = make_shared()
    loss = Loss(actor, "actor")
    loss.convert_to_functional(critic, "critic", compare_against=list(actor.parameters()))
    shared = loss.critic_params["0", "weight"]
    assert not shared.requires_grad
    assert shared.data_ptr() == trunk.weight.data_ptr()
    with swap_params(loss.critic_params, loss.critic):
        loss.critic(torch.ones(2, 3)).sum().backward()
    assert trunk.weight.grad is None
    assert critic[1].weight.grad is not None


@pytest.mark.parametrize("how", ["double", "deepcopy", "pickle", "load_state_dict", "share_memory"])
def test_a_detached_layer_keeps_following_the_network_that_trains_it(how: str) -> None:
    _, actor, critic = make_shared()
    loss = Loss(actor, "actor")
    loss.convert_to_functional(critic, "critic", compare_against=list(actor.parameters()))
    loss.convert_to_functional(critic, "critics", expand_dim=2, compare_against=list(actor.parameters()))
    if how == "double":
        loss.double()
    elif how == "deepcopy":
        loss = copy.deepcopy(loss)
    elif how == "pickle":
        loss = pickle.loads(pickle.dumps(loss))
    elif how == "load_state_dict":
        loss.load_state_dict({key: torch.ones_like(value) for key, value in loss.state_dict().items()})
    else:
        loss.share_memory()
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.copy_(torch.randn_like(parameter))
    weight = loss.actor_params["0", "weight"]
    torch.testing.assert_close(loss.critic_params["0", "weight"], weight.detach())
    torch.testing.assert_close(loss.critics_params["0", "weight"], weight.detach().expand(2, 4, 3))
    torch.testing.assert_close(loss.state_dict()["critics_params.0.weight"][1], weight.detach())


def test_a_dot_in_the_name_of_a_parameter_is_refused() -> None:
    class Dotted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._parameters["a.b"] = nn.Parameter(torch.ones(1))

    with pytest.raises(KeyError, match=r"a\.b"):
        Loss(Dotted())


def test_a_swap_of_detached_parameters_builds_no_graph() -> None:
    loss = Loss(make_net(), create_target_params=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = loss.target_net_params
    for params in (target, loss.net_params.data):
        with swap_params(params, loss.net):
            assert not loss.net(torch.ones(2, 3)).requires_grad
    assert all(parameter.requires_grad for parameter in loss.net.parameters())


# -- targets ----------------------------------------------------------------------------------------------------------


def test_a_target_is_a_clone_held_as_buffers() -> None:
    loss = Loss(make_net(), create_target_params=True)
    names = [name for name, _ in loss.named_buffers()]
    assert names == [f"target_net_params.{name}" for name, _ in loss.net.named_parameters()]
    target = loss._modules["target_net_params"]
    assert torch.equal(target["0", "weight"], loss.net[0].weight)
    assert target["0", "weight"].data_ptr() != loss.net[0].weight.data_ptr()
    assert not any(leaf.requires_grad for leaf in target.values(True, True))
    assert not any(name.startswith("target") for name, _ in loss.named_parameters())


def test_without_a_target_the_attribute_reads_the_detached_source() -> None:
    loss = Loss(make_net())
    target = loss.target_net_params
    assert "target_net_params" not in dict(loss.named_children())
    assert target["0", "weight"].data_ptr() == loss.net[0].weight.data_ptr()
    assert not target["0", "weight"].requires_grad


def test_targets_that_nobody_updates_give_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Loss(make_net(), create_target_params=True)
    data = TensorDict({"x": torch.randn(5, 3)}, [5])
    with pytest.warns(UserWarning, match="target network updater"):
        loss.target_net_params  # noqa: B018
    with pytest.warns(UserWarning, match="target network updater") as caught:
        loss(data)
    assert caught[0].filename == __file__ or "module.py" in caught[0].filename
    monkeypatch.setenv("RL_WARNINGS", "False")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(data)
        loss.target_net_params  # noqa: B018
        monkeypatch.delenv("RL_WARNINGS")
        Loss(make_net())(data)


def test_a_layer_tied_inside_a_network_is_tied_in_its_target_and_in_each_member() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    loss = Loss(net, create_target_params=True)
    loss.convert_to_functional(net, "many", expand_dim=3)
    target = loss._modules["target_net_params"]
    assert target["0", "weight"] is target["1", "weight"]
    assert loss.many_params["0", "weight"] is loss.many_params["1", "weight"]


def test_the_target_of_a_lazy_network_is_there_once_the_network_has_run() -> None:
    loss = Loss(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1)), create_target_params=True)
    with pytest.raises(RuntimeError, match="lazy"):
        loss.target_net_params  # noqa: B018
    loss(TensorDict({"x": torch.randn(5, 3)}, [5]))
    with pytest.warns(UserWarning, match="target network updater"):
        target = loss.target_net_params
    torch.testing.assert_close(target["0", "weight"], loss.net[0].weight.detach())
    assert loss.net_params["0", "weight"] is loss.net[0].weight
    assert "target_net_params.0.weight" in loss.state_dict()


# -- ensembles --------------------------------------------------------------------------------------------------------


def test_each_member_starts_from_the_layers_own_initialiser() -> None:
    loss = Loss(nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.Linear(64, 1)), expand_dim=50)
    weight = loss.net_params["0", "weight"]
    assert loss.net_params.batch_size == torch.Size([50])
    assert weight.shape == (50, 64, 32)
    bound = 32**-0.5
    assert weight.abs().amax((1, 2)).min() > 0.98 * bound
    assert weight.abs().max() <= bound
    assert not torch.equal(weight[0], weight[1])
    assert not any(torch.equal(member, loss.net[0].weight) for member in weight)
    # A bias with a single entry is no constant that somebody chose.
    assert loss.net_params["2", "bias"].unique().numel() == 50
    assert torch.equal(loss.net_params["1", "weight"], torch.ones(50, 64))


def test_what_the_user_fixed_stays_in_each_member() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.free = nn.Parameter(torch.tensor([1.0, 3.0, 2.0]))
            self.pretrained = nn.Linear(2, 2)
            self.zero = nn.Linear(3, 3)
            self.register_buffer("count", torch.arange(2))

    net = Odd()
    net.pretrained.requires_grad_(False)
    nn.init.zeros_(net.zero.bias)
    loss = Loss(net, expand_dim=4)
    params = loss.net_params
    assert torch.equal(params["pretrained", "weight"], net.pretrained.weight.expand(4, 2, 2))
    assert not params["pretrained", "weight"].requires_grad
    assert torch.equal(params["zero", "bias"], torch.zeros(4, 3))
    free = params["free"]
    assert free.requires_grad
    assert free.min() >= 1
    assert free.max() <= 3
    assert free.unique().numel() == 12
    assert torch.equal(params["count"], torch.arange(2).expand(4, 2))
    assert net.free.tolist() == [1.0, 3.0, 2.0]


def test_a_member_is_a_copy() -> None:
    net = make_net()
    before = [parameter.clone() for parameter in net.parameters()]
    member = initialize_member(net)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(member.parameters(), net.parameters(), strict=True))


def test_shared_layers_of_an_ensemble_are_detached_views() -> None:
    trunk, actor, critic = make_shared()
    loss = Loss(actor, "actor")
    loss.convert_to_functional(critic, "critic", expand_dim=3, compare_against=list(actor.parameters()))
    shared = loss.critic_params["0", "weight"]
    assert shared.shape == (3, 4, 3)
    assert shared.data_ptr() == trunk.weight.data_ptr()
    assert [name for name, _ in loss.named_parameters() if name.startswith("critic")] == [
        "critic_params.1.weight",
        "critic_params.1.bias",
    ]


def test_a_list_of_networks_is_stacked() -> None:
    nets = [make_net(), make_net()]
    loss = Loss(nets, expand_dim=2)
    assert loss.net is nets[0]
    torch.testing.assert_close(loss.net_params["0", "weight"], torch.stack([net[0].weight for net in nets]))
    assert len(list(loss.parameters())) == 4


def test_a_network_listed_twice_is_refused() -> None:
    net, (_, first, second) = make_net(), make_shared()
    with pytest.raises(ValueError, match=r"net\[0\] and net\[2\] are the same module"):
        Loss([net, make_net(), net], expand_dim=3)
    second = nn.Sequential(first[0], nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"share the parameter '0.weight'"):
        Loss([first, second], expand_dim=2)
    # Unless somebody else trains what they share.
    loss = Loss([first, second], expand_dim=2, compare_against=list(first[0].parameters()))
    assert not loss.net_params["0", "weight"].requires_grad


def test_networks_of_different_shapes_cannot_be_stacked() -> None:
    with pytest.raises(RuntimeError, match=r"net\[1\]"):
        Loss([make_net(), make_net(5)], expand_dim=2)


def test_lazy_networks_cannot_be_expanded() -> None:
    for module in (nn.LazyLinear(2), [nn.LazyLinear(2), nn.LazyLinear(2)]):
        with pytest.raises(RuntimeError, match="lazy"):
            Loss(module, expand_dim=2)
    with pytest.raises(ValueError, match="expand_dim"):
        Loss(make_net(), expand_dim=0)


@pytest.mark.parametrize("loop", [False, True])
def test_an_ensemble_is_its_members_one_by_one(loop: bool) -> None:
    loss = Loss(make_net(), expand_dim=3)
    x = torch.randn(5, 3)
    expected = []
    for params in loss.net_params.unbind(0):
        with swap_params(params, loss.net):
            expected.append(loss.net(x))
    torch.testing.assert_close(EnsembleCall(loss.net, loop=loop)(x, loss.net_params), torch.stack(expected))
    rows = torch.randn(3, 5, 3)
    batched = vmap_module(loss.net, (0, 0), pseudo_vmap=loop)(rows, loss.net_params)
    for member in range(3):
        shared = vmap_module(loss.net, (None, 0), pseudo_vmap=loop)(rows[member], loss.net_params)
        torch.testing.assert_close(batched[member], shared[member])


@pytest.mark.parametrize("loop", [False, True])
def test_an_ensemble_reads_tensordicts_and_leaves_its_input_alone(loop: bool) -> None:
    loss = Loss(TensorDictModule(make_net(), in_keys=["x"], out_keys=["y"]), expand_dim=3)
    data = TensorDict({"x": torch.randn(5, 3)}, [5])
    out = EnsembleCall(loss.net, loop=loop)(data, loss.net_params)
    assert out["y"].shape == (3, 5, 1)
    out["y"].sum().backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_the_loop_and_vmap_give_one_gradient() -> None:
    loss = Loss(make_net(), expand_dim=3)
    x = torch.randn(5, 3)
    params = list(loss.parameters())
    by_vmap = torch.autograd.grad(EnsembleCall(loss.net)(x, loss.net_params).square().sum(), params)
    by_loop = torch.autograd.grad(EnsembleCall(loss.net, loop=True)(x, loss.net_params).square().sum(), params)
    torch.testing.assert_close(by_loop, by_vmap)


def test_a_random_module_can_be_declared() -> None:
    class Noise(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.randn_like(x)

    assert Loss(Noise()).vmap_randomness == "error"
    before = random_modules_file.RANDOM_MODULE_LIST
    try:
        add_random_module(Noise)
        add_random_module(Noise)
        assert (*before, Noise) == random_modules_file.RANDOM_MODULE_LIST
        assert Loss(Noise()).vmap_randomness == "different"
    finally:
        random_modules_file.RANDOM_MODULE_LIST = before
    with pytest.raises(TypeError, match=r"nn\.Module"):
        add_random_module(Noise())  # type: ignore[arg-type]


# -- stateful copies --------------------------------------------------------------------------------------------------


def test_a_stateful_copy_follows_the_training() -> None:
    loss = Loss(make_net())
    net = loss.get_stateful_net("net")
    assert net is not loss.net
    assert net[0].weight is loss.net_params["0", "weight"]
    assert loss.get_stateful_net("net", copy=False) is loss.net


def test_a_stateful_copy_has_the_live_parameters_of_detached_layers_too() -> None:
    trunk, actor, critic = make_shared()
    loss = Loss(actor, "actor")
    loss.convert_to_functional(critic, "critic", compare_against=list(actor.parameters()))
    assert loss.get_stateful_net("critic")[0].weight is trunk.weight


def test_values_come_from_a_stateful_net_or_not_at_all() -> None:
    loss = Loss(make_net())
    other = make_net()
    loss.from_stateful_net("net", other)
    assert torch.equal(loss.net_params["2", "weight"], other[2].weight)
    assert loss.net_params["2", "weight"] is not other[2].weight
    before = loss.net[0].weight.clone()
    for wrong in (nn.Linear(3, 1), make_net(5)):
        with pytest.raises(RuntimeError):
            loss.from_stateful_net("net", wrong)
    assert torch.equal(loss.net[0].weight, before)


def test_a_loss_with_plain_submodules_hands_them_out() -> None:
    loss = Loss()
    loss.net = make_net()
    assert loss.get_stateful_net("net") is loss.net
    with pytest.raises(RuntimeError, match="functional"):
        loss.get_stateful_net("net", copy=True)


def test_reset_initialises_each_member_and_leaves_the_target_equal() -> None:
    loss = Loss(nn.Linear(32, 64), create_target_params=True)
    loss.convert_to_functional(nn.Linear(32, 64), "many", expand_dim=3, create_target_params=True)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.fill_(7.0)
    objects = list(loss.parameters())
    loss.reset_parameters_recursive()
    assert all(a is b for a, b in zip(objects, loss.parameters(), strict=True))
    for name in ("net", "many"):
        params, target = loss._modules[f"{name}_params"], loss._modules[f"target_{name}_params"]
        bound = 32**-0.5
        assert 0.98 * bound < params["weight"].abs().max() <= bound
        assert torch.equal(params["weight"], target["weight"])
    assert not torch.equal(loss.many_params["weight"][0], loss.many_params["weight"][1])


def test_reset_reaches_plain_submodules_too() -> None:
    loss = Loss()
    loss.net = make_net()
    with torch.no_grad():
        loss.net[0].weight.fill_(7.0)
    loss.reset_parameters_recursive()
    assert loss.net[0].weight.abs().max() < 1


def test_reset_of_a_loss_takes_no_parameters() -> None:
    with pytest.raises(TypeError):
        Loss(make_net()).reset_parameters_recursive(TensorDict())


# -- moves and copies -------------------------------------------------------------------------------------------------


def test_a_move_keeps_the_objects_and_moves_everything() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    loss = Loss(net, create_target_params=True)
    weight = net[0].weight
    cached = loss.net_params_detached
    loss.double()
    assert loss.net_params["0", "weight"] is weight is net[0].weight
    assert weight.dtype == torch.float64
    assert all(b.dtype == torch.float64 for b in loss.buffers() if b.is_floating_point())
    assert loss.net_params_detached is not cached
    assert loss.net_params_detached["0", "weight"].dtype == torch.float64
    assert loss.net_params_detached is loss.net_params_detached


@pytest.mark.parametrize("how", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_copy_is_whole_and_apart(how: Any) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    loss = Loss(net, create_target_params=True)
    loss.convert_to_functional(net, "many", expand_dim=2, create_target_params=True)
    loss.call = EnsembleCall(loss.many)
    loss.net_params_detached  # noqa: B018
    other = how(loss)
    assert other.net_params["0", "weight"] is other.net[0].weight
    assert other.call.network is other.many
    assert isinstance(other.net_params, TensorDictParams)
    assert [name for name, _ in other.named_parameters()] == [name for name, _ in loss.named_parameters()]
    assert list(other.state_dict()) == list(loss.state_dict())
    for key, value in loss.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)
        if value.numel():
            assert other.state_dict()[key].data_ptr() != value.data_ptr()
    with torch.no_grad():
        other.net[0].weight.fill_(5.0)
    assert not torch.equal(loss.net[0].weight, other.net[0].weight)
    assert torch.equal(other.net_params_detached["0", "weight"], other.net[0].weight)
    data = TensorDict({"x": torch.randn(5, 3)}, [5])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other(data)["loss"].backward()
    assert other.net[0].weight.grad is not None
    assert loss.net[0].weight.grad is None


def test_the_names_of_an_ensemble_are_those_of_torchrl() -> None:
    class Reference(torchrl_objectives.LossModule):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.convert_to_functional(module, "net", expand_dim=3, create_target_params=True)

        def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
            return tensordict

    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = Reference(net)
    ours = Loss(net, expand_dim=3, create_target_params=True)
    expected = {key: value.shape for key, value in reference.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    ours.load_state_dict(reference.state_dict())
