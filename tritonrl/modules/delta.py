"""All mass on one point: the distribution of a deterministic policy on a bounded action space."""

from __future__ import annotations

import torch
from tensordict.nn.distributions import Delta
from torch import Tensor

from tritonrl.modules.tanh_transform import Bound, SquashTransform, check_bounds

__all__ = ["TanhDelta"]


class TanhDelta(Delta):
    r"""All mass on a point that is squashed onto an interval by tanh.

    .. math:: a = \tfrac{high - low}{2} \tanh(param) + \tfrac{high + low}{2}

    Mean, mode and every sample are that action; its log-probability is plus infinity, that of any other minus infinity.

    Args:
        param: the point before squashing, ``[*B, *event]``.
        low: lower end of the interval, a number or a tensor that broadcasts against the action.
        high: upper end, likewise.
        event_dims: number of trailing dimensions that make one action.
        atol: how far an action may be away and still count as the point.
        rtol: likewise, in proportion.
        safe: keep the action strictly inside the interval.

    Raises:
        RuntimeError: if ``low`` is not below ``high``.
        ValueError: if a bound does not broadcast against ``param``, or ``event_dims`` is out of range.

    Example:
        >>> TanhDelta(torch.zeros(3, 2), low=0.0, high=4.0).sample()[0]
        tensor([2., 2.])
    """

    def __init__(
        self,
        param: Tensor,
        low: Bound = -1.0,
        high: Bound = 1.0,
        event_dims: int = 1,
        atol: float = 1e-6,
        rtol: float = 1e-6,
        safe: bool = True,
    ) -> None:
        if not 0 <= event_dims <= param.ndim:
            raise ValueError(f"TanhDelta: event_dims must be between 0 and {param.ndim}, got {event_dims}")
        check_bounds("TanhDelta", low, high, param.shape)
        self._squash = SquashTransform(low, high, safe)
        batch_dims = param.ndim - event_dims
        # Its constructor calls `update`, which squashes.
        super().__init__(param, atol, rtol, param.shape[:batch_dims], param.shape[batch_dims:])

    def update(self, param: Tensor) -> None:
        """Move the mass to another point, given before squashing."""
        self.param = self._squash(param)

    @property
    def low(self) -> Tensor:
        """Lower end of the interval."""
        return torch.as_tensor(self._squash.low, dtype=self.param.dtype, device=self.param.device)

    @property
    def high(self) -> Tensor:
        """Upper end of the interval."""
        return torch.as_tensor(self._squash.high, dtype=self.param.dtype, device=self.param.device)
