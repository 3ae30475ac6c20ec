"""Deep Q-learning, with a target network and optionally double (and, under TorchRL's import path, the distributional one)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn

from tritonrl.modules.q_values import QValueActor
from tritonrl.objectives.chosen_action_value import chosen_action_value, network_action_space
from tritonrl.objectives.critic_loss import required_entry
from tritonrl.objectives.distributional_dqn import DistributionalDQNLoss
from tritonrl.objectives.off_policy import OffPolicyLoss

__all__ = ["DQNLoss", "DistributionalDQNLoss"]


class DQNLoss(OffPolicyLoss):
    r"""Deep Q-learning, Mnih et al. 2013, https://arxiv.org/abs/1312.5602, with the target network of Mnih et al. 2015.

    .. math::
        L = \mathbb{E}\left[d\big(Q(o, a),\; y\big)\right], \qquad y = r + \gamma^n (1 - z)\, V'

    with z the terminated flag, n = ``steps_to_next_obs`` (1 if absent) and the value of the next observation o'

    * :math:`V' = \max_{a'} \bar{Q}(o', a')`, or
    * :math:`V' = \bar{Q}(o', \arg\max_{a'} Q(o', a'))` with ``double_dqn`` (van Hasselt et al. 2016,
      https://arxiv.org/abs/1509.06461),

    the bar marking target parameters. Where z is set V' is not looked at. The target comes from the value estimator:
    TD(0) with gamma 0.99 by default; ``make_value_estimator`` changes gamma or takes TD(1) or TD(lambda), for which the
    data are ``[*B, T]``.

    The data hold, for batch size ``[*B]``: what the network reads, at the root and under ``"next"``; ``action``;
    ``("next", "reward")`` and ``("next", "terminated")`` (or ``"done"``), ``[*B, 1]``; and optionally
    ``steps_to_next_obs``, ``[*B, 1]``, and ``priority_weight``, ``[*B]``. ``set_keys`` renames them. One entry is written
    into them: ``td_error`` = (Q(o, a) - y)**2, ``[*B, 1]``.

    The result has one entry, ``loss``.

    Args:
        value_network: the action values: a :class:`~tritonrl.modules.QValueActor` or another tensordict module that
            writes ``action``, ``action_value`` ``[*B, n]`` and ``chosen_action_value`` ``[*B, 1]``. A plain module that
            maps ``observation`` to ``[*B, n]`` is wrapped in a ``QValueActor``.

    Keyword Args:
        loss_function: the distance d, ``"l1"``, ``"l2"`` (default) or ``"smooth_l1"``.
        delay_value: value the next observation with ``target_value_network_params``, which a ``SoftUpdate`` or
            ``HardUpdate`` moves; otherwise with the current parameters.
        double_dqn: let the current parameters choose the next action and the target parameters value it.
        gamma: gone; the discount belongs to the value estimator.
        action_space: how ``action`` is encoded, ``"one_hot"``, ``"mult_one_hot"``, ``"binary"``, ``"categorical"`` or
            ``"multi_categorical"``, or a spec or Gymnasium space that tells
            (:func:`~tritonrl.modules.action_space.action_space_name`). None to ask the network.
        priority_key: gone; use ``set_keys``.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        use_prioritized_weights: weigh the steps with ``priority_weight`` where the data have it (``"auto"``, True) or
            not (False).

    Raises:
        ValueError: if the action space is unknown, or ``double_dqn`` comes without ``delay_value``.
        RuntimeError: for a spec as ``action_space`` of a plain module, or a key in the constructor.
        TypeError: for ``gamma``.

    Example:
        >>> from tritonrl.modules import QValueActor
        >>> actor = QValueActor(torch.nn.Linear(3, 2), in_keys=["observation"], action_space="categorical")
        >>> loss = DQNLoss(actor, action_space="categorical", delay_value=False)
        >>> data = TensorDict({"observation": torch.randn(5, 3)}, [5])
        >>> data["action"] = torch.randint(2, (5,))
        >>> step = {"observation": torch.randn(5, 3), "reward": torch.ones(5, 1)}
        >>> data["next"] = {**step, "terminated": torch.ones(5, 1, dtype=torch.bool)}
        >>> out = loss(data)
        >>> action_value = actor.module[0].module(data["observation"])
        >>> expected = (action_value.gather(-1, data["action"].unsqueeze(-1)) - 1).square().mean()
        >>> bool(torch.isclose(loss.total(out), expected))
        True
    """

    @dataclass
    class _AcceptedKeys(OffPolicyLoss._AcceptedKeys):
        """Entries by role; see the class."""

        advantage: NestedKey = "advantage"
        value_target: NestedKey = "value_target"
        value: NestedKey = "chosen_action_value"
        action_value: NestedKey = "action_value"

    default_keys = _AcceptedKeys

    def __init__(
        self,
        value_network: nn.Module,
        *,
        loss_function: str | None = "l2",
        delay_value: bool = True,
        double_dqn: bool = False,
        gamma: float | None = None,
        action_space: Any = None,
        priority_key: str | None = None,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        self._refuse_gamma(gamma)
        if double_dqn and not delay_value:
            raise ValueError("double_dqn=True needs delay_value=True: it values the next action with target parameters")
        super().__init__()
        self._set_deprecated_ctor_keys(priority_key=priority_key)
        self.reduction = "mean" if reduction is None else reduction
        self.out_keys = ["loss"]
        value_network = _as_q_network(value_network, action_space)
        self.action_space, self._action_sizes = network_action_space(
            action_space, value_network, self.tensor_keys.action
        )
        self.loss_function = cast(str, loss_function)  # None is refused with the other unknown names.
        self.delay_value = delay_value
        self.double_dqn = double_dqn
        self.use_prioritized_weights = use_prioritized_weights
        self.convert_to_functional(value_network, "value_network", create_target_params=delay_value)

    def _iter_in_keys(self) -> Iterator[NestedKey]:
        yield from self._network_in_keys(self.value_network)
        yield from self._transition_keys()

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss; see the class for what is read and returned.

        Args:
            tensordict: the data, batch size ``[*B]``. ``td_error`` is written into it.

        Returns:
            A tensordict of batch size ``[]`` with the entry ``loss``: 0-dim, or ``[*B]`` with ``reduction="none"``.

        Raises:
            KeyError: if an entry is missing.
            RuntimeError: if the action does not have the shape that its encoding has.
            NotImplementedError: for an unknown reduction or loss function.
            ValueError: if the priority weights do not have the shape ``[*B]``.
        """
        data = self._prepare(tensordict, detach=False)
        value = self._chosen_value(self._call("value_network", data), data)
        target = self._td_target(data, self._next_value(data))
        loss = self._reduce_loss(self._distance(value, target), data, weights=self._maybe_get_priority_weight(data))
        self._write_priority(tensordict, (value - target).square().unsqueeze(-1))
        self._clear_weakrefs(tensordict, data)
        return TensorDict({"loss": loss})

    def _chosen_value(self, values: TensorDictBase, actions: TensorDictBase) -> Tensor:
        """Q of the actions in ``actions`` out of the action values in ``values``, ``[*B]``."""
        keys = self.tensor_keys
        action_value = required_entry(values, keys.action_value, "the value network must write the action values")
        action = required_entry(actions, keys.action, "the action values are compared where it was taken")
        return chosen_action_value(action_value, action, self.action_space, self._action_sizes)

    @torch.no_grad()
    def _next_value(self, data: TensorDictBase) -> Tensor:
        """V' of the next observation, ``[*B, 1]``."""
        inputs = self._next_inputs(data, self.value_network)
        if not self.double_dqn:
            values = self._call("value_network", inputs, self.target_value_network_params)
            return required_entry(values, self.tensor_keys.value, "the value network must write its greedy value")
        greedy = self._call("value_network", inputs)
        values = self._call("value_network", inputs, self.target_value_network_params)
        return self._chosen_value(values, greedy).unsqueeze(-1)


def _as_q_network(network: nn.Module, action_space: Any) -> nn.Module:
    """The network, in a ``QValueActor`` if it is a plain module.

    Raises:
        ValueError: if the action space of a plain module is not given.
        RuntimeError: if it is given as a spec: what else the actor should make of one is not the loss's to guess.
    """
    if hasattr(network, "in_keys") and hasattr(network, "out_keys"):
        return network
    if action_space is None:
        raise ValueError(f"action_space must be given for a plain module, got a {type(network).__name__} and None")
    if not isinstance(action_space, str):
        raise RuntimeError(
            f"action_space must be a name for a plain module, got {action_space!r}: wrap the module in a "
            "QValueActor(module, spec=...), or pass the name"
        )
    return QValueActor(network, in_keys=["observation"], action_space=action_space)
