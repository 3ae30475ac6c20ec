"""Distances: against their definitions, against TorchRL, and between each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import distance_loss as torchrl_distance_loss

from tritonrl.objectives import distance_loss


def by_definition(x: float, name: str) -> float:
    return {"l1": abs(x), "l2": x * x, "smooth_l1": x * x / 2 if abs(x) < 1 else abs(x) - 0.5}[name]


@pytest.mark.parametrize("name", ["l1", "l2", "smooth_l1"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 3), (2, 3, 1)])
def test_a_distance_is_its_definition(name: str, shape: tuple[int, ...]) -> None:
    v1 = 2 * torch.randn(shape, dtype=torch.float64, requires_grad=True)
    v2 = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    got = distance_loss(v1, v2, name)
    expected = [by_definition(x, name) for x in (v1 - v2).flatten().tolist()]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64).reshape(shape))
    reference = torchrl_distance_loss(v1, v2, name)
    for a, b in zip(
        torch.autograd.grad(got.sum(), (v1, v2)), torch.autograd.grad(reference.sum(), (v1, v2)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_close_values_of_smooth_l1_are_half_of_l2() -> None:
    v1, v2 = torch.rand(50) / 2, torch.rand(50) / 2
    torch.testing.assert_close(distance_loss(v1, v2, "smooth_l1"), distance_loss(v1, v2, "l2") / 2)


@pytest.mark.parametrize("name", ["huber", "", None, 3, ["l2"]])
def test_an_unknown_distance_is_refused(name: Any) -> None:
    for function in (distance_loss, torchrl_distance_loss):
        with pytest.raises(NotImplementedError):
            function(torch.zeros(2), torch.zeros(2), name)


def test_shapes_that_would_broadcast_are_refused_with_both_shapes() -> None:
    v1, v2 = torch.zeros(4), torch.ones(4, 1)
    with pytest.raises(RuntimeError, match=r"\(4,\) and \(4, 1\)"):
        distance_loss(v1, v2, "l2")
    for name in ("l1", "l2", "smooth_l1"):
        assert distance_loss(v1, v2, name, strict_shape=False).shape == (4, 4)


def test_tensordicts_are_compared_leaf_by_leaf() -> None:
    v1 = TensorDict({"a": torch.randn(3), "b": {"c": torch.randn(3, 2)}}, [3])
    v2 = v1.apply(torch.randn_like)
    got = distance_loss(v1, v2, "smooth_l1")
    for key in ("a", ("b", "c")):
        torch.testing.assert_close(got[key], distance_loss(v1[key], v2[key], "smooth_l1"))
