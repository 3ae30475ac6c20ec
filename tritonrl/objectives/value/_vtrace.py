"""V-trace: off-policy corrected value targets and advantages."""

from __future__ import annotations

from torch import Tensor

from tritonrl.kernels import vtrace

from ._checks import as_flag, check_steps, check_tensors
from ._discounts import Discount, align, align_tensor


def vtrace_advantage_estimate(
    gamma: Discount,
    log_pi: Tensor,
    log_mu: Tensor,
    state_value: Tensor,
    next_state_value: Tensor,
    reward: Tensor,
    done: Tensor,
    terminated: Tensor | None = None,
    rho_thresh: Discount = 1.0,
    c_thresh: Discount = 1.0,
    time_dim: int = -2,
) -> tuple[Tensor, Tensor]:
    r"""V-trace advantage and value target, from `Espeholt et al. 2018`_ (IMPALA).

    With :math:`\rho_t = \pi/\mu`, :math:`\bar\rho_t = \min(\rho_t, \text{rho\_thresh})` and
    :math:`\bar c_t = \min(\rho_t, \text{c\_thresh})`:

    .. math::
        \delta_t = \bar\rho_t (r_t + \gamma (1 - z_t) w_t - v_t), \qquad
        x_t = \delta_t + \gamma (1 - d_t) \bar c_t x_{t+1}, \qquad vs_t = v_t + x_t

        A_t = \bar\rho_t (r_t + \gamma (1 - z_t) u_t - v_t), \qquad
        u_t = w_t \text{ if } d_t \text{ or } t = T-1 \text{ else } vs_{t+1}

    Args:
        gamma: discount factor, a number or a tensor that broadcasts to the data.
        log_pi: log-probability of the action under the learning policy, of the shape of ``reward`` or broadcast to it.
        log_mu: log-probability of the action under the acting policy, likewise.
        state_value: value of the state, ``[*B, T, F]``.
        next_state_value: value of the true next state, same shape.
        reward: reward of the transition, same shape.
        done: end of a trajectory, boolean, same shape.
        terminated: end in a terminal state, boolean, same shape or broadcast to it; ``None`` means ``done``.
        rho_thresh: cap of the importance weight of the error, a number or a tensor that broadcasts to the data.
        c_thresh: cap of the importance weight of the trace, likewise.
        time_dim: the dimension of time.

    Returns:
        ``(advantage, vs)``, both of the shape of ``reward``.

    Raises:
        RuntimeError: if shapes differ or do not broadcast, or ``time_dim`` is out of range.
        ValueError: if 1-D data come with the default ``time_dim``.
        TypeError: if a flag is a float tensor, or an argument is no tensor.

    Example:
        >>> import torch
        >>> zero, end = torch.zeros(2, 1), torch.tensor([[False], [True]])
        >>> advantage, target = vtrace_advantage_estimate(0.5, zero, zero, zero, zero, zero + 1, end)
        >>> target.tolist()  # on-policy: the TD(1) return
        [[1.5], [1.0]]

    .. _Espeholt et al. 2018: https://arxiv.org/abs/1802.01561
    """
    values = {"state_value": state_value, "next_state_value": next_state_value}
    done, _ = check_steps(time_dim, reward, done, None, values)
    check_tensors(log_pi=log_pi, log_mu=log_mu)
    if terminated is not None:
        check_tensors(terminated=terminated)
        terminated = align_tensor("terminated", as_flag("terminated", terminated), reward, time_dim)
    return vtrace(
        align_tensor("log_pi", log_pi, reward, time_dim),
        align_tensor("log_mu", log_mu, reward, time_dim),
        reward,
        state_value,
        next_state_value,
        done,
        terminated,
        gamma=align("gamma", gamma, reward, time_dim),
        rho_thresh=align("rho_thresh", rho_thresh, reward, time_dim),
        c_thresh=align("c_thresh", c_thresh, reward, time_dim),
        time_dim=time_dim,
    )
