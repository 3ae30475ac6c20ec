"""Value estimates on plain tensors: advantages, returns and value targets, in any layout, in one kernel launch.

Per step ``t`` of a trajectory: ``r`` the reward, ``v`` the value of the state, ``w`` the value of the *true* next state
(not ``v[t+1]``), ``d`` done (a trajectory ends between ``t`` and ``t+1``, by termination or truncation), ``z``
terminated (there is no future to bootstrap from; ``z`` implies ``d``, and ``terminated=None`` means ``z = d``)::

    TD(0)       R[t] = r[t] + gamma (1-z[t]) w[t]
    TD(lambda)  R[t] = r[t] + gamma ((1-lmbda) n[t] + lmbda (n[t] if d[t] or t = T-1 else R[t+1])),   n = (1-z) w
    TD(1)       TD(lambda) at lmbda = 1
    GAE         A[t] = r[t] + gamma (1-z[t]) w[t] - v[t] + gamma lmbda (1-d[t]) A[t+1],    value target A + v
    V-trace     TD(1) with truncated importance weights
    reward2go   G[t] = r[t] + gamma (1-d[t]) G[t+1]

Shared rules
    * *Layout*: ``[*B, T, F]`` with time at ``time_dim=-2``, or anything else with ``time_dim`` given, negative or not.
      Nothing is transposed or copied on the way to the kernel. ``[B, T]`` needs ``time_dim=-1``. Results have the shape
      of ``reward``; an empty time or batch dimension gives an empty result.
    * *Shapes*: values, rewards and flags must share one shape (``RuntimeError``); nothing is broadcast.
    * *Discounts*: ``gamma`` and ``lmbda`` are numbers, 0-dim or 1-element tensors, or tensors that broadcast to the
      data, one entry per step if wanted. All arithmetic is the exact recursion: zero, tiny, negative and
      greater-than-one discounts are as good as any.
    * *Ends*: several trajectories may follow each other in one row. Nothing behind ``done`` and no value behind
      ``terminated`` reaches the result of a step before it or the gradient of that, not even a NaN. The last step of
      the tensor counts as an end, and bootstraps unless it is terminated (``reward2go`` never does).
    * *Flags* are boolean; integer flags count as ``flag != 0``; float flags raise ``TypeError``.
    * *dtype*: that of ordinary arithmetic on the data (discounts do not count). Half precision is accumulated in
      float32; float64 data with a Python number is exact to float64.
    * *Gradients* reach every floating input, discounts included. ``torch.vmap`` and ``torch.compile(fullgraph=True)``
      work.

The names with ``vec_`` are the same functions under the names that TorchRL gives its vectorised variants.
"""

from __future__ import annotations

from ._gae import generalized_advantage_estimate, vec_generalized_advantage_estimate
from ._reward_to_go import reward2go
from ._td import (
    td0_advantage_estimate,
    td0_return_estimate,
    td1_advantage_estimate,
    td1_return_estimate,
    td_lambda_advantage_estimate,
    td_lambda_return_estimate,
    vec_td1_advantage_estimate,
    vec_td1_return_estimate,
    vec_td_lambda_advantage_estimate,
    vec_td_lambda_return_estimate,
)
from ._vtrace import vtrace_advantage_estimate

__all__ = [
    "generalized_advantage_estimate",
    "reward2go",
    "td0_advantage_estimate",
    "td0_return_estimate",
    "td1_advantage_estimate",
    "td1_return_estimate",
    "td_lambda_advantage_estimate",
    "td_lambda_return_estimate",
    "vec_generalized_advantage_estimate",
    "vec_td1_advantage_estimate",
    "vec_td1_return_estimate",
    "vec_td_lambda_advantage_estimate",
    "vec_td_lambda_return_estimate",
    "vtrace_advantage_estimate",
]
