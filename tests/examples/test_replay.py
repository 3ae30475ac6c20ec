"""The replay buffer and n-step transitions, against what the papers say and what was done by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from .runs import assert_same


def numbered(first: int, number: int) -> TensorDict:
    """Transitions that can be told apart."""
    observation = torch.arange(first, first + number).float().unsqueeze(-1)
    return TensorDict({"observation": observation, "next": {"reward": observation * 10}}, [number])


def seen(buffer: Any) -> list[float]:
    """What a large sample has of the buffer."""
    return buffer.sample(5000)["observation"].unique().tolist()


# -- the buffer ---------------------------------------------------------------------------------------------------------


def test_a_sample_holds_whole_transitions_that_were_stored(common: Any) -> None:
    buffer = common.ReplayBuffer(7)
    buffer.add(numbered(0, 3))
    buffer.add(numbered(3, 2))
    sample = buffer.sample(11)
    assert sample.shape == (11,) and len(buffer) == 5
    assert sample["next", "reward"].equal(sample["observation"] * 10)
    assert sample["index"].equal(sample["observation"][:, 0].long())
    assert seen(buffer) == [0, 1, 2, 3, 4]


def test_a_full_buffer_forgets_the_oldest(common: Any) -> None:
    buffer = common.ReplayBuffer(7, alpha=0.5)
    for first in range(0, 12, 3):  # the last three lie across the end of the memory
        buffer.add(numbered(first, 3))
    assert len(buffer) == 7
    assert seen(buffer) == [5, 6, 7, 8, 9, 10, 11]


def test_a_sample_is_a_copy(common: Any) -> None:
    buffer = common.ReplayBuffer(4)
    stored = numbered(0, 4)
    buffer.add(stored)
    stored["observation"].fill_(-1)
    buffer.sample(50)["observation"].fill_(-2)
    assert seen(buffer) == [0, 1, 2, 3]


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_without_priorities_every_transition_is_as_likely(common: Any, alpha: float) -> None:
    torch.manual_seed(0)
    buffer = common.ReplayBuffer(10, alpha=alpha)
    buffer.add(numbered(0, 5))
    counts = buffer.sample(20_000)["index"].bincount(minlength=5)
    assert counts.numel() == 5
    assert (counts / 20_000 - 0.2).abs().max() < 0.015  # five standard deviations


def test_transitions_are_drawn_in_proportion_to_their_priority(common: Any) -> None:
    torch.manual_seed(0)
    buffer = common.ReplayBuffer(9, alpha=0.5, beta=1.0)
    buffer.add(numbered(0, 4))
    sample = TensorDict({"index": torch.tensor([2, 0, 1, 3]), "td_error": torch.tensor([[16.0], [-1], [4], [9]])}, [4])
    buffer.update_priorities(sample)
    drawn = buffer.sample(20_000)
    expected = torch.tensor([1.0, 2, 4, 3]) / 10  # the roots of 1, 4, 16, 9
    shares = drawn["index"].bincount(minlength=4) / 20_000
    assert (shares - expected).abs().max() < 0.018
    # With beta 1 the weights undo the bias: w = (n P) ** -1 is 4 / 10 / P, of which the largest, of index 0, becomes 1.
    torch.testing.assert_close(drawn["priority_weight"], (0.1 / expected)[drawn["index"]], rtol=1e-4, atol=1e-5)
    assert drawn["priority_weight"].shape == (20_000,) and drawn["priority_weight"].dtype == torch.float32


def test_beta_says_how_much_of_the_bias_is_corrected(common: Any) -> None:
    buffer = common.ReplayBuffer(2, alpha=1.0, beta=0.5)
    buffer.add(numbered(0, 2))
    buffer.update_priorities(TensorDict({"index": torch.tensor([0, 1]), "td_error": torch.tensor([1.0, 4.0])}, [2]))
    sample = buffer.sample(100)
    torch.testing.assert_close(sample["priority_weight"], torch.tensor([1.0, 0.5])[sample["index"]])
    buffer.beta = 0.0
    assert buffer.sample(100)["priority_weight"].eq(1).all()


def test_a_new_transition_has_the_largest_priority_so_far(common: Any) -> None:
    torch.manual_seed(0)
    buffer = common.ReplayBuffer(3, alpha=1.0)
    buffer.add(numbered(0, 2))
    for error in (99.0, 1e-3):  # the largest that ever was, not the largest that there is
        buffer.update_priorities(TensorDict({"index": torch.arange(2), "td_error": torch.tensor([error, 0.0])}, [2]))
    buffer.add(numbered(2, 1))
    assert buffer.sample(1000)["index"].eq(2).float().mean() > 0.99


def test_a_transition_without_error_can_still_be_drawn(common: Any) -> None:
    buffer = common.ReplayBuffer(3, alpha=0.7)
    buffer.add(numbered(0, 3))
    buffer.update_priorities(TensorDict({"index": torch.arange(3), "td_error": torch.zeros(3)}, [3]))
    assert seen(buffer) == [0, 1, 2]


def test_what_the_buffer_cannot_do_it_says(common: Any, tmp_path: Path) -> None:
    buffer = common.ReplayBuffer(3)
    with pytest.raises(RuntimeError, match="sample: the buffer is empty"):
        buffer.sample(1)
    with pytest.raises(RuntimeError, match="save: the buffer is empty"):
        buffer.save(tmp_path / "data.pt")
    with pytest.raises(ValueError, match="4 transitions do not fit a buffer of 3"):
        buffer.add(numbered(0, 4))
    buffer.add(numbered(0, 3)[:0])
    assert len(buffer) == 0
    with pytest.raises(ValueError, match="expected a capacity of 3, got 5"):
        buffer.load_state_dict(common.ReplayBuffer(5).state_dict())


@pytest.mark.parametrize("alpha", [0.0, 0.6])
@pytest.mark.parametrize("stored", [0, 2, 5, 8])
def test_a_restored_buffer_goes_on_as_the_original_does(common: Any, alpha: float, stored: int, tmp_path: Path) -> None:
    original, restored = (common.ReplayBuffer(5, alpha=alpha) for _ in range(2))
    for first in range(stored):
        original.add(numbered(first, 1))
    if stored:
        original.update_priorities(original.sample(4).set("td_error", torch.tensor([3.0, 1, 2, 5])))
    torch.save(original.state_dict(), tmp_path / "state.pt")
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=False))
    assert len(restored) == min(stored, 5)
    samples = []
    for buffer in (original, restored):
        torch.manual_seed(1)
        buffer.add(numbered(20, 2))
        samples.append(buffer.sample(40).to_dict())
    assert_same(*samples)


def test_a_data_set_is_read_back_with_the_oldest_first(common: Any, tmp_path: Path) -> None:
    original = common.ReplayBuffer(5, alpha=0.6)
    for first in range(7):
        original.add(numbered(first, 1))
    original.save(tmp_path / "data.pt")
    copy = common.ReplayBuffer.from_file(tmp_path / "data.pt")
    assert len(copy) == copy.capacity == 5
    assert copy.storage["observation"][:, 0].tolist() == [2, 3, 4, 5, 6]
    assert copy.storage["next", "reward"][:, 0].tolist() == [20, 30, 40, 50, 60]


# -- n-step transitions -------------------------------------------------------------------------------------------------


def feed(n_step: Any, steps: list[tuple[int, float, bool, bool]]) -> list[tuple[int, float, int, bool, bool, int]]:
    """Steps (state, reward, terminated, truncated) of one environment to what comes out: (state, reward, next state,
    terminated, done, steps)."""
    completed = []
    for state, reward, terminated, truncated in steps:
        after = {
            "observation": torch.tensor([[state + 1.0]]),
            "reward": torch.tensor([[reward]]),
            "terminated": torch.tensor([[terminated]]),
            "done": torch.tensor([[terminated or truncated]]),
        }
        out = n_step(TensorDict({"observation": torch.tensor([[float(state)]]), "next": after}, [1]))
        for row in out:
            values = [row[key].item() for key in ("observation", ("next", "reward"), ("next", "observation"))]
            values += [row[key].item() for key in (("next", "terminated"), ("next", "done"), "steps_to_next_obs")]
            completed.append(tuple(values))
    return completed


def test_n_steps_are_joined_with_discounted_rewards(common: Any) -> None:
    steps = [(state, float(reward), False, False) for state, reward in enumerate([1, 10, 100, 1000, 10000])]
    assert feed(common.NStep(3, 0.5), steps) == [
        (0, 1 + 5 + 25, 3, False, False, 3),
        (1, 10 + 50 + 250, 4, False, False, 3),
        (2, 100 + 500 + 2500, 5, False, False, 3),
    ]


@pytest.mark.parametrize("terminated", [True, False])
def test_the_end_of_an_episode_completes_all_that_is_open_with_fewer_steps(common: Any, terminated: bool) -> None:
    """Terminated or truncated, both are done; the next state is the last of the episode, and nothing crosses its end."""
    steps = [(0, 1.0, False, False), (1, 10.0, terminated, not terminated), (7, 100.0, False, False)]
    n_step = common.NStep(3, 0.5)
    assert feed(n_step, steps) == [(0, 6, 2, terminated, True, 2), (1, 10, 2, terminated, True, 1)]
    assert feed(n_step, [(8, 2.0, False, False), (9, 4.0, False, False)]) == [(7, 102, 10, False, False, 3)]


def test_an_episode_that_ends_with_the_nth_step_gives_each_state_once(common: Any) -> None:
    steps = [(0, 1.0, False, False), (1, 2.0, True, False), (5, 3.0, True, False)]
    assert feed(common.NStep(2, 1.0), steps) == [
        (0, 3, 2, True, True, 2),
        (1, 2, 2, True, True, 1),
        (5, 3, 6, True, True, 1),
    ]


def test_one_step_transitions_are_the_steps_themselves(common: Any) -> None:
    steps = [(0, 1.0, False, False), (1, 2.0, False, True), (4, 3.0, True, False)]
    assert feed(common.NStep(1, 0.3), steps) == [
        (0, 1, 1, False, False, 1),
        (1, 2, 2, False, True, 1),
        (4, 3, 5, True, True, 1),
    ]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_environments_side_by_side_are_joined_each_for_itself(common: Any, n: int) -> None:
    """Against a loop over each environment's own steps, with random ends of episodes."""
    torch.manual_seed(n)
    total, environments, gamma = 40, 3, 0.9
    reward = torch.randn(total, environments, 1)
    terminated, truncated = (torch.rand(total, environments, 1) < 0.1 for _ in range(2))
    done = terminated | truncated
    state = torch.arange(total * environments).view(total, environments, 1).float()
    n_step, rows = common.NStep(n, gamma), []
    for t in range(total):
        after = {"observation": state[t] + 0.5, "reward": reward[t], "terminated": terminated[t], "done": done[t]}
        rows += list(n_step(TensorDict({"observation": state[t], "next": after}, [environments])))
    by_state = {row["observation"].item(): row for row in rows}
    assert len(by_state) == len(rows)  # none twice
    for t in range(total):
        for i in range(environments):
            end, expected = t, reward[t, i].item()
            while end - t + 1 < n and not done[end, i] and end + 1 < total:
                end += 1
                expected += gamma ** (end - t) * reward[end, i].item()
            row = by_state.pop(state[t, i].item(), None)
            if end - t + 1 < n and not done[end, i]:
                assert row is None  # still open when the data end
                continue
            assert row is not None
            assert row["next", "reward"].item() == pytest.approx(expected, abs=1e-5)
            assert row["next", "observation"].item() == state[end, i].item() + 0.5
            assert row["next", "done"].equal(done[end, i]) and row["next", "terminated"].equal(terminated[end, i])
            assert row["steps_to_next_obs"].item() == end - t + 1
    assert not by_state


def test_the_steps_that_are_fed_stay_as_they_are(common: Any) -> None:
    n_step = common.NStep(2, 0.9)
    step = numbered(0, 2)
    step["next"].update(
        {"done": torch.zeros(2, 1, dtype=torch.bool), "terminated": torch.zeros(2, 1, dtype=torch.bool)}
    )
    before = step.clone().to_dict()
    n_step(step)
    n_step(step)
    assert_same(step.to_dict(), before)


def test_open_transitions_are_saved_or_dropped(common: Any, tmp_path: Path) -> None:
    begun, rest = [(0, 1.0, False, False), (1, 2.0, False, False)], [(2, 4.0, False, False), (3, 8.0, True, False)]
    whole, parts = common.NStep(3, 0.5), common.NStep(3, 0.5)
    feed(whole, begun)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    parts.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=False))
    assert feed(whole, rest) == feed(parts, rest) == feed(common.NStep(3, 0.5), begun + rest)
    feed(whole, begun)
    whole.forget()
    assert feed(whole, [(9, 1.0, True, False)]) == [(9, 1, 10, True, True, 1)]


def test_a_loss_bootstraps_over_as_many_steps_as_were_joined(script: Callable[[str], Any], tmp_path: Path) -> None:
    """The TD error of a stored transition, worked out by hand: r0 + g r1 + g**2 r2 + g**3 max Q(s3), and truncated r."""
    module = script("dqn")
    parser = module.options()
    options = ["--env", "tritonrl/Corridor-v0", "--num-envs", "1", "--gamma", "0.5", "--hidden", "4", "--n-step", "2"]
    learner = module.DQN(parser, parser.parse_args([*options, "--out", str(tmp_path)]))
    learner.environments.reset(0)
    learner.random_action = lambda: torch.ones(1, dtype=torch.int64)  # never the one that terminates; time limit 3
    for _ in range(3):
        learner.buffer.add(learner.n_step(learner.step(0.0)))
    assert learner.buffer.storage[:3]["steps_to_next_obs"][:, 0].tolist() == [2, 2, 1]
    data = learner.buffer.storage[:3].clone()
    learner.loss(data)

    def q(state: float) -> torch.Tensor:
        with torch.no_grad():
            return learner.actor.module[0].module(torch.tensor([[float(state)]]))[0]

    targets = [1 + 0.5 + 0.25 * q(2).max(), 1 + 0.5 + 0.25 * q(3).max(), 1 + 0.5 * q(3).max()]
    expected = torch.stack([(q(s)[1] - target) ** 2 for s, target in enumerate(targets)])
    torch.testing.assert_close(data["td_error"][:, 0], expected)
