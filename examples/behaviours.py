"""Policies written by hand, none of them good: those that the data sets of ``iql.py`` are collected with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Policy = Callable[[Tensor], Tensor]


class Behaviour(NamedTuple):
    """A policy, observations ``[N, features]`` to actions, and what it is for."""

    policy: Policy | None
    """None: every action is random."""
    env: str | None
    """The environment whose observations it understands; None: any."""


def lean(observation: Tensor) -> Tensor:
    """CartPole: push the cart to the side to which the pole leans."""
    _, _, angle, _ = observation.unbind(-1)
    return (angle > 0).long()


def swing(observation: Tensor) -> Tensor:
    """Pendulum: push along until there is more than enough energy for the top; near the top, hold against falling.

    In Gymnasium's units the energy per inertia is ``velocity ** 2 / 2 + 15 * cos``, which is 15 at rest upright. Aiming at
    20 it often goes over the top too fast to be held. That is clumsy, and it shows what to do at such speed, which who
    learns from the data has to know.
    """
    cos, sin, velocity = observation.unbind(-1)
    missing = 20 - (velocity.square() / 2 + 15 * cos)
    pumping = missing * torch.where(velocity >= 0, 1.0, -1.0)
    holding = -(5 * sin + velocity)
    return torch.where(cos > 0.95, holding, pumping).clamp(-1, 1).unsqueeze(-1)


BEHAVIOURS = {
    "random": Behaviour(None, None),
    "lean": Behaviour(lean, "CartPole-v1"),
    "swing": Behaviour(swing, "Pendulum-v1"),
}
