"""TD(0): the one-step return."""

from __future__ import annotations

from typing import ClassVar, Unpack

from tensordict import TensorDictBase
from torch import Tensor

from tritonrl.objectives.value.functional import td0_return_estimate
from tritonrl.objectives.value.registry import ValueEstimators, register_value_estimator

from .options import EstimatorOptions
from .signals import Steps
from .td import TDEstimatorBase

__all__ = ["TD0Estimator"]


@register_value_estimator(ValueEstimators.TD0, default_kwargs={"gamma": 0.99, "differentiable": True})
class TD0Estimator(TDEstimatorBase):
    """One-step return (Sutton & Barto 2018, chapter 6): ``R[t] = r[t] + gamma (1 - terminated[t]) w[t]``.

    ``w`` is the value of the true next state. ``forward`` writes the value target ``R`` and the advantage ``R - v``
    beside the values. Time plays no part, except for ``shifted``.

    Keyword Args:
        gamma: see :class:`~tritonrl.objectives.value.estimators.td.TDEstimatorBase`.
        average_rewards: see there.
        **options: those of :class:`ValueEstimatorBase`, ``value_network`` (required) among them.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> critic = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["obs"], out_keys=["state_value"])
        >>> done = torch.ones(8, 1, dtype=torch.bool)
        >>> step = {"obs": torch.randn(8, 3), "reward": torch.ones(8, 1), "done": done}
        >>> rollout = TensorDict({"obs": torch.randn(8, 3), "next": step}, batch_size=[8])
        >>> bool((TD0Estimator(gamma=0.99, value_network=critic)(rollout)["value_target"] == 1).all())
        True
    """

    _needs_done: ClassVar[bool] = False  # One step ahead only termination matters.

    def __init__(
        self, *, gamma: float | Tensor, average_rewards: bool = False, **options: Unpack[EstimatorOptions]
    ) -> None:
        super().__init__(gamma=gamma, average_rewards=average_rewards, **options)

    def _time_axis(self, tensordict: TensorDictBase, time_dim: int | None) -> int:
        return super()._time_axis(tensordict, time_dim) if tensordict.batch_dims else 0

    def _returns(self, steps: Steps) -> Tensor:
        return td0_return_estimate(steps.gamma, steps.next_value, steps.reward, steps.terminated)
