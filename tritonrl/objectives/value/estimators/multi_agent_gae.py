"""Generalised advantage estimation for teams: a value for each agent, a reward and an end for all of them."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from tritonrl.objectives.value.registry import ValueEstimators, register_value_estimator

from .gae import GAE
from .signals import Steps
from .standardise import standardise

__all__ = ["MultiAgentGAE"]


@register_value_estimator(ValueEstimators.MAGAE, default_kwargs={"gamma": 0.99, "lmbda": 0.95, "differentiable": True})
class MultiAgentGAE(GAE):
    """:class:`GAE` of each agent of a team (Yu et al. 2022, MAPPO, https://arxiv.org/abs/2103.01955).

    The value has a dimension of agents, ``[*B, T, n_agents, 1]``. Reward, done and terminated (and truncated, with
    ``auto_reset_env``) either have it too, or are those of the team, ``[*B, T, 1]``, and count for every agent.
    Advantage and value target have the shape of the value.

    Keys are usually nested: ``estimator.set_keys(value=("agents", "state_value"))``.

    Keyword Args:
        agent_dim: dimension of the value that is the agents, negative or not.
        **options: those of :class:`GAE`. ``average_gae`` standardises each agent by itself, and with ``group_key`` each
            group of each agent.

    Raises:
        TypeError: if ``agent_dim`` is not an integer.

    Examples:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> critic = TensorDictModule(torch.nn.Linear(3, 1), [("agents", "obs")], [("agents", "state_value")])
        >>> gae = MultiAgentGAE(gamma=0.99, lmbda=0.95, value_network=critic)
        >>> gae.set_keys(value=("agents", "state_value"), advantage=("agents", "advantage"))
        >>> team = {"reward": torch.ones(4, 8, 1), "done": torch.zeros(4, 8, 1, dtype=torch.bool)}
        >>> step = {"agents": {"obs": torch.randn(4, 8, 2, 3)}, **team}
        >>> rollout = TensorDict({"agents": {"obs": torch.randn(4, 8, 2, 3)}, "next": step}, batch_size=[4, 8])
        >>> gae(rollout)["agents", "advantage"].shape
        torch.Size([4, 8, 2, 1])
    """

    _is_one_sample = False

    def __init__(self, *, agent_dim: int = -2, **options: Any) -> None:
        if isinstance(agent_dim, bool) or not isinstance(agent_dim, int):
            raise TypeError(f"agent_dim must be an integer, got {agent_dim!r} ({type(agent_dim).__name__}).")
        super().__init__(**options)
        self.agent_dim = agent_dim

    def _fit_signal(self, key: NestedKey, signal: Tensor, value: Tensor) -> Tensor:
        """A team's entry given to every agent; an agents' entry as it is."""
        if signal.ndim == value.ndim:
            return signal
        axis = self._agent_axis(value)
        team = value.shape[:axis] + value.shape[axis + 1 :]
        if signal.shape == team:
            return signal.unsqueeze(axis).expand(value.shape)
        error = RuntimeError if signal.ndim == len(team) else ValueError
        raise error(
            f"{key!r} of shape {tuple(signal.shape)} must have the shape of the agents' value, {tuple(value.shape)}, or "
            f"that of their team, {tuple(team)}."
        )

    def _results(self, steps: Steps, tensordict: TensorDictBase) -> dict[NestedKey, Tensor]:
        if self.average_gae and self._agent_axis(steps.value) == steps.time_dim:
            raise ValueError(
                f"agent_dim={self.agent_dim} is the time of the value of shape {tuple(steps.value.shape)}: average_gae "
                "would standardise every step by itself."
            )
        return super()._results(steps, tensordict)

    def _standardised(
        self, x: Tensor, min_std: float, tensordict: TensorDictBase, valid: Tensor | None = None
    ) -> Tensor:
        axis = self._agent_axis(x)
        if self.group_key is None:
            return standardise(x, min_std, valid=valid, dim=tuple(dim for dim in range(x.ndim) if dim != axis))
        alone = super()._standardised
        return torch.stack([alone(agent, min_std, tensordict, valid) for agent in x.unbind(axis)], axis)

    def _agent_axis(self, value: Tensor) -> int:
        if not -value.ndim <= self.agent_dim < value.ndim:
            raise ValueError(f"agent_dim={self.agent_dim} is no dimension of the value of shape {tuple(value.shape)}.")
        return self.agent_dim % value.ndim
