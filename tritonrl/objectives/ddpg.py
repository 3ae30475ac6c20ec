"""Deep deterministic policy gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor

from tritonrl.objectives.metrics import masked_max
from tritonrl.objectives.off_policy import OffPolicyLoss

__all__ = ["DDPGLoss"]


class DDPGLoss(OffPolicyLoss):
    r"""Deep deterministic policy gradient, Lillicrap et al. 2015, https://arxiv.org/abs/1509.02971.

    .. math::
        L_{actor} &= -\mathbb{E}\left[Q_{\mathrm{sg}}(o, \mu(o))\right] \\
        L_{value} &= \mathbb{E}\left[d\big(Q(o, a), y\big)\right], \qquad
        y = r + \gamma^n (1 - z)\, \bar{Q}(o', \bar\mu(o'))

    with z the terminated flag and bars for target parameters: the gradient of the actor runs through the action alone,
    not to the critic, and y has none. y is computed by the value estimator (default TD(0) with gamma 0.99; see
    ``make_value_estimator``), n is ``steps_to_next_obs`` where the data have it, else 1.

    The data, of batch size ``[*B]``, hold what the networks read (the critic: the action, too), at the root and under
    ``"next"`` (there without the action); ``("next", reward | done | terminated)``, ``[*B, 1]``; and optionally
    ``priority_weight``, ``[*B]``. ``set_keys`` renames them. The squared TD error, ``[*B]``, is written into them as
    ``td_error``.

    The result has the terms to add up, ``loss_actor`` and ``loss_value``, and, free of gradient: ``pred_value`` Q(o, a),
    ``target_value`` y and ``td_error``, each ``[*B]``; ``pred_value_max`` and ``target_value_max``, over the steps that
    a validity mask admits.

    Args:
        actor_network: the policy mu, a tensordict module that writes the action.
        value_network: the critic Q, a tensordict module that reads what the actor writes and writes
            ``state_action_value`` ``[*B, 1]``.

    Keyword Args:
        loss_function: the distance d, ``"l1"``, ``"l2"`` or ``"smooth_l1"``.
        delay_actor: whether the target has an actor of its own, that a target updater moves.
        delay_value: whether it has a critic of its own.
        gamma: gone; the discount belongs to the value estimator.
        separate_losses: keep the critic's gradient away from parameters that it shares with the actor.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        use_prioritized_weights: False ignores ``priority_weight``; with ``"auto"`` and True both losses are weighted
            where the data have it.

    Raises:
        TypeError: for ``gamma`` or an unknown keyword.

    Example:
        >>> from tensordict.nn import TensorDictModule
        >>> class Q(torch.nn.Linear):
        ...     def forward(self, *inputs):
        ...         return super().forward(torch.cat(inputs, -1))
        >>> actor = TensorDictModule(torch.nn.Linear(4, 2), in_keys=["observation"], out_keys=["action"])
        >>> critic = TensorDictModule(Q(6, 1), in_keys=["observation", "action"], out_keys=["state_action_value"])
        >>> loss = DDPGLoss(actor, critic, delay_actor=True)
        >>> ended = torch.zeros(5, 1, dtype=torch.bool)
        >>> next_data = {"observation": torch.randn(5, 4), "reward": torch.ones(5, 1), "done": ended, "terminated": ended}
        >>> data = {"observation": torch.randn(5, 4), "action": torch.randn(5, 2), "next": next_data}
        >>> from tritonrl.objectives import SoftUpdate
        >>> updater = SoftUpdate(loss, tau=0.005)
        >>> loss.total(loss(TensorDict(data, [5]))).backward()
        >>> updater.step()
    """

    @dataclass
    class _AcceptedKeys:
        """Entries by role: ``reward``, ``done`` and ``terminated`` are read under ``"next"``. The action is what the
        networks call it."""

        state_action_value: NestedKey = "state_action_value"
        priority: NestedKey = "td_error"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        priority_weight: NestedKey = "priority_weight"

    default_keys = _AcceptedKeys

    value_network: TensorDictModuleBase

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        value_network: TensorDictModuleBase,
        *,
        loss_function: str = "l2",
        delay_actor: bool = False,
        delay_value: bool = True,
        gamma: float | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        self._refuse_gamma(gamma)
        super().__init__()
        self._register_reduction(reduction)
        self.use_prioritized_weights = use_prioritized_weights
        self.loss_function = loss_function
        self.delay_actor = delay_actor
        self.delay_value = delay_value
        self.convert_to_functional(actor_network, "actor_network", create_target_params=delay_actor)
        policy_params = list(actor_network.parameters()) if separate_losses else None
        self.convert_to_functional(
            value_network, "value_network", create_target_params=delay_value, compare_against=policy_params
        )
        self.out_keys = ["loss_actor", "loss_value"]
        self.out_keys += ["pred_value", "target_value", "pred_value_max", "target_value_max"]

    def _iter_in_keys(self) -> Iterator[NestedKey]:
        yield from self._network_in_keys(self.actor_network, self.value_network)
        yield from self._outcome_keys()
        if self.use_prioritized_weights in (True, "auto"):
            yield self.tensor_keys.priority_weight

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The terms of the loss and the metrics; see the class for what is read and returned.

        Args:
            tensordict: the transitions, batch size ``[*B]``; ``td_error`` is written into them.

        Returns:
            A tensordict of batch size ``[]``. With ``reduction="none"`` its ``loss_*`` entries have the shape ``[*B]``.

        Raises:
            KeyError: if an entry is missing.
            RuntimeError: if value and target differ in shape.
            NotImplementedError: for an unknown reduction or ``loss_function``.
        """
        data = self._prepare(tensordict)
        loss_value, metadata = self._value_terms(data)
        loss_actor = self._actor_term(data)
        self._write_priority(tensordict, metadata["td_error"])
        self._clear_weakrefs(data, tensordict)
        return TensorDict({"loss_actor": loss_actor, "loss_value": loss_value, **metadata})

    def loss_actor(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's term alone, reduced, and an empty dictionary. Nothing is written into the data."""
        return self._actor_term(self._prepare(tensordict)), {}

    def loss_value(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's term alone, reduced, and the metrics (see the class). Nothing is written into the data."""
        return self._value_terms(self._prepare(tensordict))

    def _actor_term(self, data: TensorDictBase) -> Tensor:
        acted = data.copy().update(self._call("actor_network", data))
        value = self._value_of("value_network", acted, self.value_network_params.data)
        return self._reduce_loss(-value, data, weights=self._maybe_get_priority_weight(data))

    def _value_terms(self, data: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        value = self._value_of("value_network", data)
        target = self._td_target(data, self._next_state_value(data))
        distance = self._distance(value, target)
        prediction = value.detach()
        mask = self._loss_mask(data, prediction)
        metadata = {
            "td_error": (prediction - target).square(),
            "pred_value": prediction,
            "target_value": target,
            "target_value_max": masked_max(target, mask),
            "pred_value_max": masked_max(prediction, mask),
        }
        return self._reduce_loss(distance, data, weights=self._maybe_get_priority_weight(data)), metadata

    @torch.no_grad()
    def _next_state_value(self, data: TensorDictBase) -> Tensor:
        """What the target critic says about the target actor's next action, ``[*B]``."""
        acted = self._acted_next(data, self.value_network)
        return self._value_of("value_network", acted, self.target_value_network_params)
