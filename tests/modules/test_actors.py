"""Policies, value operators and their pairs: entries, parameters and numbers are those of TorchRL."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torchrl.modules as theirs
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    InteractionType,
    NormalParamExtractor,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    set_interaction_type,
)
from torch import nn
from torch.distributions import Categorical, Normal

import tritonrl.modules as ours

BOTH = pytest.mark.parametrize("modules", [ours, theirs], ids=["ours", "theirs"])


def data() -> TensorDict:
    torch.manual_seed(1)
    return TensorDict({"observation": torch.randn(5, 4)}, [5])


def squashed_policy(modules: Any, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), NormalParamExtractor())
    module = TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"])
    return modules.ProbabilisticActor(
        module, in_keys=["loc", "scale"], distribution_class=modules.TanhNormal, return_log_prob=True, **kwargs
    )


def pair(modules: Any, cls: str) -> Any:
    torch.manual_seed(0)
    trunk = TensorDictModule(nn.Linear(4, 6), ["observation"], ["hidden"])
    policy = modules.ProbabilisticActor(
        TensorDictModule(nn.Linear(6, 3), ["hidden"], ["logits"]), in_keys=["logits"], distribution_class=Categorical
    )
    if cls == "ActorCriticOperator":
        policy = TensorDictModule(nn.Linear(6, 2), ["hidden"], ["action"])
        critic = modules.ValueOperator(nn.Bilinear(6, 2, 1), in_keys=["hidden", "action"])
    else:
        critic = modules.ValueOperator(nn.Linear(6, 1), in_keys=["hidden"])
    return getattr(modules, cls)(*([policy, critic] if cls == "ActorCriticWrapper" else [trunk, policy, critic]))


@pytest.mark.parametrize("mode", [InteractionType.RANDOM, InteractionType.DETERMINISTIC])
def test_a_squashed_policy_gives_the_entries_and_numbers_of_torchrl(mode: InteractionType) -> None:
    outs, states = [], []
    for modules in (ours, theirs):
        policy = squashed_policy(modules, distribution_kwargs={"low": -2.0, "high": 2.0})
        torch.manual_seed(2)
        with set_interaction_type(mode):
            outs.append(policy(data()))
        states.append(policy.state_dict())
        assert isinstance(policy, ProbabilisticTensorDictSequential)
        assert policy.in_keys == ["observation"]
        assert policy.out_keys == ["loc", "scale", "action", "action_log_prob"]
    assert list(outs[0].keys()) == list(outs[1].keys())
    for key, value in outs[0].items():
        torch.testing.assert_close(value, outs[1][key], rtol=1e-5, atol=1e-5)
    assert list(states[0]) == list(states[1])


def test_a_policy_without_a_distribution_puts_all_mass_on_one_action() -> None:
    policy = ours.ProbabilisticActor(TensorDictModule(nn.Linear(4, 2), ["observation"], ["param"]), in_keys=["param"])
    out = policy(data())
    torch.testing.assert_close(out["action"], out["param"])


def test_a_composite_policy_names_its_heads() -> None:
    class Heads(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x[..., :1], x[..., 1:2].exp(), x[..., 2:]

    keys = [("params", "move", "loc"), ("params", "move", "scale"), ("params", "gear", "logits")]
    policy = ours.ProbabilisticActor(
        TensorDictModule(Heads(), ["observation"], keys),
        in_keys=["params"],
        distribution_class=CompositeDistribution,
        distribution_kwargs={"distribution_map": {"move": Normal, "gear": Categorical}},
    )
    assert policy.out_keys[-2:] == ["move", "gear"]
    assert policy(data())["gear"].shape == (5,)


def test_a_plain_network_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"TensorDictModule.*got Linear"):
        ours.ProbabilisticActor(nn.Linear(4, 2), in_keys=["param"])


def test_a_misspelt_argument_is_an_error() -> None:
    with pytest.raises(TypeError, match="retrun_log_prob"):
        squashed_policy(ours, retrun_log_prob=True)


def test_the_spec_is_kept() -> None:
    spec = object()
    assert squashed_policy(ours, spec=spec).spec is spec
    assert ours.Actor(nn.Linear(4, 2), spec=spec).spec is spec


def test_a_policy_can_be_copied_and_pickled() -> None:
    policy = squashed_policy(ours)
    for twin in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        torch.testing.assert_close(twin(data())["action"], policy(data())["action"])


@BOTH
def test_a_deterministic_policy_is_a_distribution_with_all_mass_on_its_action(modules: Any) -> None:
    policy = modules.Actor(nn.Linear(4, 2))
    assert policy.in_keys == ["observation"] and policy.out_keys == ["action"]
    distribution = policy.get_dist(data())
    assert distribution.batch_shape == (5,) and distribution.event_shape == (2,)
    torch.testing.assert_close(distribution.mode, policy(data())["action"])


@BOTH
@pytest.mark.parametrize(
    ("in_keys", "out_key"),
    [
        (None, "state_value"),
        (["observation"], "state_value"),
        (["hidden", "action"], "state_action_value"),
        ([("agent", "action")], "state_value"),
    ],
)
def test_a_value_operator_names_its_value_by_what_it_reads(modules: Any, in_keys: Any, out_key: str) -> None:
    operator = modules.ValueOperator(nn.Linear(4, 1), in_keys=in_keys)
    assert operator.out_keys == [out_key]
    assert operator.in_keys == (in_keys or ["observation"])


@pytest.mark.parametrize("cls", ["ActorValueOperator", "ActorCriticOperator", "ActorCriticWrapper"])
def test_pairs_have_the_keys_parameters_and_numbers_of_torchrl(cls: str) -> None:
    mine, reference = pair(ours, cls), pair(theirs, cls)
    assert list(mine.state_dict()) == list(reference.state_dict())
    assert mine.in_keys == reference.in_keys and mine.out_keys == reference.out_keys
    names = ["get_policy_operator", "get_policy_head", "get_value_head"]
    names.append("get_critic_operator" if cls == "ActorCriticOperator" else "get_value_operator")
    for name in names:
        part, expected = getattr(mine, name)(), getattr(reference, name)()
        assert part.in_keys == expected.in_keys and part.out_keys == expected.out_keys
        assert list(part.state_dict()) == list(expected.state_dict())
        inputs = TensorDict({"observation": torch.randn(5, 4), "hidden": torch.randn(5, 6)}, [5])
        inputs["action"] = torch.randn(5, 2)
        out, reference_out = part(inputs.clone()), expected(inputs.clone())
        for key in part.out_keys:
            torch.testing.assert_close(out[key], reference_out[key])


def test_the_parts_of_a_pair_share_its_trunk() -> None:
    both = pair(ours, "ActorValueOperator")
    trunk = {id(parameter) for parameter in both.module[0].parameters()}
    for part in (both.get_policy_operator(), both.get_value_operator()):
        assert trunk <= {id(parameter) for parameter in part.parameters()}
    assert isinstance(both.get_policy_operator().get_dist(data()), Categorical)


def test_a_critic_of_state_and_action_has_no_value_of_the_state() -> None:
    both = pair(ours, "ActorCriticOperator")
    assert both.get_critic_operator() is both
    with pytest.raises(RuntimeError, match="get_critic_operator"):
        both.get_value_operator()
    trunk, policy = both.module[0], both.module[1]
    with pytest.raises(RuntimeError, match="'state_value'"):
        ours.ActorCriticOperator(trunk, policy, ours.ValueOperator(nn.Linear(6, 1), in_keys=["hidden"]))
