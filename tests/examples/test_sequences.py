"""Replay of pieces of successive steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict


def moment(time: int, num_envs: int = 3) -> TensorDict:
    """One step of all environments that tells when and where it was: 100 * environment + time."""
    where = (100 * torch.arange(num_envs) + time).reshape(1, num_envs, 1)
    return TensorDict({"observation": where, "next": {"reward": where + 0.5}}, [1])


def filled(common: Any, capacity: int, moments: int) -> Any:
    buffer = common.SequenceReplay(capacity)
    for time in range(moments):
        buffer.add(moment(time))
    return buffer


@pytest.mark.parametrize("moments", [5, 7, 12, 14], ids=["part", "full", "over", "twice"])
def test_a_piece_is_successive_steps_of_one_environment(common: Any, moments: int) -> None:
    """Wherever the memory ends: no piece leads from the newest step to the oldest."""
    pieces = filled(common, 7, moments).sequences(500, 4)
    assert pieces.shape == (500, 4) and pieces["observation"].shape == (500, 4, 1)
    time, lane = pieces["observation"] % 100, pieces["observation"] // 100
    assert (time.diff(dim=1) == 1).all() and (lane.diff(dim=1) == 0).all()
    assert pieces["next", "reward"].equal(pieces["observation"] + 0.5)
    assert time.unique().tolist() == list(range(max(0, moments - 7), moments))


def test_every_beginning_in_every_environment_is_as_likely(common: Any) -> None:
    torch.manual_seed(0)
    begins = filled(common, 7, 9).sequences(12_000, 3)["observation"][:, 0, 0]
    values, counts = begins.unique(return_counts=True)
    assert values.tolist() == [100 * lane + time for lane in range(3) for time in range(2, 7)]
    assert (counts / 800 - 1).abs().max() < 0.15  # 800 each, and four standard deviations are 0.14


def test_a_piece_as_long_as_the_past_is_the_past(common: Any) -> None:
    pieces = filled(common, 7, 10).sequences(2, 7)["observation"][..., 0] % 100
    assert pieces.tolist() == [list(range(3, 10))] * 2


@pytest.mark.parametrize("moments", [0, 3])
def test_a_piece_longer_than_the_past_is_refused(common: Any, moments: int) -> None:
    with pytest.raises(RuntimeError, match=f"a piece is 4 steps long, and only {moments} are stored"):
        filled(common, 7, moments).sequences(2, 4)


def test_what_was_saved_samples_as_the_original_does(common: Any) -> None:
    buffer, restored = filled(common, 7, 9), common.SequenceReplay(7)
    restored.load_state_dict(buffer.state_dict())
    for each in (buffer, restored):
        each.add(moment(9))
    samples = []
    for each in (buffer, restored):
        torch.manual_seed(1)
        samples.append(each.sequences(50, 5))
    assert (samples[0] == samples[1]).all()
