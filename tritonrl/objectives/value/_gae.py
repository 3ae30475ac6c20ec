"""Generalised advantage estimation."""

from __future__ import annotations

from torch import Tensor

from tritonrl.kernels import gae

from ._checks import check_steps
from ._discounts import Discount, align


def generalized_advantage_estimate(
    gamma: Discount,
    lmbda: Discount,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    *,
    time_dim: int = -2,
) -> tuple[Tensor, Tensor]:
    r"""Generalised advantage estimate (GAE) and value target, from `Schulman et al. 2015`_.

    .. math::
        \delta_t = r_t + \gamma_t (1 - z_t) w_t - v_t, \qquad
        A_t = \delta_t + \gamma_t \lambda_t (1 - d_t) A_{t+1}, \qquad
        \text{target}_t = A_t + v_t

    Args:
        gamma: discount factor, a number or a tensor that broadcasts to the data.
        lmbda: trace decay, likewise.
        state_value: value of the state, ``[*B, T, F]``.
        next_state_value: value of the true next state, same shape.
        reward: reward of the transition, same shape.
        done: end of a trajectory, boolean, same shape.
        terminated: end in a terminal state, boolean, same shape; ``None`` means ``done``.
        time_dim: the dimension of time.

    Returns:
        ``(advantage, value_target)``, both of the shape of ``reward``.

    Raises:
        RuntimeError: if shapes differ, a discount does not broadcast, or ``time_dim`` is out of range.
        ValueError: if 1-D data come with the default ``time_dim``.
        TypeError: if a flag is a float tensor, or an argument is no tensor.

    Example:
        >>> import torch
        >>> value = torch.tensor([[0.5], [1.0]])
        >>> next_value = torch.tensor([[1.0], [2.0]])
        >>> done = torch.tensor([[False], [True]])
        >>> advantage, target = generalized_advantage_estimate(
        ...     gamma=0.5, lmbda=1.0, state_value=value, next_state_value=next_value, reward=torch.ones(2, 1), done=done
        ... )
        >>> advantage.tolist(), target.tolist()
        ([[1.0], [0.0]], [[1.5], [1.0]])

    .. _Schulman et al. 2015: https://arxiv.org/abs/1506.02438
    """
    return _gae(gamma, lmbda, state_value, next_state_value, reward, done, terminated, time_dim, float_done=False)


def vec_generalized_advantage_estimate(
    gamma: Discount,
    lmbda: Discount,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    *,
    time_dim: int = -2,
) -> tuple[Tensor, Tensor]:
    """:func:`generalized_advantage_estimate` under its other name.

    As in TorchRL, this one also takes a float ``done`` if ``terminated`` is given (any non-zero entry counts as done).

    Example:
        >>> import torch
        >>> zero, end = torch.zeros(2, 1), torch.tensor([[False], [True]])
        >>> vec_generalized_advantage_estimate(0.5, 1.0, zero, zero, zero + 1, end)[0].tolist()
        [[1.5], [1.0]]
    """
    return _gae(gamma, lmbda, state_value, next_state_value, reward, done, terminated, time_dim, float_done=True)


def gae_with_moments(
    gamma: Discount,
    lmbda: Discount,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor,
    *,
    time_dim: int,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`generalized_advantage_estimate`, and count, mean and M2 of the advantages from the same pass.

    Args:
        valid: bool, broadcasts to the data: steps that count. Elsewhere advantage and target are 0.

    The others are those of :func:`generalized_advantage_estimate`.

    Returns:
        ``(advantage, value_target, moments)``; the moments, ``[3]``, are what
        :func:`tritonrl.kernels.standardise` takes, and have no gradient.
    """
    values = {"state_value": state_value, "next_state_value": next_state_value}
    done, ended = check_steps(time_dim, reward, done, terminated, values)
    gamma, lmbda = align("gamma", gamma, reward, time_dim), align("lmbda", lmbda, reward, time_dim)
    return gae(
        reward,
        state_value,
        next_state_value,
        done,
        ended,
        gamma=gamma,
        lmbda=lmbda,
        time_dim=time_dim,
        valid=valid,
        moments=True,
    )


def _gae(
    gamma: Discount,
    lmbda: Discount,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None,
    time_dim: int,
    *,
    float_done: bool,
) -> tuple[Tensor, Tensor]:
    values = {"state_value": state_value, "next_state_value": next_state_value}
    done, terminated = check_steps(time_dim, reward, done, terminated, values, float_done=float_done)
    gamma, lmbda = align("gamma", gamma, reward, time_dim), align("lmbda", lmbda, reward, time_dim)
    return gae(reward, state_value, next_state_value, done, terminated, gamma=gamma, lmbda=lmbda, time_dim=time_dim)
