"""torch.compile of losses: one graph, eager numbers, no recompile."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from tritonrl.objectives import HardUpdate, LossModule, SoftUpdate, hold_out_net
from tritonrl.objectives.ensemble import EnsembleCall
from tritonrl.objectives.functional_params import swap_params


class EverythingLoss(LossModule):
    """Online, target and detached parameters, an ensemble on one template, a mask and a schedulable coefficient."""

    _schedulable_buffers = frozenset({"coeff"})

    def __init__(self, loop: bool = False) -> None:
        super().__init__()
        self.reduction = "mean"
        layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        net = TensorDictModule(layers, in_keys=["x"], out_keys=["y"])
        self.convert_to_functional(net, "net", create_target_params=True)
        self.convert_to_functional(net, "many", expand_dim=3, create_target_params=True)
        self.register_coeff_buffer("coeff", 0.5)
        self.ensemble = EnsembleCall(self.many, loop=loop)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        online = self._value(tensordict, self.net_params)
        target = self._value(tensordict, self.target_net_params)
        detached = self._value(tensordict, self.net_params.data)
        many = self.ensemble(tensordict, self.many_params)["y"].squeeze(-1).mean(0)
        with hold_out_net(self.net):
            held = self.net(tensordict.copy())["y"].squeeze(-1)
        error = (online - 0.9 * target - 0.1 * detached * held + many - 1).square()
        return TensorDict({"loss_y": self.coeff * self._reduce_loss(error, tensordict), **self.extra_loss(many)})

    def _value(self, tensordict: TensorDictBase, params: TensorDictBase) -> Tensor:
        with swap_params(params, self.net):
            return self.net(tensordict.copy())["y"].squeeze(-1)

    def extra_loss(self, many: Tensor) -> dict[str, Tensor]:
        return {"loss_extra": many.square().mean()}


@pytest.fixture(autouse=True)
def _fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RL_WARNINGS", "False")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make_data(batch: int = 5) -> TensorDict:
    mask = torch.ones(batch, dtype=torch.bool)
    mask[1] = False
    return TensorDict({"x": torch.randn(batch, 3), "shifted_valid": mask}, [batch])


def gradients(loss: LossModule, call: Any, data: TensorDict) -> list[Tensor]:
    return list(torch.autograd.grad(loss.total(call(data)), list(loss.parameters())))


@pytest.mark.parametrize("loop", [False, True])
def test_forward_and_backward_are_one_graph_with_the_eager_numbers(loop: bool) -> None:
    loss, data = EverythingLoss(loop), make_data()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected, got = loss(data), compiled(data)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value)
    for a, b in zip(gradients(loss, compiled, data), gradients(loss, loss, data), strict=True):
        torch.testing.assert_close(a, b)


def test_a_schedule_an_update_or_a_second_call_does_not_recompile() -> None:
    loss, data = EverythingLoss(), make_data()
    updater = SoftUpdate(loss, tau=0.5)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    compiled(data)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for coeff in (0.25, 0.125, 7.0):
            loss.coeff = coeff
            with torch.no_grad():
                loss.net_params["module", "0", "weight"].add_(0.1)
            updater.step()
            torch.testing.assert_close(compiled(data)["loss_y"], loss(data)["loss_y"])


def test_a_copy_of_a_loss_compiles_too() -> None:
    loss, data = copy.deepcopy(EverythingLoss()), make_data()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(data)["loss_y"], loss(data)["loss_y"])
    # Not to the bit: some processors add a gradient up in another order when it is compiled.
    for a, b in zip(gradients(loss, compiled, data), gradients(loss, loss, data), strict=True):
        torch.testing.assert_close(a, b)


def test_the_soft_update_compiles() -> None:
    loss = EverythingLoss()
    updater = SoftUpdate(loss, tau=0.25)
    step = torch.compile(updater.step, fullgraph=True, backend="aot_eager")
    weight, target = loss.net_params["module", "0", "weight"], loss.target_net_params["module", "0", "weight"]
    with torch.no_grad():
        target.zero_()
        weight.fill_(1.0)
    step()
    torch.testing.assert_close(target, torch.full_like(target, 0.25))
    with torch._dynamo.config.patch(error_on_recompile=True):
        step()
    torch.testing.assert_close(target, torch.full_like(target, 0.4375))


def test_the_hard_update_compiles_into_one_graph_whether_it_copies_or_not() -> None:
    compiled, eager = EverythingLoss(), EverythingLoss()
    updaters = [HardUpdate(loss, value_network_update_interval=2) for loss in (compiled, eager)]
    step = torch.compile(updaters[0].step, fullgraph=True, backend="aot_eager")
    targets = [loss.target_net_params["module", "0", "weight"] for loss in (compiled, eager)]
    for count in range(7):
        for loss in (compiled, eager):
            with torch.no_grad():
                loss.net_params["module", "0", "weight"].fill_(float(count))
        with torch._dynamo.config.patch(error_on_recompile=True):
            step()
        updaters[1].step()
        assert updaters[0].counter == updaters[1].counter == (count + 1) % 3
        copied = count // 3 * 3 - 1 if (count + 1) % 3 else count
        for target in targets:
            assert copied < 0 or torch.equal(target, torch.full_like(target, float(copied)))


def test_loss_gradient_and_target_update_in_one_graph_train_as_in_eager_mode() -> None:
    def train(compile_it: bool) -> list[Tensor]:
        torch.manual_seed(0)
        loss = EverythingLoss()
        updater = SoftUpdate(loss, tau=0.5)
        parameters = list(loss.parameters())

        def step(data: TensorDictBase) -> Tensor:
            value = loss.total(loss(data))
            grads = torch.autograd.grad(value, parameters)
            with torch.no_grad():
                for parameter, grad in zip(parameters, grads, strict=True):
                    parameter.sub_(0.1 * grad)
            updater.step()
            return value.detach()

        data = make_data()
        run = torch.compile(step, fullgraph=True, backend="aot_eager") if compile_it else step
        return [run(data) for _ in range(3)] + [value.clone() for value in loss.state_dict().values()]

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = train(True)
    for a, b in zip(compiled, train(False), strict=True):
        torch.testing.assert_close(a, b)
