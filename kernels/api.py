"""The functions that users of :mod:`tritonrl.kernels` call: argument checks in front of the ops."""

from __future__ import annotations

from typing import Literal, TypeAlias, overload

import torch
from torch import Tensor

from . import packed
from .dtypes import accumulate_dtype, result_dtype
from .masked import derived_next_value
from .number import number
from .ops import call, recurrence, wants_no_derivative
from .repeat import repeatable
from .specs import full_shape
from .textbook import counted

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
    return number(float(x))


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
    if x.device != like.device or x.shape != shape:
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


def _flags(done: Tensor, terminated: Tensor | None, like: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
    done = _flag("done", done, like, shape)
    return done, None if terminated is None else _flag("terminated", terminated, like, shape)


def _ragged(
    like: Tensor, shape: torch.Size, time_dim: int, cu_seqlens: Tensor | None, **masks: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The optional masks and offsets of an op; nothing at all where none was given, so that such a call stays what it was."""
    if cu_seqlens is None:
        for x in masks.values():
            if x is not None:
                break
        else:
            return ()
    else:
        packed.check_offsets(cu_seqlens, shape, time_dim, like.device)
    return (*(None if x is None else _flag(name, x, like, shape) for name, x in masks.items()), cu_seqlens)


def _bootstrap(
    bootstrap_value: Tensor | None, next_value: Tensor | None, like: Tensor, lanes: torch.Size, dtype: torch.dtype
) -> Tensor | None:
    """The value behind the last step, of which there is either none or the only next value that is given."""
    if next_value is not None:
        if bootstrap_value is not None:
            raise ValueError(
                "give next_value or bootstrap_value, not both: next values are derived only without next_value"
            )
        return None
    if bootstrap_value is None:
        raise ValueError(
            f"next_value=None needs bootstrap_value, of shape {tuple(lanes)}: the values behind the last step"
        )
    if not isinstance(bootstrap_value, Tensor):
        raise TypeError(f"bootstrap_value must be a tensor, got {type(bootstrap_value).__name__}")
    _check_device("bootstrap_value", bootstrap_value, like)
    if not _fits(bootstrap_value.shape, lanes):
        raise RuntimeError(f"bootstrap_value has shape {tuple(bootstrap_value.shape)}, expected {tuple(lanes)}")
    return bootstrap_value.to(dtype)


def _derived(
    value: Tensor,
    bootstrap_value: Tensor,
    ragged: tuple[Tensor | None, ...],
    shape: torch.Size,
    time_dim: int,
) -> Tensor:
    """The next values of masked data, from the values: a pass of its own in front of the kernel."""
    valid, skip, cu_seqlens = ragged
    counts = counted(valid, skip)
    value = value.expand(shape)
    if cu_seqlens is None:
        return derived_next_value(value, bootstrap_value, counts, time_dim, recurrence)
    return packed.derived_next_value(value, bootstrap_value, cu_seqlens, time_dim, counts, recurrence)


@repeatable
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


@overload
def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor | None,
    done: Tensor,
    terminated: Tensor | None = ...,
    *,
    gamma: Discount,
    lmbda: Discount,
    time_dim: int = ...,
    bootstrap_value: Tensor | None = ...,
    valid: Tensor | None = ...,
    skip: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    moments: Literal[False] = ...,
) -> tuple[Tensor, Tensor]: ...


@overload
def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor | None,
    done: Tensor,
    terminated: Tensor | None = ...,
    *,
    gamma: Discount,
    lmbda: Discount,
    time_dim: int = ...,
    bootstrap_value: Tensor | None = ...,
    valid: Tensor | None = ...,
    skip: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    moments: Literal[True],
) -> tuple[Tensor, Tensor, Tensor]: ...


@repeatable
def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor | None,
    done: Tensor,
    terminated: Tensor | None = None,
    *,
    gamma: Discount,
    lmbda: Discount,
    time_dim: int = -2,
    bootstrap_value: Tensor | None = None,
    valid: Tensor | None = None,
    skip: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    moments: bool = False,
) -> tuple[Tensor, ...]:
    r"""Generalized advantage estimation and its value target, in one pass over the data.

    .. math::
        \delta_t = r_t + \gamma_t (1 - Z_t) V'_t - V_t, \qquad
        A_t = \delta_t + \gamma_t \lambda_t (1 - D_t) A_{t+1}, \qquad
        \text{target}_t = A_t + V_t

    with done :math:`D` and terminated :math:`Z`. Both are selects, not products: NaN behind them never reaches a result.

    Args:
        reward, value, next_value: broadcast together to the shape ``S``. ``next_value[t]`` is the value of the state that
            transition ``t`` led to, also where an episode was cut. ``None``: it is derived, :math:`V'_t = V_{t+1}`, from
            ``bootstrap_value`` at the end, which spares the kernel a fifth of its bytes. A step that is done but not
            terminated then bootstraps from the stored value that follows, which is the first of the next trajectory:
            give ``next_value`` where that matters.
        done: bool, broadcasts to ``S``; the transition ended its trajectory for whatever reason.
        terminated: bool; it ended in a terminal state, which has no value. ``None``: the same as ``done``.
        gamma, lmbda: numbers, or tensors that broadcast to ``S``.
        time_dim: the dimension of ``S`` that is time. No layout is copied or transposed.
        bootstrap_value: the value behind the last step, of shape ``S`` without time; needed where ``next_value`` is
            ``None``. With ``cu_seqlens`` one for each sequence, ``[n, *F]``.
        valid: bool, broadcasts to ``S``. Where it is false the step belongs to no trajectory: results and gradients are
            zero, nothing in it is read (it may be NaN), and nothing passes through it.
        skip: bool, broadcasts to ``S``. Where it is true the step is transparent, as the tokens of a tool or an observation
            are to token-level GAE: results and gradients are zero and nothing is read as above, but what comes behind
            passes through to what comes before (unless the step is done). A derived next value looks past it, too.
        cu_seqlens: ``[n + 1]`` offsets (int32 or int64, on the data's device) of packed sequences: the data are
            ``[total, *F]`` with ``time_dim=0``, and the last step of every sequence counts as done, but not as terminated.
            A GPU kernel finds the ends itself, a Numba kernel takes each sequence alone; elsewhere, of few long sequences on
            the CPU, and in second derivatives, the ends are written into ``done`` first. Offsets on a GPU are not read back,
            so wrong ones cannot be reported.
        moments: also return count, mean and M2 of the advantages that count, from the same pass (:func:`merge_moments`,
            :func:`standardise`). They have no gradient.

    Next values are derived in the kernel. Where there are masks the value of the next step that counts is a recurrence of its
    own (a hole of invalid steps may be followed by valid ones). If a gradient is wanted, a compiler or a transform of
    ``torch.func`` looks on, or the backend has no kernel for it (plain torch), that one takes a pass over the values in front.

    Returns:
        ``(advantage, value_target)`` of shape ``S``, in the promoted dtype; differentiable to every floating input.
        With ``moments`` also a ``[3]`` tensor in float64.

    Raises:
        RuntimeError: if shapes do not broadcast, or ``time_dim`` is out of range.
        TypeError: if a flag is neither bool nor integer.
        ValueError: if not exactly one of ``next_value`` and ``bootstrap_value`` is given, or if ``cu_seqlens`` is on the
            CPU and does not go from 0 to ``total`` without decreasing.
        NotImplementedError: for ``moments`` under ``vmap``.

    Source: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation".

    Example:
        >>> reward, value = torch.ones(4, 1), torch.zeros(4, 1)          # [T, 1]
        >>> done = torch.tensor([[False], [True], [False], [False]])
        >>> advantage, target = gae(reward, value, value, done, gamma=0.9, lmbda=1.0)
        >>> advantage.squeeze(-1)
        tensor([1.9000, 1.0000, 1.9000, 1.0000])
        >>> skip = torch.tensor([[False], [False], [False], [True]])
        >>> advantage, _, found = gae(reward, value, value, done, gamma=0.9, lmbda=1.0, skip=skip, moments=True)
        >>> advantage.squeeze(-1), found[:2]
        (tensor([1.9000, 1.0000, 1.0000, 0.0000]), tensor([3.0000, 1.3000], dtype=torch.float64))
    """
    data = {"reward": reward, "value": value} | ({} if next_value is None else {"next_value": next_value})
    shape, dtype = _shape(**data), result_dtype(*data.values())
    time_dim = _negative(time_dim, shape)
    done, terminated = _flags(done, terminated, reward, shape)
    ragged = _ragged(reward, shape, time_dim, cu_seqlens, valid=valid, skip=skip)
    if next_value is None or bootstrap_value is not None:
        sequences = shape[:time_dim] if cu_seqlens is None else torch.Size([cu_seqlens.shape[0] - 1])
        lanes = sequences + shape[len(shape) + time_dim + 1 :]
        bootstrap_value = _bootstrap(bootstrap_value, next_value, value, lanes, dtype)
        masked = valid is not None or skip is not None
        # Below, no derivative is known of what was derived past masks.
        inputs = (reward, value, bootstrap_value, gamma, lmbda)
        if bootstrap_value is not None and masked and not wants_no_derivative(*inputs):
            next_value = _derived(value, bootstrap_value, ragged, shape, time_dim)
            bootstrap_value = None
    discounts = _discount("gamma", gamma, value, shape, dtype), _discount("lmbda", lmbda, value, shape, dtype)
    args = (reward, value, next_value, done, terminated, *discounts, time_dim)
    result: tuple[Tensor, ...]
    if next_value is not None and not moments:
        result = call("gae", *args, *ragged)
        return result
    optional = (bootstrap_value, *ragged) if ragged or bootstrap_value is not None else ()
    result = call("gae_extended", *args, moments, *optional)
    return result if moments else result[:2]


@repeatable
def td_lambda_return(
    reward: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    *,
    gamma: Discount,
    lmbda: Discount,
    time_dim: int = -2,
    valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    r"""TD(:math:`\lambda`) returns; ``lmbda=1`` gives TD(1), the discounted return bootstrapped where a trajectory is cut.

    .. math::
        R_t = r_t + \gamma_t \left[(1 - \lambda_t) n_t + \lambda_t G_t\right], \qquad n_t = (1 - Z_t) V'_t, \qquad
        G_t = n_t \text{ where } D_t \text{ or } t = T-1, \text{ else } R_{t+1}

    Arguments, result and errors as in :func:`gae`. A step in front of an invalid one closes (:math:`G_t = n_t`), and so does
    the last of a packed sequence.

    Source: Sutton and Barto, "Reinforcement Learning", 2nd edition, chapter 12.

    Example:
        >>> reward, next_value = torch.ones(3, 1), torch.full((3, 1), 10.0)
        >>> done = torch.zeros(3, 1, dtype=torch.bool)
        >>> td_lambda_return(reward, next_value, done, gamma=0.5, lmbda=1.0).squeeze(-1)
        tensor([3., 4., 6.])
    """
    shape = _shape(reward=reward, next_value=next_value)
    dtype = result_dtype(reward, next_value)
    time_dim = _negative(time_dim, shape)
    result: Tensor = call(
        "td_lambda_return",
        reward,
        next_value,
        *_flags(done, terminated, reward, shape),
        _discount("gamma", gamma, reward, shape, dtype),
        _discount("lmbda", lmbda, reward, shape, dtype),
        time_dim,
        *_ragged(reward, shape, time_dim, cu_seqlens, valid=valid),
    )
    return result


@repeatable
def reward_to_go(
    reward: Tensor,
    done: Tensor,
    *,
    gamma: Discount,
    time_dim: int = -2,
    valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    r"""Discounted sum of the rewards that are still to come, never bootstrapped.

    .. math:: G_t = r_t + \gamma_t (1 - D_t) G_{t+1}, \qquad G_T = 0

    Arguments, result and errors as in :func:`gae`.

    Example:
        >>> done = torch.tensor([False, False, True])
        >>> reward_to_go(torch.ones(3), done, gamma=0.5, time_dim=-1)
        tensor([1.7500, 1.5000, 1.0000])
    """
    shape = _shape(reward=reward)
    time_dim = _negative(time_dim, shape)
    result: Tensor = call(
        "reward_to_go",
        reward,
        _flag("done", done, reward, shape),
        _discount("gamma", gamma, reward, shape, result_dtype(reward)),
        time_dim,
        *_ragged(reward, shape, time_dim, cu_seqlens, valid=valid),
    )
    return result


@repeatable
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
    valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""V-trace: off-policy corrected value targets and the advantage for the policy gradient.

    With :math:`\rho_t = \min(\pi_t/\mu_t, \bar\rho)` and :math:`c_t = \min(\pi_t/\mu_t, \bar c)`:

    .. math::
        \delta_t = \rho_t (r_t + \gamma_t (1 - Z_t) V'_t - V_t), \qquad
        v_t = V_t + x_t, \quad x_t = \delta_t + \gamma_t c_t (1 - D_t) x_{t+1}, \qquad
        A_t = \rho_t (r_t + \gamma_t (1 - Z_t) u_t - V_t)

    where :math:`u_t = v_{t+1}`, or :math:`V'_t` where the trajectory ends (``done``, the last step of the tensor
    or of a packed sequence, or a step in front of an invalid one).

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
    time_dim = _negative(time_dim, shape)
    result: tuple[Tensor, Tensor] = call(
        "vtrace",
        *data.values(),
        *_flags(done, terminated, reward, shape),
        _discount("gamma", gamma, value, shape, dtype),
        _discount("rho_thresh", rho_thresh, value, shape, dtype),
        _discount("c_thresh", c_thresh, value, shape, dtype),
        time_dim,
        *_ragged(reward, shape, time_dim, cu_seqlens, valid=valid),
    )
    return result
