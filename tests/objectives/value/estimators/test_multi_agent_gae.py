"""MultiAgentGAE: every agent by itself is GAE, team signals count for all, parity with TorchRL, errors, compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor

from tritonrl.objectives.value import GAE, MultiAgentGAE

Rollouts = Callable[..., TensorDict]
AGENTS = 4


@pytest.fixture
def team_critic(critic: TensorDictModule) -> TensorDictModule:
    """The same network for each agent."""
    return TensorDictModule(critic.module, in_keys=[("agents", "obs")], out_keys=[("agents", "value")])


@pytest.fixture
def make_team(make_rollout: Rollouts) -> Rollouts:
    """Rollouts with observations of each agent and reward and flags of the team."""

    def make(*batch: int, **options: Any) -> TensorDict:
        td = make_rollout(*batch, **options)
        for side in ((), ("next",)):
            obs = td[(*side, "obs")]
            del td[(*side, "obs")]
            shift = torch.arange(AGENTS, dtype=obs.dtype).view(AGENTS, 1)
            td[(*side, "agents", "obs")] = obs.unsqueeze(-2) * (1 + shift) - 0.5 * shift
        return td

    return make


def magae(critic: TensorDictModule | None, cls: Any = MultiAgentGAE, **options: Any) -> Any:
    estimator = cls(**{"gamma": 0.95, "lmbda": 0.9, "value_network": critic, **options})
    estimator.set_keys(value=("agents", "value"))
    return estimator


def of_agent(td: TensorDict, agent: int) -> TensorDict:
    """What one agent sees of a rollout."""
    single = td.exclude("agents", ("next", "agents"))
    single["obs"], single["next", "obs"] = (
        td["agents", "obs"][..., agent, :],
        td["next", "agents", "obs"][..., agent, :],
    )
    return single


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "average_gae": {"average_gae": True},
    "groups": {"average_gae": True, "group_key": "task"},
    "auto_reset_env": {"auto_reset_env": True},
    "shifted": {"shifted": True, "shifted_budget": 2, "average_gae": True},
    "time first": {"time_dim": 0},
    "chunks": {"num_chunks": 2},
    "tensor coefficients": {"gamma": torch.tensor(0.9), "lmbda": torch.tensor(0.7)},
}


@pytest.mark.parametrize("name", [*OPTIONS, "padded"])
def test_each_agent_gets_the_gae_that_it_would_get_alone(
    name: str, critic: TensorDictModule, team_critic: TensorDictModule, make_team: Rollouts
) -> None:
    td = make_team(5, 7)
    td["task"] = torch.arange(35).view(5, 7) % 3
    td["mask"] = torch.arange(7) < torch.tensor([7, 2, 5, 1, 7]).unsqueeze(-1)
    options = OPTIONS.get(name, {"valid_key": "mask", "average_gae": True})
    out = magae(team_critic, **options)(td.clone())
    assert out["advantage"].shape == out["value_target"].shape == (5, 7, AGENTS, 1)
    alone = GAE(**{"gamma": 0.95, "lmbda": 0.9, "value_network": critic, **options})
    for agent in range(AGENTS):
        expected = alone(of_agent(td, agent))
        for key in ("advantage", "value_target"):
            torch.testing.assert_close(out[key][:, :, agent], expected[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trailing", [(), (1,)])
def test_steps_of_several_environment_steps_count_for_every_agent(
    trailing: tuple[int, ...], critic: TensorDictModule, team_critic: TensorDictModule, make_team: Rollouts
) -> None:
    # TorchRL broadcasts gamma^n against the wrong dimensions: an error, or wrong numbers where the sizes allow it.
    td = make_team(5, 7)
    td["steps_to_next_obs"] = torch.randint(1, 4, (5, 7, *trailing))
    out = magae(team_critic)(td.clone())
    alone = GAE(gamma=0.95, lmbda=0.9, value_network=critic)
    for agent in range(AGENTS):
        torch.testing.assert_close(out["advantage"][:, :, agent], alone(of_agent(td, agent))["advantage"])


@pytest.mark.parametrize("name", ["reward", "done", "terminated", "truncated", "all"])
def test_a_signal_of_each_agent_is_taken_as_it_is(
    name: str, team_critic: TensorDictModule, make_team: Rollouts
) -> None:
    td = make_team(3, 6)
    estimator = magae(team_critic, auto_reset_env=True)
    expected = estimator(td.clone())
    names = ("reward", "done", "terminated", "truncated") if name == "all" else (name,)
    for key in names:
        td["next", key] = td["next", key].unsqueeze(-2).expand(3, 6, AGENTS, 1).clone()
    assert torch.equal(estimator(td.clone())["advantage"], expected["advantage"])
    if name == "reward":
        td["next", "reward"][:, :, 1] += 1.0
        other = estimator(td)["advantage"] != expected["advantage"]
        assert other.all((0, 1, 3)).tolist() == [False, True, False, False]


def test_the_agents_may_be_another_dimension(make_rollout: Rollouts, critic: TensorDictModule) -> None:
    """Values ``[n, B, T, 1]``, the agents in front, with a team's reward ``[B, T, 1]``."""
    td = make_rollout(3, 5)
    values = torch.randn(2, AGENTS, 3, 5, 1)
    expected = GAE(gamma=0.9, lmbda=0.8, value_network=None)
    each = []
    for value, next_value in zip(*values, strict=True):
        td["state_value"], td["next", "state_value"] = value, next_value
        each.append(expected(td.clone())["advantage"])
    flags = {key: td["next", key].expand(AGENTS, 3, 5, 1) for key in ("done", "terminated")}
    step = {"reward": td["next", "reward"].expand(AGENTS, 3, 5, 1), **flags, "state_value": values[1]}
    stacked = TensorDict({"state_value": values[0], "next": step}, [AGENTS, 3, 5])
    for agent_dim in (0, -4):
        estimator = MultiAgentGAE(gamma=0.9, lmbda=0.8, value_network=None, agent_dim=agent_dim, average_gae=True)
        out = estimator(stacked.clone())["advantage"]
        for ours, single in zip(out, each, strict=True):
            torch.testing.assert_close(ours, (single - single.mean()) / single.std(), rtol=1e-4, atol=1e-5)
    # The same data with the agents last.
    last = TensorDict({}, [3, 5])
    last["state_value"], last["next"] = values[0].movedim(0, -1).squeeze(-2), td["next"].select("reward", "done")
    last["next", "terminated"] = td["next", "terminated"]
    last["next", "state_value"] = values[1].movedim(0, -1).squeeze(-2)
    for key in ("reward", "done", "terminated"):
        last["next", key] = last["next", key].squeeze(-1)
    for agent_dim in (-1, 2):
        estimator = MultiAgentGAE(gamma=0.9, lmbda=0.8, value_network=None, agent_dim=agent_dim)
        out = estimator(last.clone())["advantage"]
        torch.testing.assert_close(out, torch.stack(each, -1).squeeze(-2))


PARITY: dict[str, dict[str, Any]] = OPTIONS | {"agent_dim": {"agent_dim": 2}}


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("name", list(PARITY))
def test_values_gradients_and_keys_are_those_of_torchrl(
    name: str, differentiable: bool, team_critic: TensorDictModule, make_team: Rollouts, quiet_torchrl: Any
) -> None:
    def run(cls: Any) -> tuple[TensorDict, list[Tensor]]:
        td = make_team(4, 9, seed=3)
        td["next", "terminated"][...] = td["next", "terminated"] & (torch.arange(9) < 2).view(1, 9, 1)
        td["task"] = torch.arange(36).view(4, 9) % 3
        leaves = [td["agents", "obs"], td["next", "agents", "obs"], td["next", "reward"]]
        for leaf in leaves:
            leaf.requires_grad_()
        out = magae(team_critic, cls, differentiable=differentiable, **PARITY[name])(td)
        weights = torch.arange(36.0 * AGENTS).view(4, 9, AGENTS, 1) / AGENTS
        loss = (out["advantage"] * weights).sum() + out["value_target"].square().sum()
        if not differentiable:
            assert not loss.requires_grad
            return out.detach(), []
        return out.detach(), list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))

    ours, our_grads = run(MultiAgentGAE)
    theirs, their_grads = run(quiet_torchrl.MultiAgentGAE)
    assert set(ours.keys(True, True)) == set(theirs.keys(True, True))
    for key in theirs.keys(True, True):
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")
    for our, their in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=2e-3)


def test_value_estimate_agrees_with_forward(team_critic: TensorDictModule, make_team: Rollouts) -> None:
    estimator = magae(team_critic, auto_reset_env=True)
    assert torch.equal(estimator.value_estimate(make_team(3, 8)), estimator(make_team(3, 8))["value_target"])


def test_one_agent_is_gae(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    expected = GAE(gamma=0.9, lmbda=0.8, value_network=critic)(make_rollout(3, 6))
    out = MultiAgentGAE(gamma=0.9, lmbda=0.8, value_network=critic)(make_rollout(3, 6))
    assert torch.equal(out["advantage"], expected["advantage"])


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_an_empty_rollout_gives_empty_results(
    shape: tuple[int, int], team_critic: TensorDictModule, make_team: Rollouts
) -> None:
    assert magae(team_critic)(make_team(*shape))["advantage"].shape == (*shape, AGENTS, 1)


@pytest.mark.parametrize(
    ("name", "shape", "error"),
    [
        ("reward", (3, 6), ValueError),
        ("done", (3, 6, 1, 1, 1), ValueError),
        ("terminated", (3, 6, 2), RuntimeError),
        ("reward", (3, 6, 2, 1), RuntimeError),
        ("truncated", (3, 6), ValueError),
        ("truncated", (3, 6, 2, 1), RuntimeError),
    ],
)
def test_a_signal_that_fits_neither_agents_nor_team_is_refused_and_nothing_is_written(
    name: str, shape: tuple[int, ...], error: type[Exception], team_critic: TensorDictModule, make_team: Rollouts
) -> None:
    td = make_team(3, 6)
    td["next", name] = torch.zeros(shape, dtype=td["next", name].dtype)
    before = set(td.keys(True, True))
    with pytest.raises(error, match=rf"'{name}'.*\({', '.join(map(str, shape))}\).*\(3, 6, {AGENTS}, 1\)"):
        magae(team_critic, auto_reset_env=True)(td)
    assert set(td.keys(True, True)) == before


@pytest.mark.parametrize("agent_dim", ["x", 2.0, True, None])
def test_agent_dim_must_be_an_integer(agent_dim: Any) -> None:
    with pytest.raises(TypeError, match="agent_dim must be an integer"):
        magae(None, agent_dim=agent_dim)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agent_dim": 4}, r"agent_dim=4 is no dimension of the value of shape \(3, 6, 4, 1\)"),
        ({"agent_dim": -5}, "agent_dim=-5"),
    ],
)
def test_agent_dim_must_be_a_dimension_of_the_value(
    options: dict[str, Any], message: str, team_critic: TensorDictModule, make_team: Rollouts
) -> None:
    with pytest.raises(ValueError, match=message):
        magae(team_critic, **options)(make_team(3, 6))


def test_standardising_along_time_is_refused(critic: TensorDictModule, make_rollout: Rollouts) -> None:
    td = make_rollout(3, 6)
    estimator = MultiAgentGAE(gamma=0.9, lmbda=0.8, value_network=critic, average_gae=True)
    with pytest.raises(ValueError, match=r"agent_dim=-2 is the time of the value of shape \(3, 6, 1\)"):
        estimator(td)
    assert td.get("advantage", None) is None


def test_forward_compiles_whole_and_once(
    team_critic: TensorDictModule, make_team: Rollouts, no_recompile: None
) -> None:
    options = {"differentiable": True, "average_gae": True, "group_key": "task", "auto_reset_env": True}
    estimator = magae(team_critic, **options)
    whole = torch.compile(estimator, fullgraph=True, backend="eager")

    def run(call: Any, seed: int) -> list[Tensor]:
        td = make_team(3, 7, seed=seed)
        td["task"] = torch.arange(7).expand(3, 7) % 2
        td["agents", "obs"].requires_grad_(estimator.differentiable)
        out = call(td)
        grad = torch.autograd.grad(out["value_target"].square().sum(), td["agents", "obs"])[0]
        return [out["advantage"].detach(), out["value_target"].detach(), grad]

    for gamma, lmbda in ((0.97, 0.9), (0.5, 0.1)):
        estimator.gamma, estimator.lmbda = gamma, lmbda
        for seed in (0, 1):
            for ours, theirs in zip(run(whole, seed), run(estimator, seed), strict=True):
                torch.testing.assert_close(ours, theirs)
