"""A learnt model of an environment, and the environment that one imagines with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import nn

__all__ = ["ImaginationEnv", "WorldModelWrapper"]


class WorldModelWrapper(TensorDictSequential):
    """A transition model, then a reward model that reads where it arrived.

    Args:
        transition_model: reads state, belief and action, writes the new state and belief.
        reward_model: reads them, writes the reward.

    Example:
        >>> from tensordict.nn import TensorDictModule
        >>> model = WorldModelWrapper(
        ...     TensorDictModule(nn.Bilinear(3, 2, 3), ["state", "action"], ["state"]),
        ...     TensorDictModule(nn.Linear(3, 1), ["state"], ["reward"]),
        ... )
        >>> model.in_keys, model.out_keys
        (['state', 'action'], ['state', 'reward'])
    """

    def __init__(self, transition_model: TensorDictModuleBase, reward_model: TensorDictModuleBase) -> None:
        super().__init__(transition_model, reward_model)

    def get_transition_model_operator(self) -> TensorDictModuleBase:
        """The transition model."""
        return self.module[0]

    def get_reward_operator(self) -> TensorDictModuleBase:
        """The reward model."""
        return self.module[1]


class ImaginationEnv(nn.Module):
    """A differentiable environment of imagined transitions.

    What the world model writes for a state and an action becomes the next state; nothing is detached, so a reward
    carries gradient to the actions before it. Trajectories of fixed length: an end is imagined only if the world model
    writes ``"done"`` or ``"terminated"``, and it stops nothing.

    Args:
        world_model: reads the state, in one or more entries, and the action; overwrites the state and writes the reward.
        state_keys: entries of the state.
        reward_key: entry of the reward, ``[*B, 1]``.

    Raises:
        ValueError: if the world model does not write the state or the reward.

    Example:
        >>> from tensordict.nn import TensorDictModule
        >>> from tritonrl.modules import MLP, Actor, RSSMPrior
        >>> prior = RSSMPrior(action_dim=2, hidden_dim=16, rnn_hidden_dim=8, state_dim=3)
        >>> env = ImaginationEnv(
        ...     WorldModelWrapper(
        ...         TensorDictModule(prior, ["state", "belief", "action"], ["_", "_", "state", "belief"]),
        ...         TensorDictModule(MLP(11, 1, num_cells=[16]), ["state", "belief"], ["reward"]),
        ...     )
        ... )
        >>> policy = Actor(MLP(11, 2), in_keys=["state", "belief"])
        >>> start = TensorDict({"state": torch.zeros(5, 3), "belief": torch.zeros(5, 8)}, [5])
        >>> data = env.rollout(7, policy, tensordict=start)
        >>> data.batch_size, data["next", "reward"].shape
        (torch.Size([5, 7]), torch.Size([5, 7, 1]))
        >>> data["next", "reward"].sum().backward()
    """

    def __init__(
        self,
        world_model: TensorDictModuleBase,
        state_keys: Sequence[NestedKey] = ("state", "belief"),
        reward_key: NestedKey = "reward",
    ) -> None:
        super().__init__()
        self.world_model = world_model
        self.state_keys = list(state_keys)
        self.reward_key = reward_key
        self._written = [key for key in world_model.out_keys if key != "_"]
        missing = [key for key in (*self.state_keys, reward_key) if key not in self._written]
        if missing:
            raise ValueError(f"world_model must write {missing}, but its out_keys are {world_model.out_keys}")

    def reset(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Begin at the states of a tensordict: these, ``done`` and ``terminated`` (False, ``[*B, 1]``).

        Raises:
            KeyError: if a state is missing.
        """
        start = {key: tensordict.get(key, None) for key in self.state_keys}
        missing = [key for key, value in start.items() if value is None]
        if missing:
            raise KeyError(f"the tensordict to begin at lacks {missing}; it has {list(tensordict.keys(True, True))}")
        out = TensorDict({}, tensordict.batch_size, device=tensordict.device)
        for key, value in start.items():
            out.set(key, value)
        return self._with_flags(out)

    def step(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write under ``"next"`` where the action leads and what it earns; returns the tensordict."""
        arrived = self.world_model(tensordict.select(*self.world_model.in_keys))
        tensordict.set("next", self._with_flags(arrived.select(*self._written)))
        return tensordict

    def rollout(
        self,
        max_steps: int,
        policy: Callable[[TensorDictBase], TensorDictBase],
        *,
        auto_reset: bool = True,
        tensordict: TensorDictBase,
    ) -> TensorDictBase:
        """Imagine trajectories.

        Args:
            max_steps: their length H.
            policy: reads the state, writes ``"action"``.
            auto_reset: begin with :meth:`reset`; else ``tensordict`` is what it returned.
            tensordict: the states to begin at, batch size ``[*B]``; not written to.

        Returns:
            Tensordict of batch size ``[*B, H]``, the last dimension named ``"time"``: the state, what the policy wrote,
            and under ``"next"`` state, reward, done and terminated.

        Raises:
            ValueError: if ``max_steps`` is not positive.
        """
        if max_steps < 1:
            raise ValueError(f"max_steps must be positive, got {max_steps}")
        current = self.reset(tensordict) if auto_reset else tensordict.copy()
        flags: list[NestedKey] = ["done", "terminated"]
        steps: list[TensorDictBase] = []
        for _ in range(max_steps):
            current = self.step(policy(current))
            steps.append(current)
            current = current.get("next").select(*self.state_keys, *flags)
        data: TensorDictBase = TensorDict.stack(steps, tensordict.ndim)
        data.names = [*[None] * tensordict.ndim, "time"]
        return data

    def _with_flags(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Add the flags that are missing: no end, unless the world model says so."""
        absent = torch.zeros(
            *tensordict.batch_size, 1, dtype=torch.bool, device=tensordict.get(self.state_keys[0]).device
        )
        terminated = tensordict.get("terminated", absent)
        done = tensordict.get("done", terminated)
        return tensordict.update({"terminated": terminated, "done": done})
