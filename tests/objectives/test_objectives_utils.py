"""next_state_value, group_optimizers, KLAdaptiveLR and the names of the package: by hand and beside TorchRL."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchrl.objectives as torchrl_objectives
import torchrl.objectives.common as torchrl_common
import torchrl.objectives.utils as torchrl_utils
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

import tritonrl.objectives as tritonrl_objectives
import tritonrl.objectives.common as tritonrl_common
import tritonrl.objectives.utils as tritonrl_utils
from tritonrl.objectives import KLAdaptiveLR, add_random_module, group_optimizers, next_state_value, random_modules

# -- next_state_value -------------------------------------------------------------------------------------------------


def make_step(done: list[bool] | None = None) -> TensorDict:
    flags = torch.tensor([False, True, False, False] if done is None else done)[:, None]
    nxt = {"o": torch.randn(4, 3), "reward": torch.randn(4, 1), "done": flags}
    return TensorDict({"o": torch.randn(4, 3), "h": torch.randn(4, 1), "action": torch.randn(4, 2), "next": nxt}, [4])


def operator(*in_keys: str) -> TensorDictModule:
    return TensorDictModule(
        lambda *inputs: sum(x.sum(-1, keepdim=True) for x in inputs),
        in_keys=list(in_keys),
        out_keys=["state_action_value"],
    )


@pytest.mark.parametrize("done", [None, [True] * 4, [False] * 4])
@pytest.mark.parametrize("gamma", [0.99, 0.0, torch.tensor(0.5)])
@pytest.mark.parametrize("in_keys", [("o",), ("o", "h")])
@pytest.mark.parametrize("n", [None, 3])
def test_the_next_state_value_is_torchrls(
    done: Any, gamma: float | Tensor, in_keys: tuple[str, ...], n: int | None
) -> None:
    step = make_step(done)
    if n is not None:
        step["steps_to_next_obs"] = torch.full((4, 1), n)
    for kwargs in ({"operator": operator(*in_keys)}, {"pred_next_val": torch.randn(4)}):
        got = next_state_value(step, gamma=gamma, **kwargs)
        torch.testing.assert_close(got, torchrl_objectives.next_state_value(step, gamma=gamma, **kwargs))
    assert set(step.keys()) == set(make_step().keys()) | ({"steps_to_next_obs"} if n else set())


def test_a_nan_value_behind_done_does_not_reach_the_return() -> None:
    step = make_step()
    value = torch.tensor([1.0, float("nan"), 1.0, 1.0])
    assert next_state_value(step, pred_next_val=value).isfinite().all()
    assert next_state_value(step, pred_next_val=value)[1] == step["next", "reward"][1, 0]


def test_a_value_with_a_trailing_one_is_no_outer_product() -> None:
    step, value = make_step(), torch.randn(4, 1)
    torch.testing.assert_close(
        next_state_value(step, pred_next_val=value), next_state_value(step, pred_next_val=value[:, 0])
    )
    with pytest.raises(ValueError, match=r"\(4,\).*\(3,\)"):
        next_state_value(step, pred_next_val=torch.zeros(3))


def test_what_the_next_step_lacks_is_named() -> None:
    with pytest.raises(KeyError, match="action"):
        next_state_value(make_step(), operator("o", "action"))
    with pytest.raises(ValueError, match="pred_next_val"):
        next_state_value(make_step())


def test_the_next_state_value_has_no_gradient() -> None:
    assert not next_state_value(make_step(), pred_next_val=torch.randn(4, requires_grad=True)).requires_grad


# -- group_optimizers -------------------------------------------------------------------------------------------------


def test_grouped_optimizers_keep_their_options_and_their_groups() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(3, 1)
    first, second = torch.optim.Adam(a.parameters(), lr=0.1), torch.optim.Adam(b.parameters(), lr=0.2, weight_decay=0.3)
    both = group_optimizers(first, None, second)
    assert type(both) is torch.optim.Adam
    assert both.param_groups[0] is first.param_groups[0]
    assert [group["lr"] for group in both.param_groups] == [0.1, 0.2]
    assert [group["weight_decay"] for group in both.param_groups] == [0, 0.3]
    before = b.weight.clone()
    (a(torch.ones(2)).sum() + b(torch.ones(3)).sum()).backward()
    both.step()
    assert not torch.equal(b.weight, before)


def test_what_cannot_be_grouped_is_refused_as_in_torchrl() -> None:
    net = nn.Linear(2, 2)
    sgd, adam = torch.optim.SGD(net.parameters(), lr=0.1), torch.optim.Adam(net.parameters())
    for function in (group_optimizers, torchrl_objectives.group_optimizers):
        with pytest.raises(ValueError):
            function(sgd, adam)
        with pytest.raises(TypeError):
            function(None)


# -- KLAdaptiveLR -----------------------------------------------------------------------------------------------------


def make_optimizer() -> torch.optim.Optimizer:
    first, second = (torch.zeros(1, requires_grad=True) for _ in range(2))
    return torch.optim.SGD([{"params": [first], "lr": 1e-3}, {"params": [second], "lr": 8e-3}])


def test_the_learning_rate_follows_the_divergence_as_in_torchrl() -> None:
    optimizers = make_optimizer(), make_optimizer()
    ours = KLAdaptiveLR(optimizers[0], 0.01, factor=2.0)
    reference = torchrl_objectives.KLAdaptiveLR(optimizers[1], 0.01, factor=2.0)
    for kl in (0.0, 0.015, 0.02, 0.0201, 1.0, 0.005, 0.0049, 1e-9, 1e-9, 1e-9, -1.0, torch.tensor(3.0), *[1.0] * 20):
        ours.step(kl)
        reference.step(kl)
        assert ours.get_last_lr() == reference.get_last_lr()
        assert ours.state_dict() == reference.state_dict()
    assert ours.get_last_lr() == [1e-5, 1e-5]


def test_a_state_of_torchrl_loads() -> None:
    schedule = KLAdaptiveLR(make_optimizer(), 0.01)
    reference = torchrl_objectives.KLAdaptiveLR(make_optimizer(), 0.02, factor=3.0)
    reference.step(0.5)
    schedule.load_state_dict(reference.state_dict())
    assert schedule.target_kl == 0.02
    assert schedule.factor == 3.0
    assert schedule.last_kl == 0.5


@pytest.mark.parametrize("kl", [float("nan"), float("inf"), -float("inf")])
def test_a_divergence_that_is_no_number_changes_nothing(kl: float) -> None:
    schedule = KLAdaptiveLR(make_optimizer(), 0.01)
    with pytest.raises(ValueError, match="finite"):
        schedule.step(kl)
    assert schedule.get_last_lr() == [1e-3, 8e-3]
    assert schedule.last_kl is None


@pytest.mark.parametrize(
    "kwargs",
    [
        {"target_kl": 0.0},
        {"target_kl": -1.0},
        {"target_kl": float("inf")},
        {"factor": 1.0},
        {"factor": float("inf")},
        {"min_lr": 0.0},
        {"min_lr": 1.0},
        {"max_lr": float("inf")},
    ],
)
def test_bad_bounds_are_refused_as_in_torchrl(kwargs: dict[str, float]) -> None:
    for cls in (KLAdaptiveLR, torchrl_objectives.KLAdaptiveLR):
        with pytest.raises(ValueError, match="|".join(kwargs)):
            cls(make_optimizer(), **{"target_kl": 0.01, **kwargs})


def test_a_tensor_learning_rate_is_changed_in_place() -> None:
    lr = torch.tensor(1e-3)
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=lr, capturable=False, foreach=False)
    KLAdaptiveLR(optimizer, 0.01, factor=2.0).step(1.0)
    assert optimizer.param_groups[0]["lr"] is lr
    torch.testing.assert_close(lr, torch.tensor(5e-4))


# -- names ------------------------------------------------------------------------------------------------------------


def test_every_public_name_is_one_of_torchrls() -> None:
    pairs = (
        (tritonrl_objectives, torchrl_objectives),
        (tritonrl_utils, torchrl_utils),
        (tritonrl_common, torchrl_common),
    )
    for ours, theirs in pairs:
        for name in set(ours.__all__) - {"AUTO_LOSS_MASK_KEYS"}:
            assert hasattr(ours, name)
            assert hasattr(theirs, name), name
    assert tritonrl_common.AUTO_LOSS_MASK_KEYS == torchrl_common.AUTO_LOSS_MASK_KEYS
    assert tritonrl_utils.RANDOM_MODULE_LIST == torchrl_utils.RANDOM_MODULE_LIST


def test_the_list_of_random_modules_is_never_stale() -> None:
    class Noise(nn.Module):
        pass

    before = random_modules.RANDOM_MODULE_LIST
    try:
        add_random_module(Noise)
        assert Noise in tritonrl_utils.RANDOM_MODULE_LIST
    finally:
        random_modules.RANDOM_MODULE_LIST = before
    with pytest.raises(AttributeError):
        tritonrl_utils.nonsense  # noqa: B018
