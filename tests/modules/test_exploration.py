"""Exploration: how often actions are replaced, by what, and how noise is annealed."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import torchrl.modules as theirs
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type
from torchrl.data import Bounded, Categorical, OneHot

from tritonrl.modules import AdditiveGaussianModule, EGreedyModule


@pytest.mark.parametrize("spec", [OneHot(3), Categorical(3)])
def test_epsilon_is_annealed_as_in_torchrl(spec: Any) -> None:
    options = {"eps_init": 0.8, "eps_end": 0.2, "annealing_num_steps": 10}
    mine, reference = EGreedyModule(spec, **options), theirs.EGreedyModule(spec, **options)
    for frames in (1, 3, 2, 100):
        mine.step(frames)
        reference.step(frames)
        torch.testing.assert_close(mine.eps, reference.eps)
    assert mine.in_keys == reference.in_keys and mine.out_keys == reference.out_keys


def test_the_share_of_replaced_actions_is_epsilon_and_they_are_uniform() -> None:
    explore = EGreedyModule(action_space="categorical", num_actions=5, eps_init=0.5, eps_end=0.1)
    action = explore(TensorDict({"action": torch.zeros(40_000, dtype=torch.long)}, [40_000]))["action"]
    shares = action.bincount(minlength=5) / action.numel()
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1]), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("options", "action"),
    [
        ({"action_space": "one-hot"}, torch.eye(4, dtype=torch.long)[:1].expand(500, 4)),
        ({"action_space": "mult-one-hot", "var_nums": [1, 3]}, torch.tensor([1, 1, 0, 0]).expand(500, 4)),
        ({"action_space": "binary"}, torch.zeros(500, 4, dtype=torch.bool)),
        ({"action_space": "multi_categorical", "var_nums": [1, 3]}, torch.zeros(500, 2, dtype=torch.long)),
        ({"spec": gymnasium.spaces.Discrete(4)}, torch.zeros(500, dtype=torch.long)),
        ({"spec": gymnasium.spaces.MultiDiscrete([1, 3])}, torch.zeros(500, 2, dtype=torch.long)),
    ],
)
def test_random_actions_are_actions_of_the_space_in_its_type(options: dict[str, Any], action: torch.Tensor) -> None:
    explored = EGreedyModule(eps_init=1.0, **options)(TensorDict({"action": action}, [500]))["action"]
    assert explored.dtype == action.dtype and explored.shape == action.shape
    kinds = explored.unique(dim=0)
    space = options.get("action_space", "")
    if space == "one-hot":
        assert len(kinds) == 4 and bool((kinds.sum(-1) == 1).all())
    elif space == "mult-one-hot":
        assert len(kinds) == 3 and bool((kinds[:, 0] == 1).all()) and bool((kinds[:, 1:].sum(-1) == 1).all())
    elif space == "binary":
        assert len(kinds) == 16
    elif explored.ndim == 2:
        assert kinds.tolist() == [[0, 0], [0, 1], [0, 2]]
    else:
        assert kinds.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("space", ["categorical", "one_hot"])
def test_forbidden_actions_are_not_drawn(space: str) -> None:
    mask = torch.tensor([True, False, True, False]).expand(500, 4)
    action = torch.zeros(500, dtype=torch.long)
    action = torch.nn.functional.one_hot(action, 4) if space == "one_hot" else action
    explore = EGreedyModule(action_space=space, action_mask_key="mask", eps_init=1.0)
    explored = explore(TensorDict({"action": action, "mask": mask}, [500]))["action"]
    index = explored.argmax(-1) if space == "one_hot" else explored
    assert index.unique().tolist() == [0, 2]


def test_an_index_may_have_a_dimension_of_its_own() -> None:
    data = TensorDict(
        {"action": torch.zeros(500, 1, dtype=torch.long), "mask": torch.ones(500, 3, dtype=torch.bool)}, [500]
    )
    for options in ({"num_actions": 3}, {"action_mask_key": "mask"}):
        explored = EGreedyModule(action_space="categorical", eps_init=1.0, **options)(data.clone())["action"]
        assert explored.shape == (500, 1) and explored.unique().tolist() == [0, 1, 2]


def test_a_mask_of_another_batch_is_refused() -> None:
    data = TensorDict(
        {"action": torch.zeros(4, dtype=torch.long), "other": {"mask": torch.ones(3, dtype=torch.bool)}}, []
    )
    explore = EGreedyModule(action_space="categorical", action_mask_key=("other", "mask"))
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        explore(data)


def test_exploration_compiles_whole() -> None:
    egreedy = EGreedyModule(action_space="one_hot", eps_init=0.5)
    gaussian = AdditiveGaussianModule(low=-1.0, high=1.0, action_key="move")

    def explore(data: TensorDict) -> TensorDict:
        return gaussian(egreedy(data))

    compiled = torch.compile(explore, fullgraph=True, backend="eager")
    data = TensorDict({"action": torch.eye(4, dtype=torch.long)[:1].expand(9, 4), "move": torch.zeros(9, 2)}, [9])
    outs = []
    for function in (explore, compiled):
        torch.manual_seed(1)
        outs.append(function(data.clone()))
    torch.testing.assert_close(outs[1].to_dict(), outs[0].to_dict())


@pytest.mark.parametrize("mode", [InteractionType.DETERMINISTIC, InteractionType.MODE])
def test_nothing_is_explored_where_deterministic_actions_are_asked_for(mode: InteractionType) -> None:
    data = TensorDict({"action": torch.zeros(50, 2)}, [50])
    with set_interaction_type(mode):
        EGreedyModule(action_space="one_hot", eps_init=1.0)(data)
        AdditiveGaussianModule()(data)
    assert not data["action"].any()


def test_gaussian_noise_has_the_annealed_spread_and_the_bounds() -> None:
    options = {"sigma_init": 0.5, "sigma_end": 0.1, "annealing_num_steps": 4}
    mine, reference = AdditiveGaussianModule(**options), theirs.AdditiveGaussianModule(Bounded(-1, 1, (2,)), **options)
    for frames in (1, 2, 9):
        mine.step(frames)
        reference.step(frames)
        torch.testing.assert_close(mine.sigma, reference.sigma)
    noise = mine(TensorDict({"action": torch.zeros(50_000, 2)}, [50_000]))["action"]
    torch.testing.assert_close(noise.std(0), torch.full((2,), 0.1), rtol=0.02, atol=0)


@pytest.mark.parametrize(
    "bounds",
    [
        {"spec": Bounded(torch.tensor([-1.0, -3.0]), torch.tensor([1.0, 2.0]), (2,))},
        {"spec": gymnasium.spaces.Box(np.array([-1.0, -3.0], np.float32), np.array([1.0, 2.0], np.float32))},
        {"low": torch.tensor([-1.0, -3.0]), "high": torch.tensor([1.0, 2.0])},
    ],
)
def test_noisy_actions_stay_within_the_bounds(bounds: dict[str, Any]) -> None:
    explore = AdditiveGaussianModule(sigma_init=20.0, **bounds)
    action = explore(TensorDict({"action": torch.zeros(200, 2)}, [200]))["action"]
    torch.testing.assert_close(action.amin(0), torch.tensor([-1.0, -3.0]))
    torch.testing.assert_close(action.amax(0), torch.tensor([1.0, 2.0]))


def test_the_state_of_the_annealing_can_be_saved() -> None:
    explore = EGreedyModule(action_space="one_hot")
    explore.step(100)
    fresh = EGreedyModule(action_space="one_hot")
    fresh.load_state_dict(explore.state_dict())
    torch.testing.assert_close(fresh.eps, explore.eps)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="one of spec and action_space"):
        EGreedyModule()
    with pytest.raises(ValueError, match="num_actions"):
        EGreedyModule(action_space="categorical")
    with pytest.raises(ValueError, match=r"eps_init 0\.1 must not be below eps_end 0\.2"):
        EGreedyModule(action_space="one_hot", eps_init=0.1, eps_end=0.2)
    with pytest.raises(ValueError, match="annealing_num_steps"):
        AdditiveGaussianModule(annealing_num_steps=0)
    with pytest.raises(ValueError, match="together"):
        AdditiveGaussianModule(low=-1.0)
    with pytest.raises(ValueError, match="twice"):
        AdditiveGaussianModule(Bounded(-1, 1, (2,)), low=-1.0, high=1.0)
    with pytest.raises(RuntimeError, match="strictly greater"):
        AdditiveGaussianModule(low=1.0, high=-1.0)
