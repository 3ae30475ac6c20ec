"""Greedy policies on the distributions of the values of all actions (Bellemare et al. 2017: C51)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential, dispatch
from torch import Tensor, nn

from tritonrl.modules.greedy_action import greedy_action
from tritonrl.modules.q_values import QValueModule, values_network

__all__ = ["AtomLogSoftmax", "DistributionalQValueActor", "DistributionalQValueModule"]


class AtomLogSoftmax(nn.Module):
    """Logits ``[*B, atoms, n]`` to log-probabilities of the atoms, for each action.

    Example:
        >>> import torch
        >>> AtomLogSoftmax()(torch.zeros(2, 3)).exp().sum(-2)
        tensor([1., 1., 1.])
    """

    def forward(self, logits: Tensor) -> Tensor:
        if logits.ndim < 2:
            raise ValueError(f"logits must have the shape [*B, atoms, actions], got {tuple(logits.shape)}")
        return logits.log_softmax(-2)


class DistributionalQValueModule(QValueModule):
    r"""From the distributions of the values of all actions to the action of the best expected value.

    .. math:: a^* = \arg\max_a \sum_i z_i\, p_i(o, a)

    A mask bars an action from being chosen; the distributions are left as they are.

    Args:
        action_space: encoding of the action, as for :class:`~tritonrl.modules.QValueModule`, without ``"binary"``.
        support: the atoms z, ``[atoms]``; a buffer.
        action_value_key: entry of the log-probabilities; by default ``"action_value"``.
        action_mask_key: entry of the mask, ``[*B, n]``, True where an action is allowed.
        out_keys: entries of action and log-probabilities; by default ``"action"`` and ``action_value_key``.
        var_nums: number of choices of each part of the action.
        spec: of the action, instead of ``action_space``.
        safe: see :class:`~tritonrl.modules.QValueModule`.

    Raises:
        NotImplementedError: for the binary action space.
        ValueError: as :class:`~tritonrl.modules.QValueModule`.

    Shapes: log-probabilities ``[*B, atoms, n]``.

    Example:
        >>> import torch
        >>> best = DistributionalQValueModule("categorical", support=torch.tensor([-1.0, 1.0]))
        >>> best(torch.tensor([[0.9, 0.2], [0.1, 0.8]]).log())[0]
        tensor(1)
    """

    support: Tensor

    def __init__(
        self,
        action_space: str | None,
        support: Tensor,
        action_value_key: NestedKey | None = None,
        action_mask_key: NestedKey | None = None,
        out_keys: Sequence[NestedKey] | None = None,
        var_nums: int | Sequence[int] | None = None,
        spec: Any = None,
        safe: bool = False,
    ) -> None:
        super().__init__(action_space, action_value_key, action_mask_key, out_keys, var_nums, spec, safe)
        if self.action_space == "binary":
            raise NotImplementedError("the action space 'binary' has no distributional values")
        self.register_buffer("support", support)

    def _default_out_keys(self) -> list[NestedKey]:
        return ["action", self.action_value_key]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action.

        Raises:
            KeyError: if the log-probabilities or the mask are missing.
            ValueError: if there are not as many log-probabilities as atoms, or the mask does not fit.
        """
        log_probs = tensordict.get(self.action_value_key)
        action = greedy_action(
            self._masked(self._expected_value(log_probs), tensordict), self.action_space, self.var_nums
        )
        tensordict.update(dict(zip(self.out_keys, (action, log_probs), strict=True)))
        return tensordict

    def _expected_value(self, log_probs: Tensor) -> Tensor:
        """``[*B, atoms, n]`` to ``[*B, n]``."""
        if log_probs.ndim < 2 or log_probs.shape[-2] != self.support.shape[-1]:
            raise ValueError(
                f"the log-probabilities {self.action_value_key!r} must have the shape [*B, {self.support.shape[-1]}, "
                f"actions], one for each atom of the support, got {tuple(log_probs.shape)}"
            )
        return (log_probs.exp() * self.support.unsqueeze(-1)).sum(-2)


class DistributionalQValueActor(TensorDictSequential):
    """The policy of distributional DQN: a network of atoms by actions, log-softmax over the atoms, best action.

    Args:
        module: the network; its output is ``[*B, atoms, n]``. One that does not read tensordicts is wrapped.
        support: the atoms, ``[atoms]``; a buffer.
        in_keys: entries that the network reads; by default ``["observation"]``.
        spec: of the action, instead of ``action_space``; kept as ``spec``.
        safe: see :class:`~tritonrl.modules.QValueModule`.
        var_nums: see :class:`~tritonrl.modules.QValueModule`.
        action_space: see :class:`DistributionalQValueModule`.
        action_value_key: entry of the log-probabilities.
        action_mask_key: entry of the mask.
        make_log_softmax: whether the network writes logits (the log-softmax is put behind it) or log-probabilities.

    Raises:
        KeyError: if a network on tensordicts does not write ``action_value_key``.
        ValueError, NotImplementedError: as :class:`DistributionalQValueModule`.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> net = nn.Sequential(nn.Linear(4, 51 * 2), nn.Unflatten(-1, (51, 2)))
        >>> actor = DistributionalQValueActor(net, torch.linspace(-10, 10, 51), action_space="one-hot")
        >>> data = actor(TensorDict({"observation": torch.zeros(3, 4)}, [3]))
        >>> data["action"].shape, data["action_value"].shape
        (torch.Size([3, 2]), torch.Size([3, 51, 2]))
    """

    support: Tensor

    def __init__(
        self,
        module: nn.Module,
        support: Tensor,
        in_keys: Sequence[NestedKey] | None = None,
        spec: Any = None,
        safe: bool = False,
        var_nums: int | Sequence[int] | None = None,
        action_space: str | None = None,
        action_value_key: NestedKey = "action_value",
        action_mask_key: NestedKey | None = None,
        make_log_softmax: bool = True,
    ) -> None:
        best = DistributionalQValueModule(
            action_space,
            support,
            action_value_key=action_value_key,
            action_mask_key=action_mask_key,
            var_nums=var_nums,
            spec=spec,
            safe=safe,
        )
        stages = [values_network(module, in_keys, action_value_key)]
        if make_log_softmax:
            stages.append(TensorDictModule(AtomLogSoftmax(), [action_value_key], [action_value_key]))
        super().__init__(*stages, best)
        self.register_buffer("support", support)
        self.action_space = best.action_space
        self.action_value_key = action_value_key
        self.make_log_softmax = make_log_softmax
        self.spec = spec
