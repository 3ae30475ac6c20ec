"""Temporal-difference returns and advantages: TD(0), TD(1) and TD(lambda)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from tritonrl.kernels import td_lambda_return
from tritonrl.kernels.dtypes import accumulate_dtype, result_dtype

from ._checks import as_flag, check_same_shape, check_steps, check_tensors, shape_text
from ._discounts import Discount, align, is_constant
from ._fixed_discount import td_lambda_return_fixed_discount


def td0_return_estimate(
    gamma: Discount,
    next_state_value: Tensor,
    reward: Tensor,
    terminated: Tensor | None = None,
    *,
    done: Tensor | None = None,
) -> Tensor:
    r"""One-step bootstrapped return, element by element (`Sutton 1988`_).

    .. math::
        R_t = r_t + \gamma_t (1 - z_t) w_t

    Args:
        gamma: discount factor, a number or a tensor that broadcasts to the data.
        next_state_value: value of the true next state, any shape.
        reward: reward of the transition, same shape.
        terminated: end in a terminal state, boolean, same shape.
        done: stands in for a missing ``terminated``, with a ``UserWarning`` (not when compiled): a truncated step then
            loses its bootstrap.

    Returns:
        The returns, of the shape of ``reward``.

    Raises:
        RuntimeError: if shapes differ, or ``gamma`` does not broadcast.
        TypeError: if neither ``terminated`` nor ``done`` is given, if a flag is a float tensor, or if an argument is no
            tensor.

    Example:
        >>> import torch
        >>> terminated = torch.tensor([[False], [True]])
        >>> td0_return_estimate(0.5, torch.full((2, 1), 4.0), torch.ones(2, 1), terminated).tolist()
        [[3.0], [1.0]]

    .. _Sutton 1988: https://doi.org/10.1007/BF00115009
    """
    if terminated is None:
        if done is None:
            raise TypeError("td0_return_estimate needs terminated (or done), got neither")
        if not torch.compiler.is_compiling():  # Warning breaks the graph.
            warnings.warn(
                "td0_return_estimate was given done but not terminated: every done step, truncated ones included, is "
                "taken as terminated and is not bootstrapped. Pass terminated to tell them apart.",
                UserWarning,
                stacklevel=2,
            )
        terminated = done
    return _td0(gamma, {"next_state_value": next_state_value}, reward, {"terminated": terminated})


def td0_advantage_estimate(
    gamma: Discount,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
) -> Tensor:
    r"""TD(0) error: :func:`td0_return_estimate` minus ``state_value``.

    .. math::
        \delta_t = r_t + \gamma_t (1 - z_t) w_t - v_t

    ``terminated=None`` means ``done``. Shapes, results and errors as in :func:`td0_return_estimate`.

    Example:
        >>> import torch
        >>> one, done = torch.ones(2, 1), torch.tensor([[False], [True]])
        >>> td0_advantage_estimate(0.5, one, one, one, done).tolist()
        [[0.5], [0.0]]
    """
    flags = {"done": done} if terminated is None else {"done": done, "terminated": terminated}
    return _td0(gamma, {"next_state_value": next_state_value, "state_value": state_value}, reward, flags)


def td1_return_estimate(
    gamma: Discount,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    rolling_gamma: bool | None = None,
    *,
    time_dim: int = -2,
) -> Tensor:
    r"""Discounted sum of rewards to the end of the trajectory, bootstrapped there unless it is terminated.

    .. math::
        R_t = r_t + \gamma_t (1 - z_t) B_t, \qquad B_t = w_t \text{ if } d_t \text{ or } t = T-1 \text{ else } R_{t+1}

    Args:
        gamma: discount factor, a number or a tensor that broadcasts to the data.
        next_state_value: value of the true next state, ``[*B, T, F]``.
        reward: reward of the transition, same shape.
        done: end of a trajectory, boolean, same shape.
        terminated: end in a terminal state, boolean, same shape; ``None`` means ``done``.
        rolling_gamma: ``True`` or ``None``: ``gamma[t]`` is the discount of the transition ``t -> t+1``, so the reward
            ``k`` steps ahead weighs ``gamma[t] ... gamma[t+k-1]``. ``False``: ``gamma[t]`` holds for the whole future
            of ``t``, so that it weighs ``gamma[t]**k``; ``gamma`` must then have the shape of ``reward``, and a last
            step that is not done is *not* bootstrapped, unlike everywhere else (a convention of TorchRL, kept for
            compatibility).
        time_dim: the dimension of time.

    Returns:
        The returns, of the shape of ``reward``.

    Raises:
        RuntimeError: if shapes differ, ``gamma`` does not broadcast, ``time_dim`` is out of range, or
            ``rolling_gamma=False`` comes with a ``gamma`` that is not given per step.
        ValueError: if 1-D data come with the default ``time_dim``.
        TypeError: if a flag is a float tensor, or an argument is no tensor.

    Example:
        >>> import torch
        >>> done = torch.tensor([[False], [False], [True]])
        >>> value = torch.full((3, 1), 8.0)
        >>> td1_return_estimate(0.5, value, torch.ones(3, 1), done, torch.zeros_like(done)).tolist()
        [[2.75], [3.5], [5.0]]
        >>> gamma = torch.tensor([[0.5], [1.0], [1.0]])
        >>> td1_return_estimate(gamma, value, torch.ones(3, 1), done, rolling_gamma=False).tolist()
        [[1.75], [2.0], [1.0]]
    """
    values = {"next_state_value": next_state_value}
    return _td1(gamma, values, reward, done, terminated, rolling_gamma, time_dim)


def vec_td1_return_estimate(
    gamma: Discount,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    rolling_gamma: bool | None = None,
    time_dim: int = -2,
) -> Tensor:
    """:func:`td1_return_estimate` under its other name.

    As in TorchRL, ``rolling_gamma=False`` has no effect here (and is no error) on a ``gamma`` with one element.

    Example:
        >>> import torch
        >>> one, done = torch.ones(2, 1), torch.tensor([[False], [True]])
        >>> vec_td1_return_estimate(0.5, one, one, done).tolist()
        [[1.5], [1.0]]
    """
    values = {"next_state_value": next_state_value}
    return _td1(gamma, values, reward, done, terminated, rolling_gamma, time_dim, constant_rolls=True)


def td1_advantage_estimate(
    gamma: Discount,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    rolling_gamma: bool | None = None,
    time_dim: int = -2,
) -> Tensor:
    """TD(1) advantage: :func:`td1_return_estimate` minus ``state_value``; options and errors as there.

    Example:
        >>> import torch
        >>> one, done = torch.ones(2, 1), torch.tensor([[False], [True]])
        >>> td1_advantage_estimate(0.5, one, one, one, done).tolist()
        [[0.5], [0.0]]
    """
    values = {"next_state_value": next_state_value, "state_value": state_value}
    return _td1(gamma, values, reward, done, terminated, rolling_gamma, time_dim)


def vec_td1_advantage_estimate(
    gamma: Discount,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    rolling_gamma: bool | None = None,
    time_dim: int = -2,
) -> Tensor:
    """:func:`td1_advantage_estimate` under its other name; ``rolling_gamma`` as in :func:`vec_td1_return_estimate`.

    Example:
        >>> import torch
        >>> one, done = torch.ones(2, 1), torch.tensor([[False], [True]])
        >>> vec_td1_advantage_estimate(0.5, one, one, one, done).tolist()
        [[0.5], [0.0]]
    """
    values = {"next_state_value": next_state_value, "state_value": state_value}
    return _td1(gamma, values, reward, done, terminated, rolling_gamma, time_dim, constant_rolls=True)


def td_lambda_return_estimate(
    gamma: Discount,
    lmbda: Discount,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    rolling_gamma: bool | None = None,
    *,
    time_dim: int = -2,
) -> Tensor:
    r"""TD(lambda) return: the mix of all n-step returns (`Sutton 1988`_). TD(0) at ``lmbda=0``, TD(1) at ``lmbda=1``.

    With :math:`n_t = (1 - z_t) w_t`:

    .. math::
        R_t = r_t + \gamma_t ((1 - \lambda_t) n_t + \lambda_t G_t), \qquad
        G_t = n_t \text{ if } d_t \text{ or } t = T-1 \text{ else } R_{t+1}

    Args:
        gamma: discount factor, a number or a tensor that broadcasts to the data.
        lmbda: trace decay, likewise.
        next_state_value: value of the true next state, ``[*B, T, F]``.
        reward: reward of the transition, same shape.
        done: end of a trajectory, boolean, same shape.
        terminated: end in a terminal state, boolean, same shape; ``None`` means ``done``.
        rolling_gamma: ``True`` or ``None``: ``gamma[t]`` and ``lmbda[t]`` belong to the transition ``t -> t+1``, as
            above. ``False``: they hold for the whole future of step ``t``; ``gamma`` or ``lmbda`` must then have the
            shape of ``reward``.
        time_dim: the dimension of time.

    Returns:
        The returns, of the shape of ``reward``.

    Raises:
        RuntimeError: if shapes differ, a discount does not broadcast, ``time_dim`` is out of range, or
            ``rolling_gamma=False`` comes with neither ``gamma`` nor ``lmbda`` given per step.
        ValueError: if 1-D data come with the default ``time_dim``.
        TypeError: if a flag is a float tensor, or an argument is no tensor.

    Example:
        >>> import torch
        >>> done = torch.tensor([[False], [True]])
        >>> td_lambda_return_estimate(0.5, 0.5, torch.full((2, 1), 4.0), torch.ones(2, 1), done).tolist()
        [[2.25], [1.0]]

    .. _Sutton 1988: https://doi.org/10.1007/BF00115009
    """
    values = {"next_state_value": next_state_value}
    return _td_lambda(gamma, lmbda, values, reward, done, terminated, rolling_gamma, time_dim)


def vec_td_lambda_return_estimate(
    gamma: Discount,
    lmbda: Discount,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    rolling_gamma: bool | None = None,
    *,
    time_dim: int = -2,
) -> Tensor:
    """:func:`td_lambda_return_estimate` under its other name.

    As in TorchRL, ``rolling_gamma=False`` is no error here if ``gamma`` and ``lmbda`` have one element each; it then
    means the same as ``True``.

    Example:
        >>> import torch
        >>> one, done = torch.ones(2, 1), torch.tensor([[False], [True]])
        >>> vec_td_lambda_return_estimate(0.5, 0.5, 4 * one, one, done).tolist()
        [[2.25], [1.0]]
    """
    values = {"next_state_value": next_state_value}
    return _td_lambda(gamma, lmbda, values, reward, done, terminated, rolling_gamma, time_dim, constant_rolls=True)


def td_lambda_advantage_estimate(
    gamma: Discount,
    lmbda: Discount,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    rolling_gamma: bool | None = None,
    time_dim: int = -2,
) -> Tensor:
    """TD(lambda) advantage: :func:`td_lambda_return_estimate` minus ``state_value``; options and errors as there.

    Example:
        >>> import torch
        >>> one, done = torch.ones(2, 1), torch.tensor([[False], [True]])
        >>> td_lambda_advantage_estimate(0.5, 0.5, one, 4 * one, one, done).tolist()
        [[1.25], [0.0]]
    """
    values = {"next_state_value": next_state_value, "state_value": state_value}
    return _td_lambda(gamma, lmbda, values, reward, done, terminated, rolling_gamma, time_dim)


def vec_td_lambda_advantage_estimate(
    gamma: Discount,
    lmbda: Discount,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    rolling_gamma: bool | None = None,
    time_dim: int = -2,
) -> Tensor:
    """:func:`td_lambda_advantage_estimate` under its other name.

    ``rolling_gamma`` as in :func:`vec_td_lambda_return_estimate`.

    Example:
        >>> import torch
        >>> one, done = torch.ones(2, 1), torch.tensor([[False], [True]])
        >>> vec_td_lambda_advantage_estimate(0.5, 0.5, one, 4 * one, one, done).tolist()
        [[1.25], [0.0]]
    """
    values = {"next_state_value": next_state_value, "state_value": state_value}
    return _td_lambda(gamma, lmbda, values, reward, done, terminated, rolling_gamma, time_dim, constant_rolls=True)


def _td0(gamma: Discount, values: dict[str, Tensor], reward: Tensor, flags: dict[str, Tensor]) -> Tensor:
    """The TD(0) return, minus the state value if ``values`` holds one; the last of ``flags`` is what terminates."""
    check_tensors(reward=reward, **values, **flags)
    check_same_shape(reward, **values, **flags)
    *_, terminated = [as_flag(name, flag) for name, flag in flags.items()]
    gamma = align("gamma", gamma, reward, -2)
    dtype = result_dtype(reward, *values.values())
    wide = accumulate_dtype(dtype)
    bootstrap = torch.where(terminated, 0.0, values["next_state_value"].to(wide))
    estimate = reward.to(wide) + gamma * bootstrap
    if "state_value" in values:
        estimate = estimate - values["state_value"].to(wide)
    return estimate.to(dtype)


def _td1(
    gamma: Discount,
    values: dict[str, Tensor],
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None,
    rolling_gamma: bool | None,
    time_dim: int,
    *,
    constant_rolls: bool = False,
) -> Tensor:
    return _td_lambda(
        *(gamma, 1.0, values, reward, done, terminated, rolling_gamma, time_dim),
        constant_rolls=constant_rolls,
        fixed_bootstraps_open_end=False,
    )


def _td_lambda(
    gamma: Discount,
    lmbda: Discount,
    values: dict[str, Tensor],
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None,
    rolling_gamma: bool | None,
    time_dim: int,
    *,
    constant_rolls: bool = False,
    fixed_bootstraps_open_end: bool = True,
) -> Tensor:
    """The TD(lambda) return, minus the state value if ``values`` holds one.

    ``constant_rolls``: ``rolling_gamma=False`` on one-element discounts is ignored instead of an error.
    ``fixed_bootstraps_open_end``: whether with ``rolling_gamma=False`` a last step that is not done is bootstrapped.
    """
    done, terminated = check_steps(time_dim, reward, done, terminated, values)
    rolls = _rolls(gamma, lmbda, reward, rolling_gamma, constant_rolls)
    gamma, lmbda = align("gamma", gamma, reward, time_dim), align("lmbda", lmbda, reward, time_dim)
    dtype = result_dtype(reward, *values.values())
    if "state_value" in values:
        # Half precision is rounded once, after the subtraction: a float32 reward makes for a float32 return.
        reward = reward.to(accumulate_dtype(dtype))
    next_value = values["next_state_value"]
    if rolls:
        returns = td_lambda_return(reward, next_value, done, terminated, gamma=gamma, lmbda=lmbda, time_dim=time_dim)
    else:
        if not fixed_bootstraps_open_end:
            terminated = _terminate_open_end(done, terminated, time_dim)
        returns = td_lambda_return_fixed_discount(
            reward, next_value, done, terminated, gamma=gamma, lmbda=lmbda, time_dim=time_dim
        )
    return (returns - values["state_value"]).to(dtype) if "state_value" in values else returns


def _rolls(gamma: Discount, lmbda: Discount, reward: Tensor, rolling_gamma: bool | None, constant_rolls: bool) -> bool:
    """Whether discounts belong to transitions; raises if ``rolling_gamma=False`` has no per-step discount."""
    if rolling_gamma is None or rolling_gamma:
        return True
    if constant_rolls and is_constant(gamma) and is_constant(lmbda):
        return True
    if any(isinstance(x, Tensor) and x.shape == reward.shape for x in (gamma, lmbda)):
        return False
    raise RuntimeError(
        "rolling_gamma=False needs a discount per step, a tensor of the shape of reward "
        f"{shape_text(reward.shape)}, got {_form(gamma)} for gamma and {_form(lmbda)} for lmbda"
    )


def _form(discount: Discount) -> str:
    return f"shape {shape_text(discount.shape)}" if isinstance(discount, Tensor) else "a number"


def _terminate_open_end(done: Tensor, terminated: Tensor | None, time_dim: int) -> Tensor:
    """``terminated``, with the last step of the tensor added where it is not done."""
    time = time_dim % done.ndim
    steps = done.shape[time]
    is_last = torch.arange(steps, device=done.device) == steps - 1
    open_end = is_last.view([steps] + [1] * (done.ndim - time - 1)) & ~done
    return open_end | (done if terminated is None else terminated)
