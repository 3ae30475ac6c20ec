"""The functions that users of :mod:`tritonrl.kernels` call: argument checks in front of the ops."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from .dtypes import accumulate_dtype, result_dtype
from .ops import call
from .specs import full_shape

Discount: TypeAlias = float | Tensor


def _discount(name: str, x: Discount, like: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A discount as a tensor that broadcasts to ``shape``.

    A Python number becomes a 0-dim CPU tensor in eager mode, which costs no kernel launch and no copy to the device: the
    backend reads it on the host. A compiled graph would lose CUDA graphs to a CPU tensor, so there it is made on the device.
    """
    if isinstance(x, Tensor):
        if x.dim() or x.device.type != "cpu":
            _check_device(name, x, like)
        _check_shape(name, x, shape)
        return x
    if not isinstance(x, (int, float)) and not torch.is_tensor(x) and not hasattr(x, "__float__"):
        raise TypeError(f"{name} must be a number or a tensor, got {type(x).__name__}")
    if torch.compiler.is_compiling():
        return torch.full((), x, dtype=accumulate_dtype(dtype), device=like.device)
    return torch.scalar_tensor(x, dtype=torch.float64)


def _fits(own: torch.Size, shape: torch.Size) -> bool:
    """Whether a tensor of shape ``own`` can be expanded to ``shape``."""
    return len(own) <= len(shape) and all(n in (1, m) for n, m in zip(reversed(own), reversed(shape), strict=False))


def _check_shape(name: str, x: Tensor, shape: torch.Size) -> None:
    if x.shape != shape and not _fits(x.shape, shape):
        raise RuntimeError(f"{name} of shape {tuple(x.shape)} does not broadcast to the data's shape {tuple(shape)}")


def _check_device(name: str, x: Tensor, like: Tensor) -> None:
    # A kernel would take another device's memory for its own.
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, expected {like.device}, where the data are")


def _flag(name: str, x: Tensor, like: Tensor, shape: torch.Size) -> Tensor:
    """A bool tensor that broadcasts to ``shape``; integers mean "not zero"."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a bool tensor, got {type(x).__name__}")
    if x.dtype is not torch.bool:
        if x.dtype.is_floating_point or x.dtype.is_complex:
            raise TypeError(f"{name} must be a bool tensor, got dtype {x.dtype}")
        x = x != 0
    _check_device(name, x, like)
    _check_shape(name, x, shape)
    return x


def _shape(**data: Tensor) -> torch.Size:
    """The common shape of the data, with an error that names who does not fit."""
    first_name, first = next(iter(data.items()))
    for name, x in data.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if x.dtype.is_complex:
            raise TypeError(f"{name} must be real, got dtype {x.dtype}")
        if x.device != first.device:
            raise ValueError(f"{name} is on {x.device}, expected {first.device}, where {first_name} is")
    try:
        return full_shape(list(data.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in data.items())
        raise RuntimeError(f"shapes do not broadcast together: {shapes}") from None


def _negative(time_dim: int, shape: torch.Size) -> int:
    """``time_dim`` counted from the end, where batch dimensions that come in front do not move it."""
    rank = len(shape)
    if not -rank <= time_dim < rank:
        raise RuntimeError(f"time_dim is {time_dim}, expected -{rank} to {rank - 1} for data of shape {tuple(shape)}")
    return time_dim - rank if time_dim >= 0 else time_dim


def linear_recurrence(
    a: Tensor, b: Tensor, carry: Tensor | None = None, *, time_dim: int = -1, reverse: bool = True
) -> Tensor:
    r"""The first-order linear recurrence that everything else here is made of.

    .. math:: y_t = b_t + a_t\, y_{t+1}, \qquad y_T = \text{carry or } 0

    With ``reverse=False`` the same forwards in time: :math:`y_t = b_t + a_t\, y_{t-1}` and :math:`y_{-1}` = carry.
    Where ``a`` is exactly zero nothing of the neighbouring step is read, so a NaN behind a cut stays behind it.

    Args:
        a: coefficients; broadcasts with ``b`` to the shape ``S`` of the result.
        b: what each step adds.
        carry: the state that enters the first step to be computed, of shape ``S`` without the time dimension.
        time_dim: the dimension of ``S`` that is time.
        reverse: from the last step to the first (the default), or from the first to the last.

    Returns:
        ``y`` of shape ``S``, in the promoted dtype of ``a`` and ``b``, differentiable to ``a``, ``b`` and ``carry``.

    Raises:
        RuntimeError: if shapes do not broadcast, or ``time_dim`` is out of range.

    Example:
        >>> linear_recurrence(torch.tensor([0.5, 0.5, 0.5]), torch.ones(3))
        tensor([1.7500, 1.5000, 1.0000])
    """
    shape = _shape(a=a, b=b)
    time_dim = _negative(time_dim, shape)
    if carry is not None:
        if not isinstance(carry, Tensor):
            raise TypeError(f"carry must be a tensor, got {type(carry).__name__}")
        _check_device("carry", carry, b)
        lanes = shape[:time_dim] + shape[len(shape) + time_dim + 1 :]
        if carry.shape != lanes and not _fits(carry.shape, lanes):
            raise RuntimeError(
                f"carry has shape {tuple(carry.shape)}, expected {tuple(lanes)} (the data's without time)"
            )
    result: Tensor = call("linear_recurrence", a, b, carry, time_dim, reverse)
    return result


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    *,
    gamma: Discount,
    lmbda: Discount,
    time_dim: int = -2,
) -> tuple[Tensor, Tensor]:
    r"""Generalized advantage estimation and its value target, in one pass over the data.

    .. math::
        \delta_t = r_t + \gamma_t (1 - Z_t) V'_t - V_t, \qquad
        A_t = \delta_t + \gamma_t \lambda_t (1 - D_t) A_{t+1}, \qquad
        \text{target}_t = A_t + V_t

    with done :math:`D` and terminated :math:`Z`. Both are selects, not products: NaN behind them never reaches a result.

    Args:
        reward, value, next_value: broadcast together to the shape ``S``. ``next_value[t]`` is the value of the state that
            transition ``t`` led to, also where an episode was cut.
        done: bool, broadcasts to ``S``; the transition ended its trajectory for whatever reason.
        terminated: bool; it ended in a terminal state, which has no value. ``None``: the same as ``done``.
        gamma, lmbda: numbers, or tensors that broadcast to ``S``.
        time_dim: the dimension of ``S`` that is time. No layout is copied or transposed.

    Returns:
        ``(advantage, value_target)`` of shape ``S``, in the promoted dtype; differentiable to every floating input.

    Raises:
        RuntimeError: if shapes do not broadcast, or ``time_dim`` is out of range.
        TypeError: if a flag is neither bool nor integer.

    Source: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation".

    Example:
        >>> reward, value = torch.ones(4, 1), torch.zeros(4, 1)          # [T, 1]
        >>> done = torch.tensor([[False], [True], [False], [False]])
        >>> advantage, target = gae(reward, value, value, done, gamma=0.9, lmbda=1.0)
        >>> advantage.squeeze(-1)
        tensor([1.9000, 1.0000, 1.9000, 1.0000])
    """
    shape = _shape(reward=reward, value=value, next_value=next_value)
    dtype = result_dtype(reward, value, next_value)
    result: tuple[Tensor, Tensor] = call(
        "gae",
        reward,
        value,
        next_value,
        _flag("done", done, reward, shape),
        None if terminated is None else _flag("terminated", terminated, reward, shape),
        _discount("gamma", gamma, value, shape, dtype),
        _discount("lmbda", lmbda, value, shape, dtype),
        _negative(time_dim, shape),
    )
    return result


def td_lambda_return(
    reward: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    *,
    gamma: Discount,
    lmbda: Discount,
    time_dim: int = -2,
) -> Tensor:
    r"""TD(:math:`\lambda`) returns; ``lmbda=1`` gives TD(1), the discounted return bootstrapped where a trajectory is cut.

    .. math::
        R_t = r_t + \gamma_t \left[(1 - \lambda_t) n_t + \lambda_t G_t\right], \qquad n_t = (1 - Z_t) V'_t, \qquad
        G_t = n_t \text{ where } D_t \text{ or } t = T-1, \text{ else } R_{t+1}

    Arguments, result and errors as in :func:`gae`.

    Source: Sutton and Barto, "Reinforcement Learning", 2nd edition, chapter 12.

    Example:
        >>> reward, next_value = torch.ones(3, 1), torch.full((3, 1), 10.0)
        >>> done = torch.zeros(3, 1, dtype=torch.bool)
        >>> td_lambda_return(reward, next_value, done, gamma=0.5, lmbda=1.0).squeeze(-1)
        tensor([3., 4., 6.])
    """
    shape = _shape(reward=reward, next_value=next_value)
    dtype = result_dtype(reward, next_value)
    result: Tensor = call(
        "td_lambda_return",
        reward,
        next_value,
        _flag("done", done, reward, shape),
        None if terminated is None else _flag("terminated", terminated, reward, shape),
        _discount("gamma", gamma, reward, shape, dtype),
        _discount("lmbda", lmbda, reward, shape, dtype),
        _negative(time_dim, shape),
    )
    return result


def reward_to_go(reward: Tensor, done: Tensor, *, gamma: Discount, time_dim: int = -2) -> Tensor:
    r"""Discounted sum of the rewards that are still to come, never bootstrapped.

    .. math:: G_t = r_t + \gamma_t (1 - D_t) G_{t+1}, \qquad G_T = 0

    Arguments, result and errors as in :func:`gae`.

    Example:
        >>> done = torch.tensor([False, False, True])
        >>> reward_to_go(torch.ones(3), done, gamma=0.5, time_dim=-1)
        tensor([1.7500, 1.5000, 1.0000])
    """
    shape = _shape(reward=reward)
    result: Tensor = call(
        "reward_to_go",
        reward,
        _flag("done", done, reward, shape),
        _discount("gamma", gamma, reward, shape, result_dtype(reward)),
        _negative(time_dim, shape),
    )
    return result


def vtrace(
    log_pi: Tensor,
    log_mu: Tensor,
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    *,
    gamma: Discount,
    rho_thresh: Discount = 1.0,
    c_thresh: Discount = 1.0,
    time_dim: int = -2,
) -> tuple[Tensor, Tensor]:
    r"""V-trace: off-policy corrected value targets and the advantage for the policy gradient.

    With :math:`\rho_t = \min(\pi_t/\mu_t, \bar\rho)` and :math:`c_t = \min(\pi_t/\mu_t, \bar c)`:

    .. math::
        \delta_t = \rho_t (r_t + \gamma_t (1 - Z_t) V'_t - V_t), \qquad
        v_t = V_t + x_t, \quad x_t = \delta_t + \gamma_t c_t (1 - D_t) x_{t+1}, \qquad
        A_t = \rho_t (r_t + \gamma_t (1 - Z_t) u_t - V_t)

    where :math:`u_t = v_{t+1}`, or :math:`V'_t` where the trajectory ends (``done``, or the last step).

    Args:
        log_pi, log_mu: log-probabilities of the taken action under the current policy and the one that acted.
        rho_thresh, c_thresh: the clipping thresholds :math:`\bar\rho`, :math:`\bar c`; numbers or tensors.

    The other arguments and the errors as in :func:`gae`.

    Returns:
        ``(advantage, v)`` of shape ``S``, differentiable to every floating input.

    Source: Espeholt et al. 2018, "IMPALA: scalable distributed deep-RL with importance weighted actor-learner architectures".

    Example:
        >>> x, done = torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.bool)
        >>> advantage, target = vtrace(x, x, x + 1.0, x, x, done, gamma=0.5)
        >>> target.squeeze(-1)
        tensor([1.5000, 1.0000])
    """
    data = {"log_pi": log_pi, "log_mu": log_mu, "reward": reward, "value": value, "next_value": next_value}
    shape = _shape(**data)
    dtype = result_dtype(*data.values())
    result: tuple[Tensor, Tensor] = call(
        "vtrace",
        *data.values(),
        _flag("done", done, reward, shape),
        None if terminated is None else _flag("terminated", terminated, reward, shape),
        _discount("gamma", gamma, value, shape, dtype),
        _discount("rho_thresh", rho_thresh, value, shape, dtype),
        _discount("c_thresh", c_thresh, value, shape, dtype),
        _negative(time_dim, shape),
    )
    return result
