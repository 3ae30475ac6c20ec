"""Values and next values from a single pass over ``T + budget`` steps, instead of two over ``T``.

Inside a trajectory the next observation of step ``t`` is the observation of step ``t + 1``, so one pass over
``obs[0], ..., obs[T-1], next_obs[T-1]`` gives every value that is needed. A *reset* (a truncation before the end of the
row) breaks this: its true next observation stands nowhere else, and takes an extra slot of its own::

    step          0     1 (truncated)      2     3
    slots         o0    o1    next o1      o2    o3    next o3
    value of      0     1                  2     3
    next value of       0     1                  2     3

A terminated step takes no slot: its next value is not bootstrapped from, and may be whatever follows. The slots have a
fixed number (shapes must not depend on data), so a row with more resets than there is room for loses its last steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from .network_inputs import NetworkInputs
from .value_calls import ValueCaller, Values

__all__ = ["SHIFTED_VALID_KEY", "SlotPlan", "cut_at_last_valid", "plan_slots", "shifted_values"]

SHIFTED_VALID_KEY = "shifted_valid"
"""Entry that says which steps ``shifted`` could evaluate. Losses leave the others out."""


class SlotPlan(NamedTuple):
    """Where each step of a row ``[*B, T]`` is evaluated, and what each slot ``[*B, T + budget]`` holds.

    Attributes:
        slot: slot of each step; its next step is in the slot behind.
        valid: bool, whether both slots exist.
        step: the step whose observation (root or next) a slot holds.
        is_root: bool, whether that is the root observation.
        time_dim: non-negative.
    """

    slot: Tensor
    valid: Tensor
    step: Tensor
    is_root: Tensor
    time_dim: int


def plan_slots(done: Tensor, terminated: Tensor, batch_dims: int, time_dim: int, budget: int) -> SlotPlan:
    """The slots of a rollout.

    Args:
        done: bool ``[*B, T, *F]``, any trailing dimensions.
        terminated: like ``done``.
        batch_dims: number of dimensions in ``[*B, T]``.
        time_dim: non-negative.
        budget: slots beyond ``T``: one for the last next step, and one for each reset of a row.
    """
    reset = (done.bool() & ~terminated.bool()).reshape(*done.shape[:batch_dims], -1).any(-1)
    steps = reset.shape[time_dim]
    time = torch.arange(steps, device=done.device)
    time = time.reshape([-1 if dim == time_dim else 1 for dim in range(batch_dims)])
    resets = (reset & (time < steps - 1)).long()
    slot = time + resets.cumsum(time_dim) - resets
    slots = steps + budget
    # Slots are strictly increasing along a row. Steps without one share a last slot, which is then dropped.
    shape = list(reset.shape)
    shape[time_dim] = slots + 1
    occupied = torch.zeros(shape, dtype=torch.long, device=done.device)
    occupied = occupied.scatter(time_dim, slot.clamp(max=slots), torch.ones_like(slot)).narrow(time_dim, 0, slots)
    step = occupied.cumsum(time_dim) - 1
    return SlotPlan(slot, slot + 1 < slots, step, occupied.bool(), time_dim)


def shifted_values(
    caller: ValueCaller, inputs: NetworkInputs, plan: SlotPlan, params: TensorDictBase | None = None
) -> Values:
    """Values of all steps from one call of the network on the slots of ``plan``."""
    dim = plan.time_dim

    def fill(root: Tensor, following: Tensor) -> Tensor:
        return torch.where(_align(plan.is_root, root), _take(root, plan.step, dim), _take(following, plan.step, dim))

    slots = inputs.root.apply(fill, inputs.next, batch_size=plan.step.shape)
    value = caller.one(slots, params)
    last = value.shape[dim] - 1
    here = plan.slot.clamp(max=last)
    there = (plan.slot + 1).clamp(max=last)
    return Values(_take(value, here, dim), _take(value, there, dim), plan.valid)


def cut_at_last_valid(done: Tensor, valid: Tensor, time_dim: int) -> Tensor:
    """``done``, and also the last valid step of each row that goes on with invalid ones: nothing behind it may count.

    ``terminated`` needs no such change: the last valid step bootstraps from its own next value unless it terminated.
    """
    is_last = valid & ~valid.roll(
        -1, time_dim
    )  # The first step is always valid, so the end of a full row is not "last".
    return done.bool() | _align(is_last, done)


def _take(x: Tensor, index: Tensor, dim: int) -> Tensor:
    # Not torch.take_along_dim: compiled, it fixes the sizes, and each new batch size would compile again.
    sizes = list(x.shape)
    sizes[dim] = index.shape[dim]
    return x.gather(dim, _align(index, x).expand(sizes))


def _align(leading: Tensor, x: Tensor) -> Tensor:
    """``leading`` with singleton dimensions behind, up to the number of dimensions of ``x``."""
    return leading.reshape(leading.shape + (1,) * (x.ndim - leading.ndim))
