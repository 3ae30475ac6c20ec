"""Replay for models that remember: pieces of what N environments went through, in the order in which it happened."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase

from .replay import ReplayBuffer


class SequenceReplay(ReplayBuffer):
    """The last ``capacity`` steps of N environments, sampled in pieces of successive steps.

    What is stored is one step of all environments, ``add(TensorDict({name: [1, N, ...]}, [1]))``. A piece may run
    over the end of an episode: the entries have to tell where the next one begins.
    """

    def sequences(self, batch_size: int, length: int) -> TensorDictBase:
        """``batch_size`` pieces, ``[batch_size, length]``, of random environments from random moments on.

        Raises:
            RuntimeError: if fewer than ``length`` steps are stored.
        """
        if self.storage is None or self.size < length:
            raise RuntimeError(f"sequences: a piece is {length} steps long, and only {self.size} are stored")
        num_envs = next(iter(self.storage.values(True, True))).shape[1]
        lane = torch.randint(num_envs, (batch_size, 1))
        start = torch.randint(self.size - length + 1, (batch_size, 1)) + self.position - self.size
        time = (start + torch.arange(length)) % self.capacity  # from the oldest on, around the end of the memory
        return self.storage.apply(lambda entry: entry[time, lane], batch_size=[batch_size, length])
