"""TD(lambda): the exponentially weighted average of all n-step returns."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor

from tritonrl.objectives.value.functional import td_lambda_return_estimate
from tritonrl.objectives.value.registry import ValueEstimators, register_value_estimator

from .options import EstimatorOptions
from .signals import Steps
from .td import TDEstimatorBase

__all__ = ["TDLambdaEstimator"]


@register_value_estimator(
    ValueEstimators.TDLambda, default_kwargs={"gamma": 0.99, "lmbda": 0.95, "differentiable": True}
)
class TDLambdaEstimator(TDEstimatorBase):
    """TD(lambda) return (Sutton & Barto 2018, chapter 12).

    With ``n[t] = (1 - terminated[t]) w[t]``, ``w`` the value of the true next state::

        R[t] = r[t] + gamma ((1 - lmbda) n[t] + lmbda (n[t] if done[t] or t = T-1 else R[t+1]))

    ``lmbda=0`` is TD(0), ``lmbda=1`` is TD(1). ``forward`` writes the value target ``R`` and the advantage ``R - v``
    beside the values.

    Keyword Args:
        gamma: see :class:`~tritonrl.objectives.value.estimators.td.TDEstimatorBase`, as for all not listed here.
        lmbda: trace decay, a number or a tensor like ``gamma``.
        vectorized: accepted for compatibility. Every call runs the same kernel.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> critic = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["obs"], out_keys=["state_value"])
        >>> done = torch.tensor([[False], [True]])
        >>> step = {"obs": torch.randn(2, 3), "reward": torch.ones(2, 1), "done": done}
        >>> rollout = TensorDict({"obs": torch.randn(2, 3), "next": step}, batch_size=[2])
        >>> TDLambdaEstimator(gamma=0.5, lmbda=1.0, value_network=critic)(rollout)["value_target"].squeeze(-1)
        tensor([1.5000, 1.0000])
    """

    _min_reward_std: ClassVar[float] = 1e-4

    def __init__(
        self,
        *,
        gamma: float | Tensor,
        lmbda: float | Tensor,
        average_rewards: bool = False,
        vectorized: bool = True,
        time_dim: int | None = None,
        **options: Unpack[EstimatorOptions],
    ) -> None:
        super().__init__(gamma=gamma, average_rewards=average_rewards, time_dim=time_dim, **options)
        self._register_coefficient("lmbda", lmbda)
        self.vectorized = vectorized

    def _returns(self, steps: Steps) -> Tensor:
        lmbda = self._coefficient("lmbda", steps.reward, steps.next_value)
        return td_lambda_return_estimate(
            steps.gamma, lmbda, steps.next_value, steps.reward, steps.done, steps.terminated, time_dim=steps.time_dim
        )
