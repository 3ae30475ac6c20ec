"""The recurrent state-space model, rolled out along data and in imagination."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchrl.modules as theirs
from tensordict import TensorDict
from tensordict.nn import InteractionType, NormalParamExtractor, TensorDictModule, set_interaction_type
from torch import nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs.model_based import DreamerEnv

import tritonrl.modules as ours

STATE, BELIEF, EMBEDDING, ACTION = 3, 8, 5, 2


def prior(modules: Any) -> TensorDictModule:
    torch.manual_seed(0)
    net = modules.RSSMPrior(Bounded(-1, 1, (ACTION,)), 8, BELIEF, STATE, action_dim=ACTION)
    keys = [("next", "prior_mean"), ("next", "prior_std"), "_", ("next", "belief")]
    return TensorDictModule(net, ["state", "belief", "action"], keys)


def posterior(modules: Any) -> TensorDictModule:
    torch.manual_seed(1)
    net = modules.RSSMPosterior(8, STATE, rnn_hidden_dim=BELIEF, obs_embed_dim=EMBEDDING)
    keys = [("next", "posterior_mean"), ("next", "posterior_std"), ("next", "state")]
    return TensorDictModule(net, [("next", "belief"), ("next", "encoded_latents")], keys)


def sequences(batch: int = 4, steps: int = 7) -> TensorDict:
    torch.manual_seed(2)
    shape = (batch, steps)
    data = {"state": torch.zeros(*shape, STATE), "belief": torch.zeros(*shape, BELIEF)}
    data["action"] = torch.randn(*shape, ACTION)
    return TensorDict({**data, "next": TensorDict({"encoded_latents": torch.randn(*shape, EMBEDDING)}, shape)}, shape)


def world_model(modules: Any) -> Any:
    torch.manual_seed(0)
    net = modules.RSSMPrior(Bounded(-1, 1, (ACTION,)), 8, BELIEF, STATE, action_dim=ACTION)
    transition = TensorDictModule(net, ["state", "belief", "action"], ["_", "_", "state", "belief"])
    reward = TensorDictModule(modules.MLP(STATE + BELIEF, 1, num_cells=[8]), ["state", "belief"], ["reward"])
    return modules.WorldModelWrapper(transition, reward)


def policy(modules: Any) -> Any:
    torch.manual_seed(3)
    net = nn.Sequential(modules.MLP(STATE + BELIEF, 2 * ACTION, num_cells=[8]), NormalParamExtractor())

    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, state: torch.Tensor, belief: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.net(torch.cat([state, belief], -1))

    module = TensorDictModule(Policy(), ["state", "belief"], ["loc", "scale"])
    return modules.ProbabilisticActor(module, in_keys=["loc", "scale"], distribution_class=modules.TanhNormal)


def start(batch: int = 5) -> TensorDict:
    torch.manual_seed(4)
    return TensorDict({"state": torch.randn(batch, STATE), "belief": torch.randn(batch, BELIEF)}, [batch])


@pytest.mark.parametrize("part", ["prior", "posterior"])
def test_prior_and_posterior_have_the_parameters_and_numbers_of_torchrl(part: str) -> None:
    nets = [{"prior": prior, "posterior": posterior}[part](modules).module for modules in (ours, theirs)]
    nets[1].load_state_dict(nets[0].state_dict())
    sizes = [STATE, BELIEF, ACTION] if part == "prior" else [BELIEF, EMBEDDING]
    inputs = [torch.randn(6, size) for size in sizes]
    outs = []
    for net in nets:
        torch.manual_seed(5)
        outs.append(net(*inputs))
    torch.testing.assert_close(outs[0], outs[1])
    noise = torch.zeros(6, STATE)
    torch.testing.assert_close(nets[0](*inputs, noise=noise)[2], nets[0](*inputs)[0])


def test_the_belief_may_be_of_another_size_than_the_hidden_layer_and_the_batch_of_any_shape() -> None:
    net = ours.RSSMPrior(action_dim=ACTION, hidden_dim=6, rnn_hidden_dim=BELIEF, state_dim=STATE)
    for batch in ((), (5,), (4, 5)):
        out = net(torch.zeros(*batch, STATE), torch.zeros(*batch, BELIEF), torch.zeros(*batch, ACTION))
        assert [part.shape for part in out] == [(*batch, STATE)] * 3 + [(*batch, BELIEF)]
    with pytest.raises(ValueError, match="action_dim"):
        ours.RSSMPrior()


def test_a_rollout_along_data_is_that_of_torchrl() -> None:
    outs, rollouts = [], []
    for modules in (ours, theirs):
        rollouts.append(modules.RSSMRollout(prior(modules), posterior(modules)))
        rollouts[-1].load_state_dict(rollouts[0].state_dict())
        torch.manual_seed(6)
        data = sequences()
        outs.append(rollouts[-1](data))
        assert data.get(("next", "prior_mean"), None) is None
    assert set(rollouts[0].in_keys) == set(rollouts[1].in_keys) and rollouts[0].out_keys == rollouts[1].out_keys
    assert set(outs[0].keys(True, True)) == set(outs[1].keys(True, True))
    assert outs[0].batch_size == outs[1].batch_size
    for key, value in outs[0].items(True, True):
        torch.testing.assert_close(value, outs[1][key], rtol=1e-5, atol=1e-6)


def test_states_are_carried_from_step_to_step_with_their_gradient() -> None:
    rollout = ours.RSSMRollout(prior(ours), posterior(ours))
    data = sequences()
    data["state"].requires_grad_()
    out = rollout(data)
    torch.testing.assert_close(out["belief"][:, 1:], out["next", "belief"][:, :-1])
    (gradient,) = torch.autograd.grad(out["next", "posterior_mean"][:, -1].sum(), data["state"])
    assert gradient[:, 0].abs().max() > 0 and gradient[:, 1:].abs().max() == 0


def test_at_the_first_step_of_a_trajectory_its_own_state_is_read() -> None:
    data = sequences()
    is_init = torch.zeros(4, 7, 1, dtype=torch.bool)
    is_init[:, 3] = True
    data["is_init"] = is_init
    rollout = ours.RSSMRollout(prior(ours), posterior(ours), is_init_key="is_init")
    torch.manual_seed(7)
    out = rollout(data)
    assert not out["belief"][:, 3].any() and bool(out["belief"][:, 4].any())
    torch.manual_seed(7)
    rollout(data[:, :3])  # Draws what the first three steps drew.
    alone = rollout(data[:, 3:])
    torch.testing.assert_close(out["next", "state"][:, 3:], alone["next", "state"])


def dreamer_env() -> DreamerEnv:
    env = DreamerEnv(world_model(theirs), prior_shape=(STATE,), belief_shape=(BELIEF,))
    env.observation_spec = Composite(state=Unbounded((STATE,)), belief=Unbounded((BELIEF,)))
    env.state_spec = env.observation_spec.clone()
    env.action_spec = Unbounded((ACTION,))
    env.reward_spec = Unbounded((1,))
    return env


def test_imagined_trajectories_are_those_of_torchrl() -> None:
    imagined, dreamed = ours.ImaginationEnv(world_model(ours)), dreamer_env()
    dreamed.world_model.load_state_dict(imagined.world_model.state_dict())
    ours_policy, theirs_policy = policy(ours), policy(theirs)
    theirs_policy.load_state_dict(ours_policy.state_dict())
    outs = []
    with set_interaction_type(InteractionType.RANDOM):
        for env, actor in ((imagined, ours_policy), (dreamed, theirs_policy)):
            torch.manual_seed(8)
            data = env.reset(start())
            outs.append(env.rollout(max_steps=6, policy=actor, auto_reset=False, tensordict=data))
    assert outs[0].batch_size == outs[1].batch_size == (5, 6)
    assert outs[0].names[-1] == outs[1].names[-1] == "time"
    keys = ["state", "belief", "action", "loc", "scale"]
    nested = [("next", key) for key in ("state", "belief", "reward", "done", "terminated")]
    for key in [*keys, *nested]:
        torch.testing.assert_close(outs[0][key], outs[1][key], rtol=1e-5, atol=1e-5)


def test_the_reward_carries_gradient_to_policy_and_model_and_the_start_is_not_written_to() -> None:
    env, actor, begin = ours.ImaginationEnv(world_model(ours)), policy(ours), start()
    with set_interaction_type(InteractionType.RANDOM):
        data = env.rollout(4, actor, tensordict=begin)
    data["next", "reward"][:, -1].sum().backward()
    for name, parameter in [*actor.named_parameters(), *env.named_parameters()]:
        if "prior_projector" not in name or parameter.grad is not None:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert set(begin.keys()) == {"state", "belief"}
    torch.testing.assert_close(data["belief"][:, 1:], data["next", "belief"][:, :-1])


def test_an_imagined_end_is_passed_on() -> None:
    class Ending(nn.Module):
        def forward(self, state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
            new = state + action
            return new, new.sum(-1, True), new.sum(-1, True) > 2

    model = TensorDictModule(Ending(), ["state", "action"], ["state", "reward", "terminated"])
    env = ours.ImaginationEnv(model, state_keys=["state"])
    actor = TensorDictModule(torch.ones_like, ["state"], ["action"])
    data = env.rollout(3, actor, tensordict=TensorDict({"state": torch.zeros(2, 1)}, [2]))
    assert data["next", "terminated"][0, :, 0].tolist() == [False, False, True]
    torch.testing.assert_close(data["next", "done"], data["next", "terminated"])


def test_bad_arguments_are_named() -> None:
    model = TensorDictModule(nn.Linear(3, 3), ["state"], ["state"])
    with pytest.raises(ValueError, match="belief"):
        ours.ImaginationEnv(model)
    env = ours.ImaginationEnv(world_model(ours))
    with pytest.raises(KeyError, match="belief"):
        env.reset(start().exclude("belief"))
    with pytest.raises(ValueError, match="max_steps must be positive, got 0"):
        env.rollout(0, policy(ours), tensordict=start())


def test_imagination_and_rollout_compile_whole() -> None:
    env, actor = ours.ImaginationEnv(world_model(ours)), policy(ours)
    along = ours.RSSMRollout(prior(ours), posterior(ours))

    def imagine(begin: TensorDict) -> torch.Tensor:
        with set_interaction_type(InteractionType.DETERMINISTIC):
            return env.rollout(3, actor, tensordict=begin)["next", "reward"]

    def follow(data: TensorDict) -> torch.Tensor:
        return along(data)["next", "posterior_mean"]

    for function, data in ((imagine, start()), (follow, sequences(steps=3))):
        torch._dynamo.reset()
        # Not aot_eager: it drops the samples of the prior that nobody reads, and with them the order of the draws.
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        torch.manual_seed(9)
        expected = function(data)
        torch.manual_seed(9)
        torch.testing.assert_close(compiled(data), expected, rtol=1e-5, atol=1e-5)
