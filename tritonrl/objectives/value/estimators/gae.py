"""Generalised advantage estimation."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import skip_existing
from tensordict.utils import expand_right
from torch import Tensor

from tritonrl.kernels import standardise
from tritonrl.objectives.value._gae import gae_with_moments
from tritonrl.objectives.value.functional import generalized_advantage_estimate
from tritonrl.objectives.value.registry import ValueEstimators, register_value_estimator

from .base import ValueEstimatorBase
from .finite_check import finite
from .keys import next_key
from .options import EstimatorOptions
from .shifted import SHIFTED_VALID_KEY
from .signals import Steps, check_shapes, read_entry, write_entries, zero_where_invalid

__all__ = ["GAE"]

MIN_STD = 1e-4


@register_value_estimator(ValueEstimators.GAE, default_kwargs={"gamma": 0.99, "lmbda": 0.95, "differentiable": True})
class GAE(ValueEstimatorBase):
    """Generalised advantage estimation (Schulman et al. 2016, https://arxiv.org/abs/1506.02438).

    With value ``v``, value of the true next state ``w``, reward ``r``, done ``d``, terminated ``z``, per step ``t``::

        delta[t] = r[t] + gamma (1 - z[t]) w[t] - v[t]
        A[t]     = delta[t] + gamma lmbda (1 - d[t]) A[t+1],      A[T] = 0
        value_target[t] = A[t] + v[t]

    A truncated step (done, not terminated) still bootstraps; nothing behind a done reaches a step before it.

    ``forward`` writes into the rollout, all ``[*B, T, *F]``: the value at the root and under ``"next"``, the advantage
    and the value target; with ``shifted`` also ``"shifted_valid"`` ``[*B, T]``.

    Keyword Args:
        gamma: discount, a number or a tensor (0-dim, or one per step). A number is kept in float64 and rounded to the
            precision of the data; a tensor stays what it is.
        lmbda: between low variance (0: TD(0)) and low bias (1: TD(1)); like ``gamma``.
        average_gae: standardise the advantage (not the target) to mean 0 and standard deviation 1, the latter at least
            1e-4; over the valid steps where there is a ``"shifted_valid"`` mask, over each group with ``group_key``.
        vectorized: accepted for compatibility. Every call runs the same kernel.
        time_dim: batch dimension that is time; by default the one named ``"time"``, else the last.
        auto_reset_env: for environments whose stored last next state is already the first of another trajectory.
            Truncated steps then bootstrap from their own value, ``r + gamma v``, and ``done`` stands for terminated.
            Reads ``("next", "truncated")``.
        **options: those of :class:`ValueEstimatorBase`, ``value_network`` (required) among them.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> critic = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["obs"], out_keys=["state_value"])
        >>> gae = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
        >>> done = torch.zeros(4, 8, 1, dtype=torch.bool)
        >>> step = {"obs": torch.randn(4, 8, 3), "reward": torch.ones(4, 8, 1), "done": done}
        >>> rollout = TensorDict({"obs": torch.randn(4, 8, 3), "next": step}, batch_size=[4, 8])
        >>> gae(rollout)["advantage"].shape
        torch.Size([4, 8, 1])
    """

    _is_one_sample: ClassVar[bool] = True
    """Whether ``average_gae`` takes all advantages together."""

    def __init__(
        self,
        *,
        gamma: float | Tensor,
        lmbda: float | Tensor,
        average_gae: bool = False,
        vectorized: bool | None = None,
        time_dim: int | None = None,
        auto_reset_env: bool = False,
        **options: Unpack[EstimatorOptions],
    ) -> None:
        super().__init__(**options)
        self._register_coefficient("gamma", gamma)
        self._register_coefficient("lmbda", lmbda)
        self.average_gae = average_gae
        self.vectorized = vectorized
        self.time_dim = time_dim
        self.auto_reset_env = auto_reset_env

    def value_estimate(
        self,
        tensordict: TensorDictBase,
        params: TensorDictBase | None = None,
        target_params: TensorDictBase | None = None,
        time_dim: int | None = None,
        next_value: Tensor | None = None,
    ) -> Tensor:
        """The value target ``[*B, T, *F]``. Writes the values into ``tensordict``, but no advantage and no target.

        The ambient grad mode holds, whatever ``differentiable`` says; parameters that are passed in are not detached.

        Args:
            tensordict: a rollout.
            params: parameters for the value network; by default its own, held out of the graph.
            target_params: parameters for the next values; by default ``params``.
            time_dim: see :meth:`forward`.
            next_value: values of the next states ``[*B, T, *F]``, to be used instead of the network's.

        Raises:
            RuntimeError, KeyError, ValueError: see :meth:`forward`.
        """
        data = self._without_padding(tensordict)
        steps, written = self._steps(data, params, target_params, time_dim, skip_existing(), next_value)
        _, target = self._advantage_and_target(steps, data)
        finite({self.tensor_keys.value_target: target})
        write_entries(tensordict, written)
        return target

    def _results(self, steps: Steps, tensordict: TensorDictBase) -> dict[NestedKey, Tensor]:
        if self.average_gae and self._moments_come_along(steps, tensordict):
            advantage, target = self._standardised_on_the_way(steps, tensordict)
        else:
            advantage, target = self._advantage_and_target(steps, tensordict)
            if self.average_gae:
                advantage = self._standardised_advantage(advantage, MIN_STD, steps, tensordict)
        return {self.tensor_keys.advantage: advantage, self.tensor_keys.value_target: target}

    def _advantage_and_target(self, steps: Steps, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        steps, lmbda = self._steps_and_lmbda(steps, tensordict)
        advantage, target = generalized_advantage_estimate(
            *(steps.gamma, lmbda, steps.value, steps.next_value, steps.reward, steps.done, steps.terminated),
            time_dim=steps.time_dim,
        )
        return zero_where_invalid(advantage, steps.valid), zero_where_invalid(target, steps.valid)

    def _steps_and_lmbda(self, steps: Steps, tensordict: TensorDictBase) -> tuple[Steps, Tensor]:
        if self.auto_reset_env:
            steps = self._bootstrap_from_own_value(steps, tensordict)
        return steps, self._coefficient("lmbda", steps.reward, steps.value, steps.next_value)

    def _moments_come_along(self, steps: Steps, tensordict: TensorDictBase) -> bool:
        """Whether the kernel's own moments are those to standardise with: of one sample, which is that of this call, and
        of no interest to a gradient (they have none) or to ``vmap`` (which would mix the batches up)."""
        if not self._is_one_sample or self.group_key is not None:
            return False
        if steps.valid is None and tensordict.get(SHIFTED_VALID_KEY, None) is not None:
            return False
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            return False
        inputs = (steps.gamma, steps.reward, steps.value, steps.next_value, self.lmbda)
        return not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs))

    def _standardised_on_the_way(self, steps: Steps, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Advantage, standardised by the moments that the kernel took in the same pass, and value target."""
        steps, lmbda = self._steps_and_lmbda(steps, tensordict)
        valid = None if steps.valid is None else expand_right(steps.valid, steps.reward.shape)
        advantage, target, moments = gae_with_moments(
            *(steps.gamma, lmbda, steps.value, steps.next_value, steps.reward, steps.done, steps.terminated),
            time_dim=steps.time_dim,
            valid=valid,
        )
        correction = 1 if valid is None else 0
        return standardise(advantage, moments, valid=valid, eps=MIN_STD, correction=correction), target

    def _bootstrap_from_own_value(self, steps: Steps, tensordict: TensorDictBase) -> Steps:
        key = next_key("truncated")
        truncated = read_entry(tensordict, key, "truncated flag (read because of auto_reset_env=True)")
        truncated = self._fit_signal(key, truncated, steps.value)
        check_shapes((next_key(self.tensor_keys.reward), steps.reward), (key, truncated))
        reward = torch.where(truncated, steps.reward + steps.gamma * steps.value, steps.reward)
        return steps._replace(reward=reward, terminated=steps.done)
