"""Losses on plain tensors that are no loss modules."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cross_entropy_loss"]

_ONE_HOT_DTYPES = (torch.bool, torch.long, torch.uint8)


def cross_entropy_loss(log_policy: Tensor, action: Tensor, inplace: bool = False) -> Tensor:
    r"""Log-probability of the actions taken, :math:`\log \pi(a)`, under a categorical policy.

    Args:
        log_policy: log-probabilities, ``[*B, A]``.
        action: the actions, either their indices, an integer tensor of shape ``[*B]``, or their one-hot encoding, a
            ``bool``, ``long`` or ``uint8`` tensor of shape ``[*B, A]`` with exactly one 1 in each row.
        inplace: let a one-hot selection overwrite ``log_policy``: the log-probabilities of all other actions become 0.

    Returns:
        The log-probabilities, ``[*B]``, in the dtype of ``log_policy``. Those of the other actions have no influence on
        it, not even an ``-inf``.

    Raises:
        RuntimeError: if ``action`` has another shape, or a one-hot row does not hold exactly one 1. The rows are
            checked without waiting for the device: on CUDA the error is a device-side assertion.
        TypeError: if ``action`` has another dtype.

    Example:
        >>> import torch
        >>> log_policy = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
        >>> cross_entropy_loss(log_policy, torch.tensor([1, 0])).tolist()
        [-2.0, -3.0]
        >>> cross_entropy_loss(log_policy, torch.tensor([[True, False], [False, True]])).tolist()
        [-1.0, -4.0]
    """
    if action.shape == log_policy.shape:
        return _select_one_hot(log_policy, action, inplace)
    if action.shape == log_policy.shape[:-1]:
        return _select_index(log_policy, action)
    raise RuntimeError(
        f"action has shape {tuple(action.shape)} but log_policy has shape {tuple(log_policy.shape)}: expected "
        f"{tuple(log_policy.shape[:-1])} (indices) or {tuple(log_policy.shape)} (one-hot)"
    )


def _select_index(log_policy: Tensor, action: Tensor) -> Tensor:
    if action.dtype is torch.bool or action.is_floating_point() or action.is_complex():
        raise TypeError(f"action indices must be integers, got {action.dtype}")
    return log_policy.gather(-1, action.long().unsqueeze(-1)).squeeze(-1)


def _select_one_hot(log_policy: Tensor, action: Tensor, inplace: bool) -> Tensor:
    if action.dtype not in _ONE_HOT_DTYPES:
        raise TypeError(f"a one-hot action must be bool, long or uint8, got {action.dtype}")
    chosen = action if action.dtype is torch.bool else action == 1
    # A row is one-hot if its only non-zero entry is a 1.
    assert_all(
        ((action != 0).sum(-1) == 1) & (chosen.sum(-1) == 1),
        "action must be a one-hot encoding: a row does not hold exactly one 1 and zeros otherwise",
    )
    selected = log_policy.masked_fill_(~chosen, 0.0) if inplace else torch.where(chosen, log_policy, 0.0)
    return selected.sum(-1)


def assert_all(condition: Tensor, message: str) -> None:
    """Raise ``RuntimeError`` unless ``condition`` holds everywhere, without a wait for the device or a graph break."""
    if not torch.compiler.is_compiling():
        # The assertion has no vmap rule, and needs none: what holds for all entries holds for those of each example.
        while torch._C._functorch.is_batchedtensor(condition):
            condition = torch._C._functorch.get_unwrapped(condition)
    torch._assert_async(condition.all(), message)
