"""A policy and a value network side by side, on a common trunk or each on its own."""

from __future__ import annotations

from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
    TensorDictSequential,
)

__all__ = ["ActorCriticOperator", "ActorCriticWrapper", "ActorValueOperator"]


def _behind(trunk: TensorDictModuleBase, head: TensorDictModuleBase) -> TensorDictSequential:
    """Trunk, then head; a policy that draws its action stays one."""
    if isinstance(head, ProbabilisticTensorDictSequential):
        return ProbabilisticTensorDictSequential(trunk, *head.module)
    return TensorDictSequential(trunk, head)


class ActorValueOperator(TensorDictSequential):
    """A policy and a state value on a common trunk: embedding, then action, then value.

    The parts of :meth:`get_policy_operator` and :meth:`get_value_operator` share the trunk, with one set of parameters.

    Args:
        common_operator: the trunk; writes the embedding.
        policy_operator: reads the embedding, writes the action.
        value_operator: reads the embedding, writes the value.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from tritonrl.modules import ValueOperator
        >>> both = ActorValueOperator(
        ...     TensorDictModule(torch.nn.Linear(4, 8), ["observation"], ["hidden"]),
        ...     TensorDictModule(torch.nn.Linear(8, 2), ["hidden"], ["action"]),
        ...     ValueOperator(torch.nn.Linear(8, 1), in_keys=["hidden"]),
        ... )
        >>> both.out_keys
        ['hidden', 'action', 'state_value']
        >>> both.get_value_operator()(TensorDict({"observation": torch.zeros(4)}))["state_value"].shape
        torch.Size([1])
    """

    def __init__(
        self,
        common_operator: TensorDictModuleBase,
        policy_operator: TensorDictModuleBase,
        value_operator: TensorDictModuleBase,
    ) -> None:
        super().__init__(common_operator, policy_operator, value_operator)

    def get_policy_operator(self) -> TensorDictSequential:
        """Trunk and policy: observation to action."""
        return _behind(self.module[0], self.module[1])

    def get_value_operator(self) -> TensorDictSequential:
        """Trunk and value: observation to value."""
        return _behind(self.module[0], self.module[2])

    def get_policy_head(self) -> TensorDictModuleBase:
        """The policy alone: embedding to action."""
        return self.module[1]

    def get_value_head(self) -> TensorDictModuleBase:
        """The value alone: embedding to value."""
        return self.module[2]


class ActorCriticOperator(ActorValueOperator):
    """A policy and a state-action value on a common trunk: embedding, then action, then the value of that action.

    There is no value without an action here, so :meth:`get_value_operator` raises: see :meth:`get_critic_operator`.

    Args:
        common_operator: the trunk; writes the embedding.
        policy_operator: reads the embedding, writes the action.
        value_operator: reads embedding and action, writes ``"state_action_value"`` or another name.

    Raises:
        RuntimeError: if ``value_operator`` writes ``"state_value"``, which losses take for the value of a state.

    Example:
        >>> import torch
        >>> from tensordict.nn import TensorDictModule
        >>> from tritonrl.modules import ValueOperator
        >>> both = ActorCriticOperator(
        ...     TensorDictModule(torch.nn.Linear(4, 8), ["observation"], ["hidden"]),
        ...     TensorDictModule(torch.nn.Linear(8, 2), ["hidden"], ["action"]),
        ...     ValueOperator(torch.nn.Bilinear(8, 2, 1), in_keys=["hidden", "action"]),
        ... )
        >>> both.get_critic_operator().out_keys
        ['hidden', 'action', 'state_action_value']
    """

    def __init__(
        self,
        common_operator: TensorDictModuleBase,
        policy_operator: TensorDictModuleBase,
        value_operator: TensorDictModuleBase,
    ) -> None:
        super().__init__(common_operator, policy_operator, value_operator)
        if "state_value" in value_operator.out_keys:
            raise RuntimeError(
                "value_operator writes 'state_value', the name of the value of a state; a critic of state and action "
                "reads the action and writes 'state_action_value' (out_keys names another entry)"
            )

    def get_critic_operator(self) -> ActorCriticOperator:
        """The whole: observation to action and its value."""
        return self

    def get_value_operator(self) -> TensorDictSequential:
        raise RuntimeError("an ActorCriticOperator has no value without an action: use get_critic_operator")


class ActorCriticWrapper(TensorDictSequential):
    """A policy and a value that share nothing, in one module.

    Args:
        policy_operator: observation to action.
        value_operator: observation (and action) to value.

    Example:
        >>> import torch
        >>> from tritonrl.modules import Actor, ValueOperator
        >>> pair = ActorCriticWrapper(Actor(torch.nn.Linear(4, 2)), ValueOperator(torch.nn.Linear(4, 1)))
        >>> pair.out_keys
        ['action', 'state_value']
    """

    def __init__(self, policy_operator: TensorDictModuleBase, value_operator: TensorDictModuleBase) -> None:
        super().__init__(policy_operator, value_operator)

    def get_policy_operator(self) -> TensorDictModuleBase:
        """The policy."""
        return self.module[0]

    def get_value_operator(self) -> TensorDictModuleBase:
        """The value."""
        return self.module[1]

    get_policy_head = get_policy_operator
    get_value_head = get_value_operator
