"""TD(1): the return up to the end of the trajectory."""

from __future__ import annotations

from torch import Tensor

from tritonrl.objectives.value.functional import td1_return_estimate
from tritonrl.objectives.value.registry import ValueEstimators, register_value_estimator

from .signals import Steps
from .td import TDEstimatorBase

__all__ = ["TD1Estimator"]


@register_value_estimator(ValueEstimators.TD1, default_kwargs={"gamma": 0.99, "differentiable": True})
class TD1Estimator(TDEstimatorBase):
    """Return up to the end of the trajectory, bootstrapped there unless it terminated.

    TD(lambda) at lambda = 1 (Sutton & Barto 2018, chapter 12). With ``w`` the value of the true next state::

        R[t] = r[t] + gamma (1 - terminated[t]) (w[t] if done[t] or t = T-1 else R[t+1])

    ``forward`` writes the value target ``R`` and the advantage ``R - v`` beside the values.

    Keyword Args:
        gamma: see :class:`~tritonrl.objectives.value.estimators.td.TDEstimatorBase`, as for the other arguments.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> critic = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["obs"], out_keys=["state_value"])
        >>> done = torch.tensor([[False], [False], [True]])
        >>> step = {"obs": torch.randn(3, 3), "reward": torch.ones(3, 1), "done": done}
        >>> rollout = TensorDict({"obs": torch.randn(3, 3), "next": step}, batch_size=[3])
        >>> TD1Estimator(gamma=0.5, value_network=critic)(rollout)["value_target"].squeeze(-1)
        tensor([1.7500, 1.5000, 1.0000])
    """

    def _returns(self, steps: Steps) -> Tensor:
        return td1_return_estimate(
            steps.gamma, steps.next_value, steps.reward, steps.done, steps.terminated, time_dim=steps.time_dim
        )
