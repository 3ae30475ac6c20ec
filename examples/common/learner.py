"""What a training script supplies to the loop in ``training``."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from .clocks import Clock
from .environments import Environments


class Learner(ABC):
    """Something that steps environments and learns from that, one update at a time.

    A script derives from it (or from ``OnPolicyLearner``) with a constructor ``(parser, args)``, which ends the program
    by ``parser.error`` where the settings cannot work.
    """

    saved: ClassVar[tuple[str, ...]] = ("environments",)
    """Attributes with a ``state_dict``, which together are all that the next update depends on."""

    steps_per_update: int
    """Environment steps that one update takes, over all environments; or how many of ``unit``."""

    unit: ClassVar[str] = "environment steps"
    """What the run counts."""

    phases: dict[str, str]
    """Where time goes: the clock's name of each part that the report tells, in order, and what to call it."""

    curves: ClassVar[dict[str, str]] = {}
    """What else than the return to draw: names of what is logged, and what to call it."""

    def __init__(self, args: argparse.Namespace, environments: Environments) -> None:
        self.args, self.environments, self.clock = args, environments, Clock(args.device)

    @abstractmethod
    def update(self, progress: float) -> dict[str, float]:
        """Take ``steps_per_update`` environment steps and learn; returns what to log, the same names every time.

        ``progress`` is the share of the training that lies behind, from 0 to 1.
        """

    def state_dict(self) -> dict[str, Any]:
        """What training has made so far."""
        return {name: getattr(self, name).state_dict() for name in self.saved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        for name in self.saved:
            getattr(self, name).load_state_dict(state[name])
