"""CartPole for two: pushes add up, each agent sees its half, and otherwise it is Gymnasium's CartPole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env


@pytest.fixture
def cart(script: Callable[[str], Any]) -> gym.Env:
    return script("shared_cart").SharedCartPole()


def test_it_is_a_gymnasium_environment(cart: gym.Env) -> None:
    check_env(cart, skip_render_check=True)


def test_two_agents_that_agree_move_the_cart_as_one_would(cart: gym.Env) -> None:
    alone = gym.make("CartPole-v1")
    seen, _ = cart.reset(seed=3)
    state, _ = alone.reset(seed=3)
    assert seen[0, 2:4].tolist() == state[:2].tolist() and seen[1, 4:].tolist() == state[2:].tolist()
    for t in range(40):
        action = int(t % 3 == 0)
        seen, *outcome = cart.step(np.array([action, action]))
        state, *expected = alone.step(action)
        np.testing.assert_array_equal(seen[0, 2:4], state[:2])
        np.testing.assert_array_equal(seen[1, 4:], state[2:])
        assert outcome == expected
        if outcome[1]:
            break
    assert outcome[1]  # so the end was compared too


def test_opposite_pushes_cancel(cart: gym.Env) -> None:
    """Without a force the velocities after one step do not depend on who pushes where."""
    results = []
    for action in ([0, 1], [1, 0]):
        cart.reset(seed=1)
        results.append(cart.step(np.array(action))[0])
    np.testing.assert_array_equal(*results)
    cart.reset(seed=1)
    left, _ = cart.step(np.array([0, 0]))[:2]
    cart.reset(seed=1)
    right, _ = cart.step(np.array([1, 1]))[:2]
    assert left[0, 3] < results[0][0, 3] < right[0, 3]
    assert results[0][0, 3] == pytest.approx(
        (left[0, 3] + right[0, 3]) / 2, abs=1e-6
    )  # acceleration is linear in force


def test_what_an_agent_does_not_see_is_zero(cart: gym.Env) -> None:
    seen, _ = cart.reset(seed=0)
    assert seen.shape == (2, 6) and cart.observation_space.contains(seen)
    assert seen[:, :2].tolist() == [[1, 0], [0, 1]]
    assert not seen[0, 4:].any() and not seen[1, 2:4].any()
    assert seen[0, 2:4].all() and seen[1, 4:].all()


def test_its_state_survives_pickling(script: Callable[[str], Any], common: Any) -> None:
    env_id = script("shared_cart").ENV_ID
    assert common.pickles_exactly(env_id, script("ppo_multiagent").make_team_env)
