"""The value of the action taken, in every encoding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tritonrl.objectives.chosen_action_value import chosen_action_value, network_action_space

B, SIZES = (3, 5), (2, 3)
N = sum(SIZES)


def encoded(space: str) -> tuple[Tensor, Tensor]:
    """An action, and which of the N values it takes (zeros and ones)."""
    torch.manual_seed(0)
    if space == "binary":
        taken = torch.randint(2, (*B, N))
        return taken, taken
    if space in ("categorical", "one_hot"):
        index = torch.randint(N, B)
        taken = nn.functional.one_hot(index, N)
        return (index if space == "categorical" else taken), taken
    parts = [torch.randint(size, B) for size in SIZES]
    taken = torch.cat([nn.functional.one_hot(part, size) for part, size in zip(parts, SIZES, strict=True)], -1)
    return (torch.stack(parts, -1) if space == "multi_categorical" else taken), taken


SPACES = ["categorical", "one_hot", "mult_one_hot", "binary", "multi_categorical"]


@pytest.mark.parametrize("space", SPACES)
def test_the_values_taken_are_summed_and_get_the_gradient(space: str) -> None:
    action, taken = encoded(space)
    action_value = torch.randn(*B, N, dtype=torch.float64, requires_grad=True)
    chosen = chosen_action_value(action_value, action, space, SIZES)
    expected = [
        [sum(v for v, t in zip(action_value[i, j].tolist(), taken[i, j].tolist(), strict=True) if t) for j in range(5)]
        for i in range(3)
    ]
    torch.testing.assert_close(chosen, torch.tensor(expected, dtype=torch.float64))
    (grad,) = torch.autograd.grad(chosen.sum(), action_value)
    assert torch.equal(grad, taken.double())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("space", SPACES)
def test_actions_not_taken_have_no_influence(space: str, bad: float) -> None:
    action, taken = encoded(space)
    clean = torch.randn(*B, N)
    poisoned = torch.where(taken.bool(), clean, bad).requires_grad_()
    chosen = chosen_action_value(poisoned, action, space, SIZES)
    assert torch.equal(chosen, chosen_action_value(clean, action, space, SIZES))
    (grad,) = torch.autograd.grad(chosen.sum(), poisoned)
    assert torch.equal(grad, taken.to(grad.dtype))


def test_an_index_may_have_a_trailing_dimension() -> None:
    action, _ = encoded("categorical")
    action_value = torch.randn(*B, N)
    with_dim = chosen_action_value(action_value, action.unsqueeze(-1), "categorical")
    assert torch.equal(with_dim, chosen_action_value(action_value, action, "categorical"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integer_is_an_index(dtype: torch.dtype) -> None:
    action, _ = encoded("categorical")
    action_value = torch.randn(*B, N)
    assert torch.equal(
        chosen_action_value(action_value, action.to(dtype), "categorical"),
        chosen_action_value(action_value, action, "categorical"),
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64])
def test_a_one_hot_action_may_have_any_dtype_and_does_not_change_that_of_the_value(dtype: torch.dtype) -> None:
    action, _ = encoded("one_hot")
    action_value = torch.randn(*B, N)
    chosen = chosen_action_value(action_value, action.to(dtype), "one_hot")
    assert chosen.dtype is torch.float32
    assert torch.equal(chosen, chosen_action_value(action_value, action, "one_hot"))


def test_a_fractional_encoding_weighs_the_values() -> None:
    chosen = chosen_action_value(torch.tensor([[2.0, 4.0]]), torch.tensor([[0.25, 0.75]]), "one_hot")
    assert chosen.tolist() == [3.5]


def test_one_number_stands_for_parts_of_one_size() -> None:
    action = torch.tensor([[0, 1], [1, 0]])
    action_value = torch.arange(8.0).reshape(2, 4)
    assert chosen_action_value(action_value, action, "multi_categorical", 2).tolist() == [3.0, 11.0]


@pytest.mark.parametrize(
    ("space", "shape"),
    [
        ("categorical", (5,)),
        ("categorical", (3, 5, N)),
        ("categorical", (5, 3)),
        ("one_hot", (3, 5)),
        ("one_hot", (5, N)),
        ("binary", (3, 5, 1)),
        ("multi_categorical", (3, 5, 3)),
        ("multi_categorical", (3, 5)),
    ],
)
def test_a_shape_that_would_broadcast_is_refused(space: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="action must have the shape"):
        chosen_action_value(torch.randn(*B, N), torch.zeros(shape, dtype=torch.int64), space, SIZES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_an_index_that_is_no_integer_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="action indices must be integers"):
        chosen_action_value(torch.randn(*B, N), torch.zeros(B, dtype=dtype), "categorical")


@pytest.mark.parametrize("sizes", [None, (2, 2), (N + 1,)])
def test_the_sizes_of_the_parts_must_sum_to_the_number_of_values(sizes: Any) -> None:
    with pytest.raises(ValueError, match=r"multi_categorical|must sum"):
        chosen_action_value(torch.randn(*B, N), encoded("multi_categorical")[0], "multi_categorical", sizes)


def test_an_unknown_space_is_refused() -> None:
    with pytest.raises(ValueError, match="'multi-one-hot'"):
        chosen_action_value(torch.randn(2, 3), torch.zeros(2), "multi-one-hot")


@pytest.mark.parametrize("space", SPACES)
def test_it_compiles_without_a_graph_break(space: str) -> None:
    action, _ = encoded(space)
    action_value = torch.randn(*B, N)
    torch._dynamo.reset()
    compiled = torch.compile(chosen_action_value, fullgraph=True, backend="aot_eager")
    expected = chosen_action_value(action_value, action, space, SIZES)
    assert torch.equal(compiled(action_value, action, space, SIZES), expected)


class Network(nn.Module):
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.head = nn.Identity()
        for name, value in attributes.items():
            setattr(self, name, value)


def test_what_the_user_says_wins_over_what_the_network_says() -> None:
    assert network_action_space("one-hot", Network(action_space="categorical")) == ("one_hot", None)
    assert network_action_space(None, Network(action_space="categorical")) == ("categorical", None)


def test_the_parts_are_those_of_a_layer_that_knows_them() -> None:
    network = Network()
    network.head.var_nums = [2, 3]
    assert network_action_space("multi_categorical", network) == ("multi_categorical", [2, 3])


def test_a_network_that_does_not_say_is_an_error() -> None:
    with pytest.raises(ValueError, match="action_space was not given, and the Network does not say"):
        network_action_space(None, Network())
