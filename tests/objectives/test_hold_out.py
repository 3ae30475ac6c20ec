"""Holding a network out: no gradient inside, everything as before outside."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from tritonrl.objectives import hold_out_net, hold_out_params


def flags(net: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in net.parameters()]


@pytest.mark.parametrize("frozen", [(), (0,), (3,), (0, 1), (0, 1, 2, 3)])
def test_what_was_frozen_stays_frozen_and_what_was_not_does_not(frozen: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    for index, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(index not in frozen)
    before, objects = flags(net), list(net.parameters())
    with hold_out_net(net):
        assert not any(flags(net))
    assert flags(net) == before
    assert all(a is b for a, b in zip(net.parameters(), objects, strict=True))


def test_the_flags_come_back_after_an_error() -> None:
    net = nn.Linear(2, 1)
    with pytest.raises(ZeroDivisionError), hold_out_net(net):
        raise ZeroDivisionError
    assert flags(net) == [True, True]


def test_the_input_still_gets_its_gradient() -> None:
    net = nn.Linear(2, 1)
    x = torch.ones(2, requires_grad=True)
    with hold_out_net(net):
        out = net(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, net.weight[0].detach())
    assert net.weight.grad is None


def test_it_works_as_a_decorator_and_nested() -> None:
    net = nn.Linear(2, 1)

    @hold_out_net(net)
    def call() -> torch.Tensor:
        return net(torch.ones(2))

    assert not call().requires_grad
    assert not call().requires_grad
    with hold_out_net(net):
        with hold_out_net(net):
            pass
        assert not any(flags(net))
    assert all(flags(net))


def test_a_network_without_parameters_is_no_problem() -> None:
    with hold_out_net(nn.Tanh()):
        pass


def test_it_compiles_in_one_graph_and_keeps_the_gradients_around_it() -> None:
    net = nn.Linear(2, 1)

    def call(x: torch.Tensor) -> torch.Tensor:
        trained = net(x)
        with hold_out_net(net):
            held = net(x)
        return (trained * held).sum()

    x = torch.ones(3, 2)
    (expected,) = torch.autograd.grad(call(x), net.weight)
    (got,) = torch.autograd.grad(torch.compile(call, fullgraph=True, backend="aot_eager")(x), net.weight)
    torch.testing.assert_close(got, expected)
    assert flags(net) == [True, True]


def test_held_out_parameters_are_detached_views() -> None:
    net = nn.Linear(2, 1)
    with hold_out_params(net.parameters()) as params:
        assert isinstance(params, tuple)
        assert [p.requires_grad for p in params] == [False, False]
        assert params[0].data_ptr() == net.weight.data_ptr()
    with hold_out_params(TensorDict.from_module(net)) as params:
        assert not params["weight"].requires_grad
    assert flags(net) == [True, True]
