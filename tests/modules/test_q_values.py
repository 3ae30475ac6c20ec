"""Greedy policies on action values: every encoding, masks, and what TorchRL makes of the same."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest
import torch
import torchrl.modules as theirs
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Categorical, Composite, MultiOneHot, OneHot

import tritonrl.modules as ours
from tritonrl.modules.greedy_action import greedy_action
from tritonrl.objectives.chosen_action_value import chosen_action_value

SPACES = [
    ("one-hot", None),
    ("mult-one-hot", [1, 3]),
    ("mult-one-hot", 2),
    ("binary", None),
    ("categorical", None),
    ("multi_categorical", [1, 3]),
]
IN_TORCHRL = [case for case in SPACES if case[0] not in ("binary", "multi_categorical")]
SUPPORT = torch.linspace(-1, 1, 7)


def atoms_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 28), nn.Unflatten(-1, (7, 4)))


def every_action(space: str, sizes: Any) -> list[torch.Tensor]:
    """All actions of a space of four values."""
    if space == "categorical":
        return list(torch.arange(4))
    if space == "binary":
        return list(torch.cartesian_prod(*[torch.arange(2)] * 4))
    sizes = [4] if sizes is None else [sizes] * 2 if isinstance(sizes, int) else sizes
    indices = torch.cartesian_prod(*[torch.arange(size) for size in sizes]).reshape(-1, len(sizes))
    if space == "multi_categorical":
        return list(indices)
    encoded = [nn.functional.one_hot(indices[:, part], size) for part, size in enumerate(sizes)]
    return list(torch.cat(encoded, -1))


@pytest.mark.parametrize(("space", "sizes"), SPACES)
def test_the_greedy_action_has_the_highest_value_of_all_actions(space: str, sizes: Any) -> None:
    name = space.replace("-", "_")
    listed = [sizes] * 2 if isinstance(sizes, int) else sizes
    for action_value in torch.randn(20, 4):
        best = greedy_action(action_value, name, sizes)
        values = [chosen_action_value(action_value, action, name, listed) for action in every_action(space, sizes)]
        assert chosen_action_value(action_value, best, name, listed) == max(values)
        assert any(torch.equal(best, action) for action in every_action(space, sizes))
        module = ours.QValueModule(space, var_nums=sizes)
        torch.testing.assert_close(module(action_value)[2], max(values).unsqueeze(-1))


@pytest.mark.parametrize("mask_key", [None, "mask"])
@pytest.mark.parametrize(("space", "sizes"), IN_TORCHRL)
def test_entries_and_numbers_are_those_of_torchrl(space: str, sizes: Any, mask_key: str | None) -> None:
    mask = torch.rand(3, 5, 4) < 0.7
    mask[..., 0] = mask[..., 2] = True
    data = TensorDict({"action_value": torch.randn(3, 5, 4), "mask": mask}, [3, 5])
    kwargs: dict[str, Any] = {"var_nums": sizes, "action_mask_key": mask_key}
    mine, reference = (modules.QValueModule(space, **kwargs) for modules in (ours, theirs))
    assert mine.in_keys == reference.in_keys and mine.out_keys == reference.out_keys
    out, expected = mine(data.clone()), reference(data.clone())
    assert list(out.keys()) == list(expected.keys())
    for key, value in out.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)


@pytest.mark.parametrize("key", ["values", ("agent", "values")])
@pytest.mark.parametrize("cls", ["QValueModule", "DistributionalQValueModule"])
def test_another_entry_of_the_values_gives_the_keys_of_torchrl(cls: str, key: Any) -> None:
    kwargs: dict[str, Any] = {"support": SUPPORT} if cls.startswith("D") else {}
    mine, reference = (getattr(m, cls)(action_space="one-hot", action_value_key=key, **kwargs) for m in (ours, theirs))
    assert (mine.in_keys, mine.out_keys) == (reference.in_keys, reference.out_keys)
    assert list(mine.state_dict()) == list(reference.state_dict())


@pytest.mark.parametrize("space", ["one-hot", "categorical"])
def test_an_actor_has_the_keys_parameters_and_numbers_of_torchrl(space: str) -> None:
    actors = []
    for modules in (ours, theirs):
        torch.manual_seed(0)
        actors.append(modules.QValueActor(nn.Linear(5, 4), in_keys=["observation"], action_space=space))
    data = TensorDict({"observation": torch.randn(3, 5)}, [3])
    out, expected = (actor(data.clone()) for actor in actors)
    assert list(actors[0].state_dict()) == list(actors[1].state_dict())
    assert (actors[0].in_keys, actors[0].out_keys) == (actors[1].in_keys, actors[1].out_keys)
    assert actors[0].action_space == actors[1].action_space
    for key, value in out.items():
        torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize("make_log_softmax", [True, False])
@pytest.mark.parametrize(("space", "sizes"), [case for case in IN_TORCHRL if case[1] != 2])
def test_a_distributional_actor_has_the_keys_parameters_and_numbers_of_torchrl(
    space: str, sizes: Any, make_log_softmax: bool
) -> None:
    results = []
    for modules in (ours, theirs):
        network: nn.Module = atoms_network()
        if not make_log_softmax:
            network = nn.Sequential(network, nn.LogSoftmax(-2))
        actor = modules.DistributionalQValueActor(
            network,
            SUPPORT,
            in_keys=["observation"],
            action_space=space,
            var_nums=sizes,
            make_log_softmax=make_log_softmax,
        )
        torch.manual_seed(1)
        results.append((actor, actor(TensorDict({"observation": torch.randn(3, 5)}, [3]))))
    (mine, out), (reference, expected) = results
    assert list(mine.state_dict()) == list(reference.state_dict())
    assert (mine.in_keys, mine.out_keys) == (reference.in_keys, reference.out_keys)
    assert list(out.keys()) == list(expected.keys())
    for key, value in out.items():
        torch.testing.assert_close(value, expected[key])
    torch.testing.assert_close(out["action_value"].exp().sum(-2), torch.ones(3, 4))


def test_of_equal_values_one_action_is_chosen() -> None:
    for space in ("one_hot", "mult_one_hot"):
        assert greedy_action(torch.zeros(3, 4), space, 2).sum(-1).eq(2 if space == "mult_one_hot" else 1).all()


def test_a_masked_action_is_not_chosen_though_its_expected_value_is_the_only_one_above_zero() -> None:
    module = ours.DistributionalQValueModule("categorical", SUPPORT, action_mask_key="mask")
    log_probs = torch.full((7, 4), -50.0)
    log_probs[[6, 1, 0, 2], [0, 1, 2, 3]] = 0.0
    data = TensorDict({"action_value": log_probs, "mask": torch.tensor([False, True, True, True])})
    out = module(data.clone())
    assert out["action"] == 3
    torch.testing.assert_close(out["action_value"], log_probs)


def test_a_nan_of_a_forbidden_action_reaches_neither_action_nor_gradient() -> None:
    values = torch.tensor([float("nan"), 1.0, 2.0], requires_grad=True)
    data = TensorDict({"action_value": values, "mask": torch.tensor([False, True, True])})
    out = ours.QValueModule("categorical", action_mask_key="mask")(data)
    out["chosen_action_value"].sum().backward()
    assert out["action"] == 2
    torch.testing.assert_close(values.grad, torch.tensor([0.0, 0.0, 1.0]))


def test_the_gradient_of_the_chosen_value_is_one_at_the_chosen_action() -> None:
    values = torch.tensor([[0.0, 3.0], [1.0, -1.0]], requires_grad=True)
    ours.QValueModule("one-hot")(values)[2].sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


@pytest.mark.parametrize(
    ("spec", "space"),
    [
        (OneHot(4), "one_hot"),
        (Categorical(4), "categorical"),
        (Composite(action=OneHot(4)), "one_hot"),
        (gymnasium.spaces.Discrete(4), "categorical"),
        (gymnasium.spaces.MultiBinary(4), "binary"),
    ],
)
def test_a_spec_tells_the_space(spec: Any, space: str) -> None:
    actor = ours.QValueActor(nn.Linear(5, 4), spec=spec)
    assert actor.action_space == space and actor.spec is spec
    assert actor(TensorDict({"observation": torch.randn(3, 5)}, [3]))["chosen_action_value"].shape == (3, 1)


@pytest.mark.parametrize("spec", [MultiOneHot([1, 3]), gymnasium.spaces.MultiDiscrete([1, 3])])
def test_a_spec_tells_the_parts_of_an_action(spec: Any) -> None:
    action = ours.QValueModule(spec=spec)(torch.tensor([-1.0, 2.0, 0.0, 1.0]))[0]
    expected = [1, 1, 0, 0] if isinstance(spec, MultiOneHot) else [0, 0]
    assert action.tolist() == expected


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="action_space or spec"):
        ours.QValueModule()
    with pytest.raises(ValueError, match="contradicts the spec"):
        ours.QValueModule("categorical", spec=OneHot(4))
    with pytest.raises(ValueError, match="foo"):
        ours.QValueModule("foo")
    with pytest.raises(ValueError, match="out_keys"):
        ours.QValueModule("one-hot", out_keys=["action"])
    with pytest.raises(ValueError, match="var_nums"):
        ours.QValueModule("mult-one-hot")(torch.zeros(4))
    with pytest.raises(ValueError, match="sum to the number of action values, 5"):
        ours.QValueModule("mult-one-hot", var_nums=2)(torch.zeros(5))
    with pytest.raises(NotImplementedError, match="binary"):
        ours.DistributionalQValueModule("binary", SUPPORT)
    with pytest.raises(ValueError, match=r"\[\*B, 7, actions\].*\(3, 6, 4\)"):
        ours.DistributionalQValueModule("one-hot", SUPPORT)(torch.zeros(3, 6, 4))
    values = TensorDictModule(nn.Linear(5, 4), ["observation"], ["values"])
    with pytest.raises(KeyError, match="action_value"):
        ours.QValueActor(values, action_space="one-hot")
    with pytest.raises(ValueError, match="contradict the in_keys"):
        ours.QValueActor(values, in_keys=["state"], action_value_key="values", action_space="one-hot")


def test_a_missing_or_misshapen_mask_leaves_the_data_as_they_were() -> None:
    module = ours.QValueModule("one-hot", action_mask_key="mask")
    data = TensorDict({"action_value": torch.zeros(3, 4)}, [3])
    with pytest.raises(KeyError, match="mask"):
        module(data)
    data["mask"] = torch.ones(3, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\(3, 1\).*\(3, 4\)"):
        module(data)
    assert set(data.keys()) == {"action_value", "mask"}


@pytest.mark.parametrize(("space", "sizes"), SPACES)
def test_actors_compile_whole(space: str, sizes: Any) -> None:
    data = TensorDict({"observation": torch.randn(3, 5), "mask": torch.rand(3, 4) < 0.9}, [3])
    actor: nn.Module = ours.QValueActor(nn.Linear(5, 4), action_space=space, var_nums=sizes, action_mask_key="mask")
    actors = [actor]
    if space != "binary":
        actors.append(ours.DistributionalQValueActor(atoms_network(), SUPPORT, action_space=space, var_nums=sizes))
    for actor in actors:
        torch._dynamo.reset()
        compiled = torch.compile(lambda td, actor=actor: actor(td), fullgraph=True, backend="aot_eager")
        out, expected = compiled(data.clone()), actor(data.clone())
        for key, value in out.items():
            torch.testing.assert_close(value, expected[key])
