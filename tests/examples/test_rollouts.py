"""Environments side by side, and the rollouts they are collected into."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict.nn import TensorDictModule

from tritonrl.objectives.value import GAE


class Policy:
    """A stand-in for the actor that takes the given action of each step in every environment."""

    def __init__(self, actions: list[int], num_envs: int) -> None:
        self.actions, self.num_envs = iter(actions), num_envs

    def get_dist(self, row: Any) -> Policy:
        return self

    def sample(self) -> torch.Tensor:
        return torch.full((self.num_envs,), next(self.actions))

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        return torch.full((self.num_envs,), -0.5)


def make_environments(common: Any, env_id: str, num_envs: int) -> Any:
    environments = common.Environments(common.make_envs(common.Parser(), env_id, num_envs), exact=True)
    environments.reset(0)
    return environments


def corridor(common: Any, actions: list[int], num_envs: int) -> Any:
    environments = make_environments(common, "tritonrl/Corridor-v0", num_envs)
    collector = common.Collector(environments, len(actions), 1.0, "cpu")
    collector.collect(Policy(actions, num_envs))
    return collector


def test_a_truncated_step_leads_to_the_true_final_observation(common: Any) -> None:
    """Time limit 3. Action 0 of the policy is action -1 of the environment, which terminates."""
    collector = corridor(common, [1, 2, 1, 1, 0, 2, 1], 2)
    data = collector.data
    for n in range(2):
        assert data["observation"][:, n, 0].tolist() == [0, 1, 2, 0, 1, 0, 1]
        assert data["next", "observation"][:, n, 0].tolist() == [1, 2, 3, 1, 2, 1, 2]
        assert data["next", "done"][:, n, 0].tolist() == [False, False, True, False, True, False, False]
        assert data["next", "terminated"][:, n, 0].tolist() == [False, False, False, False, True, False, False]
    assert list(collector.environments.finished) == [3, 3, 2, 2] and collector.environments.episodes == 4
    assert collector.environments.returns.tolist() == [2, 2]


def test_a_truncated_step_bootstraps_from_the_true_final_observation(common: Any) -> None:
    data = corridor(common, [1, 2, 1, 1, 0, 2, 1], 3).data
    value = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(value.weight, 10.0)  # V(s) = 10 * steps + 1
    torch.nn.init.ones_(value.bias)
    critic = TensorDictModule(value, ["observation"], ["state_value"])
    GAE(gamma=0.5, lmbda=0.0, value_network=critic, time_dim=0)(data)
    # r + gamma V(s') - V(s), worked out by hand; step 2 is truncated at V = 31, step 4 terminated.
    expected = [1 + 5.5 - 1, 1 + 10.5 - 11, 1 + 15.5 - 21, 1 + 5.5 - 1, 1 - 11, 1 + 5.5 - 1, 1 + 10.5 - 11]
    torch.testing.assert_close(data["advantage"], torch.tensor(expected).view(7, 1, 1).expand(7, 3, 1))


def test_a_rollout_is_time_first_contiguous_and_stays_in_one_place(common: Any) -> None:
    environments = make_environments(common, "CartPole-v1", 5)
    actor, critic = common.make_actor(environments, 8), common.make_critic(environments, 8)
    collector = common.Collector(environments, 7, 0.5, "cpu")
    first = collector.collect(actor)
    keys = ["observation", "action", "action_log_prob"]
    keys += [("next", name) for name in ("observation", "reward", "done", "terminated")]
    places = [first[key].data_ptr() for key in keys]
    assert all(first[key].is_contiguous() and first[key].shape[:2] == (7, 5) for key in keys)
    assert len(set(places)) == len(places)
    critic(first)
    second = collector.collect(actor)
    assert [second[key].data_ptr() for key in keys] == places
    assert "state_value" in first and "state_value" not in second
    assert second["next", "reward"].eq(0.5).all()
    # A step goes on where the one before it ended, unless it ended an episode.
    goes_on = ~second["next", "done"][:-1, :, 0]
    assert second["observation"][1:][goes_on].equal(second["next", "observation"][:-1][goes_on])


def test_stored_log_probabilities_are_those_of_the_stored_actions(common: Any) -> None:
    for env_id, shape in (("CartPole-v1", (6, 3)), ("Pendulum-v1", (6, 3, 1)), ("tritonrl/Unbounded-v0", (6, 3, 3))):
        environments = make_environments(common, env_id, 3)
        actor = common.make_actor(environments, 8)
        collector = common.Collector(environments, 6, 1.0, "cpu")
        data = collector.collect(actor)
        assert data["action"].shape == shape
        expected = actor.get_dist(data.clone()).log_prob(data["action"])
        torch.testing.assert_close(data["action_log_prob"], expected)


def test_box_actions_span_a_bounded_range_and_are_clipped_to_it(common: Any) -> None:
    environments = make_environments(common, "Pendulum-v1", 5)
    sent = environments.to_env(torch.tensor([[-3.0], [-1.0], [0.25], [1.0], [7.0]]))
    assert sent.dtype == np.float32 and sent[:, 0].tolist() == [-2, -2, 0.5, 2, 2]
    environments = make_environments(common, "tritonrl/Unbounded-v0", 2)
    sent = environments.to_env(torch.tensor([[-30.0, -3.0, -1.0], [50.0, 5.0, 0.0]]))
    assert sent.tolist() == [[-30, 0, 10], [50, 5, 15]]


def test_discrete_actions_start_where_the_space_starts(common: Any) -> None:
    environments = make_environments(common, "tritonrl/Corridor-v0", 3)
    assert environments.to_env(torch.tensor([0, 1, 2])).tolist() == [-1, 0, 1]
