"""How much each imagined step counts in a Dreamer loss."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["horizon_weights"]


def horizon_weights(gamma: Tensor, like: Tensor) -> Tensor:
    r"""The discount from the start of the imagination to each step, :math:`w_0 = 1,\ w_t = \prod_{i < t} \gamma_i`.

    A state that is t steps away counts :math:`\gamma^t`, whatever its own return already discounts.

    Args:
        gamma: the discount, 0-dim, or one for each step, broadcastable to ``like``.
        like: what is weighed, ``[*B, H, F]``; time is its second-last dimension.

    Returns:
        Weights in the shape, dtype and device of ``like``, without gradient to it.

    Examples:
        >>> horizon_weights(torch.tensor(0.5), torch.zeros(3, 1)).flatten()
        tensor([1.0000, 0.5000, 0.2500])
    """
    per_step = gamma.to(like.device, like.dtype).expand(like.shape)
    first = torch.ones_like(like[..., :1, :])
    return torch.cat([first, per_step[..., :-1, :]], -2).cumprod(-2)
