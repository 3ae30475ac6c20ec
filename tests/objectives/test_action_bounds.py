"""action_bounds: which forms it takes, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.data import Bounded, Composite, Unbounded

from tritonrl.objectives.action_bounds import action_bounds

LOW, HIGH = [-1.0, 0.0, -2.0], [1.0, 3.0, 2.0]


def leaf(*batch: int) -> Bounded:
    return Bounded(torch.tensor(LOW).expand(*batch, 3), torch.tensor(HIGH).expand(*batch, 3), (*batch, 3))


FORMS: dict[str, dict[str, Any]] = {
    "lists": {"bounds": (LOW, HIGH)},
    "arrays": {"bounds": (np.array(LOW, dtype=np.float32), np.array(HIGH, dtype=np.float32))},
    "tensors": {"bounds": (torch.tensor(LOW), torch.tensor(HIGH))},
    "spec": {"action_spec": leaf()},
    "box": {"action_spec": gymnasium.spaces.Box(np.float32(LOW), np.float32(HIGH))},
    "space of a dict": {
        "action_spec": gymnasium.spaces.Dict(action=gymnasium.spaces.Box(np.float32(LOW), np.float32(HIGH)))
    },
    "composite": {"action_spec": Composite(action=leaf())},
    "batched composite": {"action_spec": Composite(action=leaf(4, 2), shape=(4, 2))},
    "nested composite": {
        "action_spec": Composite(agents=Composite(action=leaf(4), shape=(4,))),
        "action_key": ("agents", "action"),
    },
}


@pytest.mark.parametrize("arguments", FORMS.values(), ids=FORMS)
def test_every_form_says_the_same(arguments: dict[str, Any]) -> None:
    bounds = action_bounds(**arguments)
    assert (bounds.low.tolist(), bounds.high.tolist()) == (LOW, HIGH)
    assert bounds.low.dtype == torch.float32


def test_two_numbers_are_enough_and_integers_do_not_stay_integers() -> None:
    low, high = action_bounds(bounds=(-1, 2))
    assert (low.shape, low.dtype, float(low), float(high)) == (torch.Size([]), torch.float32, -1.0, 2.0)


def test_a_bound_on_one_side_is_enough() -> None:
    low, high = action_bounds(gymnasium.spaces.Box(np.float32(0), np.float32(math.inf), (2,)))
    assert low.tolist() == [0, 0]
    assert high.isinf().all()


def test_the_bounds_are_a_copy() -> None:
    given = torch.zeros(3)
    low, _ = action_bounds(bounds=(given, torch.ones(3)))
    given.fill_(7.0)
    assert low.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, "must be provided"),
        ({"bounds": (-1, 1), "action_spec": leaf()}, "must be provided"),
        ({"bounds": (1, -1)}, "higher than"),
        ({"bounds": ([0.0, 2.0], [1.0, 1.0])}, "higher than"),
        ({"bounds": 3.0}, "must be a pair"),
        ({"bounds": (1, 2, 3)}, "must be a pair"),
        ({"action_spec": Unbounded((3,))}, "not of type Bounded"),
        ({"action_spec": Composite(action=Unbounded((3,)))}, "not of type Bounded"),
        ({"action_spec": gymnasium.spaces.Discrete(3)}, "not of type Bounded"),
    ],
    ids=str,
)
def test_what_gives_no_bounds_is_refused(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        action_bounds(**arguments)


def test_a_container_without_the_action_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="'action'"):
        action_bounds(Composite(other=leaf()))
