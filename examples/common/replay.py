"""Replay: transitions kept in one tensordict, sampled evenly or by priority, joined over n steps on the way in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor


class ReplayBuffer:
    """The last ``capacity`` transitions, in memory that is allocated with the first of them.

    With ``alpha`` 0 every transition is as likely as any other. Above it, transition i is drawn with probability
    ``p_i ** alpha / sum_j p_j ** alpha``, and a sample carries ``priority_weight`` ``w_i = (n P_i) ** -beta``, divided by
    the largest of the sample (prioritised experience replay, Schaul et al. 2016, https://arxiv.org/abs/1511.05952). A new
    transition has the largest priority so far, so that it is seen at least once soon.

    Sampling by priority sums all priorities up, which takes time in proportion to ``capacity``: 50 microseconds for
    50,000 transitions, which is less than the tree that it would take to do better.
    """

    smallest_priority = 1e-6

    def __init__(self, capacity: int, *, alpha: float = 0.0, beta: float = 0.4, device: str = "cpu") -> None:
        self.capacity, self.alpha, self.beta, self.device = capacity, alpha, beta, device
        self.storage: TensorDict | None = None
        self.weights = torch.zeros(capacity, dtype=torch.float64)  # p ** alpha, 0 where there is no transition
        self.largest = 1.0
        self.position = self.size = 0

    def __len__(self) -> int:
        return self.size

    def add(self, transitions: TensorDictBase) -> None:
        """Store ``transitions`` ``[M]``, over the oldest ones where the buffer is full.

        Raises:
            ValueError: if they are more than the buffer holds.
        """
        new = transitions.shape[0]
        if new > self.capacity:
            raise ValueError(f"add: {new} transitions do not fit a buffer of {self.capacity}")
        if not new:
            return
        if self.storage is None:
            self.storage = transitions[:1].expand(self.capacity).clone().to(self.device)
        places = (self.position + torch.arange(new)) % self.capacity
        self.storage[places] = transitions.to(self.device)
        self.weights[places] = self.largest
        self.position = (self.position + new) % self.capacity
        self.size = min(self.size + new, self.capacity)

    def sample(self, batch_size: int) -> TensorDictBase:
        """``batch_size`` transitions, drawn with replacement; their ``index`` says where they came from.

        Raises:
            RuntimeError: if there is nothing to draw from.
        """
        if self.storage is None:
            raise RuntimeError("sample: the buffer is empty")
        if not self.alpha:
            index = torch.randint(self.size, (batch_size,))
            return self.storage[index].set("index", index)
        summed = self.weights[: self.size].cumsum(0)
        index = torch.searchsorted(summed, torch.rand(batch_size, dtype=summed.dtype) * summed[-1], right=True)
        index.clamp_(max=self.size - 1)  # a draw of exactly the sum, by rounding
        probability = self.weights[index] / summed[-1]
        correction = (self.size * probability) ** -self.beta
        sample = self.storage[index].set("index", index)
        return sample.set("priority_weight", (correction / correction.max()).to(torch.float32))

    def update_priorities(self, sample: TensorDictBase, priority: NestedKey = "td_error") -> None:
        """Take what a loss wrote into ``sample`` as priorities; nothing to do for even sampling.

        The losses write the *square* of the TD error, so half of the paper's ``alpha`` does what the paper does.
        """
        if not self.alpha:
            return
        error = sample.get(priority).reshape(len(sample)).abs().cpu().double()
        weights = (error + self.smallest_priority) ** self.alpha
        self.weights[sample["index"].cpu()] = weights
        self.largest = max(self.largest, weights.max().item())

    def state_dict(self) -> dict[str, Any]:
        """Everything that is stored."""
        storage = None if self.storage is None else self.storage[: self.size].clone().to_dict()
        names = ("capacity", "largest", "position", "size")
        return {"storage": storage, "weights": self.weights.clone()} | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned.

        Raises:
            ValueError: if that was of a buffer of another capacity.
        """
        if state["capacity"] != self.capacity:
            raise ValueError(f"load_state_dict: expected a capacity of {self.capacity}, got {state['capacity']}")
        self.storage = None
        if state["storage"] is not None:
            kept = TensorDict(state["storage"], batch_size=[state["size"]])
            self.storage = kept[:1].expand(self.capacity).clone().to(self.device)
            self.storage[: state["size"]] = kept.to(self.device)
        self.weights.copy_(state["weights"])
        self.largest, self.position, self.size = state["largest"], state["position"], state["size"]

    def save(self, path: Path) -> None:
        """Write the transitions, the oldest first, to a file of their own: a data set.

        Raises:
            RuntimeError: if there are none.
        """
        if self.storage is None:
            raise RuntimeError("save: the buffer is empty")
        oldest_first = (self.position - self.size + torch.arange(self.size)) % self.capacity
        torch.save({"size": self.size, "transitions": self.storage[oldest_first].cpu().to_dict()}, path)

    @classmethod
    def from_file(cls, path: Path, **options: Any) -> ReplayBuffer:
        """A buffer as large as what ``save`` wrote, holding just that; ``options`` of the constructor."""
        data = torch.load(path, map_location="cpu", weights_only=True)
        buffer = cls(data["size"], **options)
        buffer.add(TensorDict(data["transitions"], batch_size=[data["size"]]))
        return buffer

    def load(self, path: Path) -> None:
        """Add what ``save`` wrote, by a buffer of any capacity.

        Raises:
            ValueError: if it does not fit.
        """
        data = torch.load(path, map_location="cpu", weights_only=True)
        self.add(TensorDict(data["transitions"], batch_size=[data["size"]]))


class NStep:
    """Joins n transitions in a row into one: what happened, and n steps later.

    Fed the transitions ``[N]`` of one step of N environments, gives back those that are complete: a transition from the
    state ``n`` steps ago to the present one, with the discounted sum of the rewards in between and ``steps_to_next_obs``
    = n; where an episode ended, all that began in it and were still open, with fewer steps. The losses then bootstrap
    with ``gamma ** steps_to_next_obs``.
    """

    def __init__(self, steps: int, gamma: float) -> None:
        self.steps, self.gamma = steps, gamma
        self.waiting: list[tuple[TensorDictBase, Tensor]] = []  # the oldest first, with who is still open

    def __call__(self, step: TensorDictBase) -> TensorDictBase:
        """The transitions ``[M]`` that ``step`` ``[N]`` completes."""
        for begun, is_open in self.waiting:
            mask = is_open.unsqueeze(-1)
            elapsed = begun["steps_to_next_obs"]
            reward = begun["next", "reward"] + self.gamma**elapsed * step["next", "reward"]
            newer = step["next"].clone().set("reward", reward)
            begun["next"] = newer.where(is_open, begun["next"])
            begun["steps_to_next_obs"] = torch.where(mask, elapsed + 1, elapsed)
        fresh = step.clone().set("steps_to_next_obs", torch.ones(len(step), 1, dtype=torch.int64))
        self.waiting.append((fresh, torch.ones(len(step), dtype=torch.bool)))
        complete = []
        for begun, is_open in self.waiting:
            ready = is_open & (step["next", "done"] | (begun["steps_to_next_obs"] == self.steps)).squeeze(-1)
            complete.append(begun[ready])
            is_open &= ~ready
        self.waiting = [pair for pair in self.waiting if pair[1].any()]
        return torch.cat(complete)

    def state_dict(self) -> dict[str, Any]:
        """The transitions that are still open."""
        return {"waiting": [(begun.to_dict(), is_open.clone()) for begun, is_open in self.waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        self.waiting = [(TensorDict(begun, [len(is_open)]), is_open) for begun, is_open in state["waiting"]]

    def forget(self) -> None:
        """Drop the transitions that are still open."""
        self.waiting = []
