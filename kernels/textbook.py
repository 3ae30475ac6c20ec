"""Every recurrence of the package in plain torch, written as in the textbook. Start reading here.

Each function below is the readable truth that the Triton and Numba kernels are checked against, and the code that runs on
devices which have neither. All of them are one first-order linear recurrence, run backwards in time along each lane::

    y[t] = b[t] + a[t] * y[t+1],     y[T] = carry, or 0

and differ only in what ``a`` and ``b`` are. A coefficient ``a[t]`` of exactly zero *cuts*: nothing of ``y[t+1]`` is read, so
that a NaN behind a ``done`` stays behind it.

Conventions, here and everywhere below :mod:`tritonrl.kernels`: the tensors broadcast together to one shape ``S`` whose
dimension ``time_dim`` (negative) is time; ``done[t]`` says that transition ``t`` ended its trajectory for whatever reason,
``terminated[t]`` that it ended in a terminal state, whose value is zero. Arithmetic is done in :func:`accumulate_dtype`.

Two optional masks say which steps count. ``valid[t]`` false: the step belongs to no trajectory; nothing passes through it,
and a step in front of it closes like the last step of the tensor. ``skip[t]`` true: the step is transparent; the state passes
through it, so that its neighbours see each other. Results are zero at either, and nothing in such a step is read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dtypes import accumulate_dtype, result_dtype


def _full(shape: torch.Size, dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """Broadcast to ``shape`` and raise floats to ``dtype``; flags stay flags. Numbers go where the data are."""
    device = next((x.device for x in tensors if x.dim()), tensors[0].device)
    return [x.to(device, x.dtype if x.dtype is torch.bool else dtype).expand(shape) for x in tensors]


def _broadcast_shape(*tensors: Tensor) -> torch.Size:
    return torch.broadcast_shapes(*(x.shape for x in tensors))


def next_step(y: Tensor, last: Tensor | None, time_dim: int) -> Tensor:
    """``y[t+1]`` for every ``t``; ``last`` (or zero) stands after the final step."""
    if y.shape[time_dim] == 0:
        return y
    tail = torch.zeros_like(y.narrow(time_dim, 0, 1)) if last is None else last.unsqueeze(time_dim)
    return torch.cat([y.narrow(time_dim, 1, y.shape[time_dim] - 1), tail], dim=time_dim)


def previous_step(y: Tensor, first: Tensor | None, time_dim: int) -> Tensor:
    """``y[t-1]`` for every ``t``; ``first`` (or zero) stands before the first step."""
    if y.shape[time_dim] == 0:
        return y
    head = torch.zeros_like(y.narrow(time_dim, 0, 1)) if first is None else first.unsqueeze(time_dim)
    return torch.cat([head, y.narrow(time_dim, 0, y.shape[time_dim] - 1)], dim=time_dim)


def closes(done: Tensor, time_dim: int, valid: Tensor | None = None) -> Tensor:
    """``done``, and every step with nothing behind it to continue with: the last of the tensor, or one before an invalid."""
    if valid is not None:
        return done | ~next_step(valid.expand(done.shape), None, time_dim)
    steps = done.shape[time_dim]
    is_last = torch.arange(steps, device=done.device) == steps - 1
    return done | is_last.view([steps] + [1] * (-time_dim - 1))


def counted(valid: Tensor | None, skip: Tensor | None) -> Tensor | None:
    """The steps that count: valid and not skipped. ``None``: all of them."""
    if skip is None:
        return valid
    return ~skip if valid is None else valid & ~skip


def _masked_map(a: Tensor, b: Tensor, done: Tensor, valid: Tensor | None, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    """The map of a step as the masks say: nothing passes an invalid one, everything a skipped one that is not done."""
    if skip is not None:
        a, b = torch.where(skip, torch.where(done, 0.0, 1.0).to(a.dtype), a), torch.where(skip, 0.0, b)
    if valid is not None:
        a, b = torch.where(valid, a, 0.0), torch.where(valid, b, 0.0)
    return a, b


def _where_counted(x: Tensor, valid: Tensor | None, skip: Tensor | None) -> Tensor:
    counts = counted(valid, skip)
    return x if counts is None else torch.where(counts, x, 0.0)


def linear_recurrence(a: Tensor, b: Tensor, carry: Tensor | None, time_dim: int, reverse: bool) -> Tensor:
    """``y[t] = b[t] + a[t] * y[t+1]`` (``reverse``), or ``y[t] = b[t] + a[t] * y[t-1]``."""
    shape = _broadcast_shape(a, b)
    dtype = result_dtype(a, b)
    a, b = _full(shape, accumulate_dtype(dtype), a, b)
    lane_shape = shape[:time_dim] + shape[len(shape) + time_dim + 1 :]
    y = a.new_zeros(lane_shape) if carry is None else carry.to(a.dtype).expand(lane_shape)
    steps = list(zip(a.unbind(time_dim), b.unbind(time_dim), strict=True))
    out = []
    for a_t, b_t in reversed(steps) if reverse else steps:
        # A cut reads no NaN; but what is a number has a derivative with respect to a coefficient of zero.
        y = b_t + a_t * torch.where((a_t == 0) & ~torch.isfinite(y), 0.0, y)
        out.append(y)
    if not out:
        return torch.empty(shape, dtype=dtype, device=b.device)
    return torch.stack(out[::-1] if reverse else out, dim=time_dim).to(dtype)


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: Tensor,
    lmbda: Tensor,
    time_dim: int,
    valid: Tensor | None = None,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantage ``A[t] = delta[t] + gamma lambda (1-D[t]) A[t+1]`` and the value target ``A + V``."""
    dtype = result_dtype(reward, value, next_value)
    shape = _broadcast_shape(reward, value, next_value)
    reward, value, next_value, done, terminated, gamma, lmbda = _full(
        shape, accumulate_dtype(dtype), reward, value, next_value, done, terminated, gamma, lmbda
    )
    bootstrap = torch.where(terminated, 0.0, next_value)
    delta = reward + gamma * bootstrap - value
    a, b = _masked_map(torch.where(done, 0.0, gamma * lmbda), delta, done, valid, skip)
    advantage = linear_recurrence(a, b, None, time_dim, True)
    target = advantage + value
    return _where_counted(advantage, valid, skip).to(dtype), _where_counted(target, valid, skip).to(dtype)


def td_lambda_return(
    reward: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: Tensor,
    lmbda: Tensor,
    time_dim: int,
    valid: Tensor | None = None,
) -> Tensor:
    """``R[t] = r[t] + gamma ((1-lambda) V'[t] + lambda R[t+1])``; where a trajectory closes, ``R[t] = r[t] + gamma V'[t]``."""
    dtype = result_dtype(reward, next_value)
    shape = _broadcast_shape(reward, next_value)
    reward, next_value, done, terminated, gamma, lmbda = _full(
        shape, accumulate_dtype(dtype), reward, next_value, done, terminated, gamma, lmbda
    )
    closed = closes(done, time_dim, valid)
    weight = torch.where(closed, 1.0, 1.0 - lmbda)
    # With lambda = 1 the next value of an open step is not used, so it may be anything.
    b = reward + gamma * weight * torch.where(terminated | (weight == 0), 0.0, next_value)
    a, b = _masked_map(torch.where(closed, 0.0, gamma * lmbda), b, done, valid, None)
    return linear_recurrence(a, b, None, time_dim, True).to(dtype)


def reward_to_go(reward: Tensor, done: Tensor, gamma: Tensor, time_dim: int, valid: Tensor | None = None) -> Tensor:
    """``G[t] = r[t] + gamma (1-D[t]) G[t+1]``, never bootstrapped."""
    dtype = result_dtype(reward)
    reward, done, gamma = _full(reward.shape, accumulate_dtype(dtype), reward, done, gamma)
    a, b = _masked_map(torch.where(done, 0.0, gamma), reward, done, valid, None)
    return linear_recurrence(a, b, None, time_dim, True).to(dtype)


def vtrace(
    log_pi: Tensor,
    log_mu: Tensor,
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    done: Tensor,
    terminated: Tensor,
    gamma: Tensor,
    rho_thresh: Tensor,
    c_thresh: Tensor,
    time_dim: int,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """V-trace targets ``vs = V + x`` with ``x[t] = rho delta[t] + gamma c (1-D[t]) x[t+1]``, and the policy-gradient advantage.

    ``rho = min(pi/mu, rho_thresh)``, ``c = min(pi/mu, c_thresh)``; the advantage is ``rho (r + gamma u - V)`` with
    ``u = vs[t+1]``, or the next value where the trajectory closes (Espeholt et al. 2018).
    """
    dtype = result_dtype(log_pi, log_mu, reward, value, next_value)
    shape = _broadcast_shape(log_pi, log_mu, reward, value, next_value)
    log_pi, log_mu, reward, value, next_value, done, terminated, gamma, rho_thresh, c_thresh = _full(
        shape,
        accumulate_dtype(dtype),
        *(log_pi, log_mu, reward, value, next_value, done, terminated, gamma, rho_thresh, c_thresh),
    )
    ratio = (log_pi - log_mu).exp()
    rho, c = torch.minimum(ratio, rho_thresh), torch.minimum(ratio, c_thresh)
    bootstrap = torch.where(terminated, 0.0, next_value)
    delta = rho * (reward + gamma * bootstrap - value)
    a, b = _masked_map(torch.where(done, 0.0, gamma * c), delta, done, valid, None)
    correction = linear_recurrence(a, b, None, time_dim, True)
    target = value + correction
    following = torch.where(closes(done, time_dim, valid), bootstrap, next_step(target, None, time_dim))
    advantage = rho * (reward + gamma * torch.where(terminated, 0.0, following) - value)
    return _where_counted(advantage, valid, None).to(dtype), _where_counted(target, valid, None).to(dtype)
