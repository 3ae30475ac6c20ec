"""The on-policy losses on our networks: the numbers that they give on TorchRL's, and compiled whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchrl.modules as theirs
from tensordict import TensorDict
from tensordict.nn import InteractionType, NormalParamExtractor, TensorDictModule
from torch import nn

import tritonrl.modules as ours
from tritonrl.objectives import A2CLoss, ClipPPOLoss, KLPENPPOLoss, PPOLoss, ReinforceLoss

LOSSES = [PPOLoss, ClipPPOLoss, KLPENPPOLoss, A2CLoss, ReinforceLoss]
BATCH = (3, 5)


def networks(modules: Any, discrete: bool = False) -> tuple[Any, Any]:
    torch.manual_seed(0)
    if discrete:
        params = TensorDictModule(modules.MLP(4, 3, num_cells=[8]), ["observation"], ["logits"])
        keys, distribution, kwargs = ["logits"], modules.OneHotCategorical, {}
    else:
        net = nn.Sequential(modules.MLP(4, 4, num_cells=[8]), NormalParamExtractor())
        params = TensorDictModule(net, ["observation"], ["loc", "scale"])
        keys, distribution, kwargs = ["loc", "scale"], modules.TanhNormal, {"low": -2.0, "high": 2.0}
    actor = modules.ProbabilisticActor(
        params,
        in_keys=keys,
        distribution_class=distribution,
        distribution_kwargs=kwargs,
        return_log_prob=True,
        default_interaction_type=InteractionType.RANDOM,
    )
    return actor, modules.ValueOperator(modules.MLP(4, 1, num_cells=[8]))


def rollout(discrete: bool = False) -> TensorDict:
    behaviour, _ = networks(ours, discrete)
    torch.manual_seed(7)
    done = torch.rand(*BATCH, 1) < 0.2
    step = {"observation": torch.randn(*BATCH, 4), "reward": torch.randn(*BATCH, 1), "done": done, "terminated": done}
    data = TensorDict({"observation": torch.randn(*BATCH, 4), "next": TensorDict(step, BATCH)}, BATCH)
    with torch.no_grad():
        for parameter in behaviour.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        return behaviour(data)


def run(loss: Any, call: Any, data: TensorDict) -> tuple[dict[Any, Any], list[Any]]:
    loss.zero_grad()
    torch.manual_seed(5)
    out = call(data.clone())
    loss.total(out).backward()
    return out.detach().to_dict(), [parameter.grad.clone() for _, parameter in sorted(loss.named_parameters())]


@pytest.mark.parametrize("discrete", [False, True], ids=["tanh_normal", "one_hot"])
@pytest.mark.parametrize("cls", LOSSES)
def test_a_loss_gives_the_numbers_that_it_gives_on_the_networks_of_torchrl(cls: Any, discrete: bool) -> None:
    results = []
    for modules in (ours, theirs):
        loss = cls(*networks(modules, discrete))
        results.append(run(loss, loss, rollout(discrete)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    assert all(gradient.abs().max() > 0 for gradient in results[0][1])


def test_a_loss_that_needs_log_prob_entropy_and_divergence_compiles_whole() -> None:
    torch._dynamo.reset()
    loss = KLPENPPOLoss(*networks(ours))
    loss.eval()  # Its coefficient moves with every call in training mode.
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    data = rollout()
    data["advantage"], data["value_target"] = torch.randn(*BATCH, 1), torch.randn(*BATCH, 1)
    torch.testing.assert_close(run(loss, compiled, data), run(loss, loss, data), rtol=1e-5, atol=1e-5)


def test_ppo_trains_a_trunk_that_policy_and_value_share() -> None:
    torch.manual_seed(0)
    trunk = TensorDictModule(nn.Linear(4, 8), ["observation"], ["hidden"])
    head = TensorDictModule(nn.Sequential(nn.Linear(8, 4), NormalParamExtractor()), ["hidden"], ["loc", "scale"])
    policy = ours.ProbabilisticActor(
        head, in_keys=["loc", "scale"], distribution_class=ours.TanhNormal, return_log_prob=True
    )
    both = ours.ActorValueOperator(trunk, policy, ours.ValueOperator(nn.Linear(8, 1), in_keys=["hidden"]))
    actor, critic = both.get_policy_operator(), both.get_value_operator()
    loss = ClipPPOLoss(actor, critic)
    data = rollout()
    loss.total(loss(data)).backward()
    assert len(list(loss.parameters())) == len(list(both.parameters())) == 6
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in both.parameters())


def test_the_first_importance_ratio_of_a_saturated_policy_is_one() -> None:
    actor, critic = networks(ours)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter *= 30
        data = actor(rollout().exclude("loc", "scale", "action", "action_log_prob"))
    assert (data["action"].abs() > 1.9999).any()
    out = ClipPPOLoss(actor, critic)(data)
    torch.testing.assert_close(out["kl_approx"], torch.tensor(0.0))
    torch.testing.assert_close(out["clip_fraction"], torch.tensor(0.0))
