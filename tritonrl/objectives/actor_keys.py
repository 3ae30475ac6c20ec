"""Which entries the actor of a loss writes: its action and the log-probability of it."""

from __future__ import annotations

from typing import Any

from tensordict import NestedKey, unravel_key
from torch import nn

from tritonrl.objectives.loss_keys import LossKeys

__all__ = ["ActorKeys", "check_policy"]


def check_policy(actor_network: Any) -> None:
    """Refuse an actor without a distribution.

    Raises:
        TypeError: if it has no ``get_dist``.
    """
    if not hasattr(actor_network, "get_dist"):
        raise TypeError(
            f"actor_network must be a probabilistic tensordict module (with get_dist), got {type(actor_network).__name__}"
        )


class ActorKeys(LossKeys):
    """Mix-in: the default keys of action and log-probability are those that the actor itself declares."""

    _actor_keys: dict[str, NestedKey | list[NestedKey]]

    def _read_actor_keys(self, actor: nn.Module, log_prob: str = "log_prob") -> None:
        """Take the keys over: one key, or a list with one for each head of a composite action.

        Args:
            actor: a probabilistic tensordict module. What it does not declare keeps the default of the loss.
            log_prob: the role that the log-probability has in the keys of this loss.
        """
        for role, attribute in (("action", "dist_sample_keys"), (log_prob, "log_prob_keys")):
            keys = [unravel_key(key) for key in getattr(actor, attribute, None) or ()]
            if keys:
                setattr(self._tensor_keys, role, keys if len(keys) > 1 else keys[0])
        self._actor_keys = {role: getattr(self._tensor_keys, role) for role in ("action", log_prob)}

    def _default_key(self, name: str) -> Any:
        actor_keys = self.__dict__.get("_actor_keys", {})
        return actor_keys[name] if name in actor_keys else super()._default_key(name)
