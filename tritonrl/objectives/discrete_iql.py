"""Implicit Q-learning for discrete actions."""

from __future__ import annotations

import warnings
from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor

from tritonrl.modules.action_space import action_space_name
from tritonrl.objectives.chosen_action_value import chosen_action_value
from tritonrl.objectives.iql_loss import IQLLoss

__all__ = ["DiscreteIQLLoss"]


class DiscreteIQLLoss(IQLLoss):
    r"""Implicit Q-learning, Kostrikov et al. 2021, https://arxiv.org/abs/2110.06169, with critics that value every action.

    :class:`~tritonrl.objectives.iql_loss.IQLLoss` with :math:`Q_i(o, a)` the entry of the stored action among the values that
    critic i gives to all of them. Data, result and what is written are the same.

    Args:
        actor_network: the policy over the actions, a probabilistic tensordict module.
        qvalue_network: the critic, or a list of them, writing the values of all actions, ``[*B, n]``, as
            ``state_action_value``.
        value_network: V, writing ``state_value`` ``[*B, 1]``.

    Keyword Args:
        action_space: how an action is encoded: ``"one-hot"``, ``[*B, n]``, or ``"categorical"``, ``[*B]`` or ``[*B, 1]``,
            or a spec that says so. One-hot, with a warning, if None.
        num_qvalue_nets, loss_function, temperature, expectile, gamma, priority_key, separate_losses, reduction,
            scalar_output_mode: as in :class:`~tritonrl.objectives.iql_loss.IQLLoss`.

    Raises:
        TypeError, ValueError, RuntimeError: as :class:`~tritonrl.objectives.iql_loss.IQLLoss`; RuntimeError also for another
            action space.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule
        >>> from tritonrl.objectives import SoftUpdate
        >>> actor = ProbabilisticTensorDictSequential(
        ...     TensorDictModule(torch.nn.Linear(4, 3), in_keys=["observation"], out_keys=["logits"]),
        ...     ProbabilisticTensorDictModule(
        ...         ["logits"], ["action"], distribution_class=torch.distributions.Categorical
        ...     ),
        ... )
        >>> critic = TensorDictModule(torch.nn.Linear(4, 3), in_keys=["observation"], out_keys=["state_action_value"])
        >>> value = TensorDictModule(torch.nn.Linear(4, 1), in_keys=["observation"], out_keys=["state_value"])
        >>> loss = DiscreteIQLLoss(actor, critic, value, action_space="categorical")
        >>> updater = SoftUpdate(loss, tau=0.005)
        >>> step = TensorDict(observation=torch.randn(7, 4), reward=torch.ones(7, 1), batch_size=[7])
        >>> step["done"] = step["terminated"] = torch.zeros(7, 1, dtype=torch.bool)
        >>> action = torch.randint(3, (7,))
        >>> data = TensorDict(observation=torch.randn(7, 4), action=action, next=step, batch_size=[7])
        >>> loss.total(loss(data)).backward()
    """

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModuleBase | list[TensorDictModuleBase],
        value_network: TensorDictModuleBase | None,
        *,
        action_space: Any = None,
        num_qvalue_nets: int = 2,
        loss_function: str = "smooth_l1",
        temperature: float = 1.0,
        expectile: float = 0.5,
        gamma: float | None = None,
        priority_key: str | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        scalar_output_mode: str | None = None,
    ) -> None:
        if action_space is None:
            warnings.warn(
                "DiscreteIQLLoss was given no action_space and takes the actions to be one-hot: pass "
                "action_space='one-hot' or 'categorical'.",
                category=UserWarning,
                stacklevel=2,
            )
        name = action_space_name("one_hot" if action_space is None else action_space)
        if name not in ("one_hot", "categorical"):
            raise RuntimeError(f"action_space must be one-hot or categorical, got {name!r}")
        super().__init__(
            actor_network,
            qvalue_network,
            value_network,
            num_qvalue_nets=num_qvalue_nets,
            loss_function=loss_function,
            temperature=temperature,
            expectile=expectile,
            gamma=gamma,
            priority_key=priority_key,
            separate_losses=separate_losses,
            reduction=reduction,
            scalar_output_mode=scalar_output_mode,
        )
        self.action_space = name

    def _taken_action_value(self, data: TensorDictBase, params: TensorDictBase | None = None) -> Tensor:
        action_value = self._critic_values(data, params)
        action = data.get(self.tensor_keys.action)
        return chosen_action_value(action_value, action.expand(len(action_value), *action.shape), self.action_space)
