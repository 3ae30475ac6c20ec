"""Names of action spaces, from names, specs of TorchRL and spaces of Gymnasium."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest
import torch
from torchrl.data import Binary, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot
from torchrl.data.utils import _find_action_space

from tritonrl.modules.action_space import ACTION_SPACES, action_space_name, action_space_sizes

SPECS = [
    (OneHot(3), "one_hot", None),
    (OneHot(3, shape=(4, 3)), "one_hot", None),
    (MultiOneHot([2, 3]), "mult_one_hot", (2, 3)),
    (Categorical(3), "categorical", None),
    (MultiCategorical([2, 3]), "multi_categorical", (2, 3)),
    (MultiCategorical([2, 3], shape=(4, 2)), "multi_categorical", (2, 3)),
    (Binary(3), "binary", None),
    (gymnasium.spaces.Discrete(3), "categorical", None),
    (gymnasium.spaces.MultiDiscrete([2, 3]), "multi_categorical", (2, 3)),
    (gymnasium.spaces.MultiBinary(3), "binary", None),
]


@pytest.mark.parametrize("name", ACTION_SPACES)
@pytest.mark.parametrize("separator", ["_", "-"])
def test_names_are_known_with_hyphens_and_underscores(name: str, separator: str) -> None:
    assert action_space_name(name.replace("_", separator)) == name


@pytest.mark.parametrize(
    "name", ["one-hot", "one_hot", "mult-one-hot", "multi-one-hot", "multi_one_hot", "binary", "categorical"]
)
def test_the_names_that_torchrl_knows_mean_the_same(name: str) -> None:
    assert action_space_name(name) == _find_action_space(name)


@pytest.mark.parametrize(("spec", "name", "sizes"), SPECS)
def test_specs_and_spaces_tell_their_encoding_and_their_parts(
    spec: Any, name: str, sizes: tuple[int, ...] | None
) -> None:
    assert action_space_name(spec) == name
    assert action_space_sizes(spec) == sizes


@pytest.mark.parametrize(("spec", "name", "sizes"), SPECS[:1] + SPECS[2:5] + SPECS[6:7])
def test_a_container_holds_the_action_under_its_key(spec: Any, name: str, sizes: tuple[int, ...] | None) -> None:
    container = Composite(agents=Composite(action=spec, reward=OneHot(2)), action=Binary(2))
    assert action_space_name(container, ("agents", "action")) == name
    assert action_space_sizes(container, ("agents", "action")) == sizes
    assert action_space_name(container) == "binary"


def test_a_container_with_one_entry_needs_no_key() -> None:
    assert action_space_name(Composite(move=OneHot(3), other=None)) == "one_hot"
    assert action_space_name(gymnasium.spaces.Dict({"move": gymnasium.spaces.Discrete(2)})) == "categorical"


def test_a_container_without_the_action_is_an_error_that_lists_its_entries() -> None:
    with pytest.raises(KeyError, match=r"'action' is not in the spec, which has the entries \['a', 'b'\]"):
        action_space_name(Composite(a=OneHot(3), b=OneHot(3)))


@pytest.mark.parametrize("given", ["foo", "onehot", None, torch.ones(2), gymnasium.spaces.Box(0, 1, (2,))])
def test_anything_else_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="action_space must be one of"):
        action_space_name(given)


@pytest.mark.parametrize(
    "space", [gymnasium.spaces.Discrete(3, start=1), gymnasium.spaces.MultiDiscrete([2, 3], start=[0, 1])]
)
def test_a_space_that_does_not_count_from_zero_is_refused(space: Any) -> None:
    with pytest.raises(ValueError, match="count its actions from 0"):
        action_space_name(space)


def test_a_name_does_not_tell_the_number_of_choices() -> None:
    assert action_space_sizes("multi_categorical") is None
    assert action_space_sizes(None) is None
