"""Rewards to go."""

from __future__ import annotations

from torch import Tensor

from tritonrl.kernels import reward_to_go

from ._checks import as_flag, check_tensors, check_time_dim, shape_text
from ._discounts import Discount, align, is_constant


def reward2go(reward: Tensor, done: Tensor, gamma: Discount, *, time_dim: int = -2) -> Tensor:
    r"""Discounted sum of the rewards from each step to the end of its trajectory, never bootstrapped.

    .. math::
        G_t = r_t + \gamma (1 - d_t) G_{t+1}, \qquad G_T = 0

    Args:
        reward: reward of the transition, ``[*B, T, F]``; integer rewards are summed in the default float dtype.
        done: end of a trajectory, boolean (or any number, where non-zero means done), same shape.
        gamma: discount factor, a number or a tensor with one element.
        time_dim: the dimension of time.

    Returns:
        The rewards to go, of the shape of ``reward``.

    Raises:
        ValueError: if the shapes differ, or 1-D data come with the default ``time_dim``.
        RuntimeError: if ``gamma`` has more than one element, or ``time_dim`` is out of range.
        TypeError: if an argument is no tensor.

    Example:
        >>> import torch
        >>> done = torch.tensor([[False], [True], [False]])
        >>> reward2go(torch.ones(3, 1), done, gamma=0.5).tolist()
        [[1.5], [1.0], [1.0]]
    """
    check_tensors(reward=reward, done=done)
    if reward.shape != done.shape:
        raise ValueError(
            f"done has shape {shape_text(done.shape)} but reward has shape {shape_text(reward.shape)}: "
            "they must share one shape"
        )
    check_time_dim(time_dim, reward)
    if isinstance(gamma, Tensor) and not is_constant(gamma):
        raise RuntimeError(
            f"gamma must be a number or have one element, got a tensor of shape {shape_text(gamma.shape)}"
        )
    done = as_flag("done", done, allow_float=True)
    return reward_to_go(reward, done, gamma=align("gamma", gamma, reward, time_dim), time_dim=time_dim)
