"""The value loss and its clipping."""

from __future__ import annotations

import pytest
import torch

from tritonrl.objectives.critic_loss import critic_distance


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


DISTANCES = {"l1": abs, "l2": lambda x: x * x, "smooth_l1": huber}


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_the_clipped_loss_is_the_larger_of_the_two_distances(name: str) -> None:
    value, target, old = torch.randn(3, 13, 1, dtype=torch.float64) * 2
    clip = 0.3
    result = critic_distance(value, target, name, old_value=old, clip_value=torch.tensor(clip, dtype=torch.float64))
    for v, y, o, loss, clipped in zip(
        value.flatten().tolist(),
        target.flatten().tolist(),
        old.flatten().tolist(),
        result.loss.flatten().tolist(),
        result.clipped.flatten().tolist(),
        strict=True,
    ):
        bounded = o + max(-clip, min(clip, v - o))
        assert loss == pytest.approx(max(DISTANCES[name](y - v), DISTANCES[name](y - bounded)))
        assert clipped == (abs(v - o) > clip)


def test_without_a_range_it_is_the_plain_distance() -> None:
    value, target = torch.randn(2, 5, 1)
    result = critic_distance(value, target, "l2")
    torch.testing.assert_close(result.loss, (value - target) ** 2)
    assert result.clipped is None


def test_a_value_at_the_old_value_is_never_clipped() -> None:
    value, target = torch.randn(2, 5, 1)
    result = critic_distance(value, target, "l1", old_value=value, clip_value=torch.tensor(0.1))
    torch.testing.assert_close(result.loss, (value - target).abs())
    assert not result.clipped.any()


def test_no_gradient_where_the_value_has_left_the_range_in_the_direction_of_its_target() -> None:
    value = torch.tensor([[1.0]], requires_grad=True)
    target, old = torch.tensor([[2.0]]), torch.tensor([[0.0]])
    critic_distance(value, target, "l2", old_value=old, clip_value=torch.tensor(0.5)).loss.sum().backward()
    assert value.grad.item() == 0


@pytest.mark.parametrize("entry", ["target", "old"])
def test_a_missing_trailing_dimension_is_an_error_with_both_shapes(entry: str) -> None:
    value = torch.randn(6, 1)
    target = torch.randn(6) if entry == "target" else torch.randn(6, 1)
    old = torch.randn(6) if entry == "old" else torch.randn(6, 1)
    with pytest.raises(RuntimeError, match=r"\(6,\).*\(6, 1\)"):
        critic_distance(value, target, "l2", old_value=old, clip_value=torch.tensor(0.1))


def test_an_unknown_distance_is_named() -> None:
    with pytest.raises(NotImplementedError, match="huber"):
        critic_distance(torch.zeros(2, 1), torch.zeros(2, 1), "huber")
