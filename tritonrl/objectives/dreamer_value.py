"""The value function of Dreamer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from tritonrl.objectives.common import LossModule
from tritonrl.objectives.critic_loss import critic_distance, required_entry
from tritonrl.objectives.horizon_weights import horizon_weights
from tritonrl.objectives.validity import hide_invalid

__all__ = ["DreamerValueLoss"]


class DreamerValueLoss(LossModule):
    r"""Value function of Dreamer, Hafner et al. 2019, https://arxiv.org/abs/1912.01603.

    .. math:: L_{value} = \mathbb{E}\Big[\textstyle\sum_{t=0}^{H-1} \gamma^t\, d\big(G_t, V(s_t)\big)\Big]

    with the returns :math:`G_t` that :class:`~tritonrl.objectives.dreamer_actor.DreamerActorLoss` imagined, as
    constants.

    The data, of batch size ``[*B, H]``, hold what the value model reads and ``lambda_target``, ``[*B, H, 1]``: what that
    loss returns. A flat batch ``[N]`` has no time dimension: every entry counts as the first step of its own, unless
    the dimension is named ``"time"``. The data are not written to. Steps that a validity mask (``loss_mask_key``)
    excludes do not count.

    Args:
        value_model: the value function, a tensordict module that writes ``state_value`` in the shape of the target.
        value_loss: the distance d, ``"l2"`` (default), ``"l1"`` or ``"smooth_l1"``.
        discount_loss: weigh the t-th imagined step by :math:`\gamma^t`; otherwise by 1.
        gamma: the discount in that weight. It is not that of the actor's value estimator: pass the same. Assign to it to
            schedule it.

    Raises:
        ValueError: if gamma is not between 0 and 1.

    Example:
        >>> import torch
        >>> from tensordict.nn import TensorDictModule
        >>> value = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["state"], out_keys=["state_value"])
        >>> loss = DreamerValueLoss(value)
        >>> target = torch.randn(5, 4, 1)
        >>> losses, _ = loss(TensorDict(state=torch.randn(5, 4, 3), lambda_target=target, batch_size=[5, 4]))
        >>> losses["loss_value"].backward()
    """

    @dataclass
    class _AcceptedKeys:
        """Entries by role."""

        value: NestedKey = "state_value"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    _schedulable_buffers = frozenset({"gamma"})

    value_model: TensorDictModuleBase
    gamma: Tensor

    def __init__(
        self,
        value_model: TensorDictModuleBase,
        value_loss: str | None = None,
        discount_loss: bool = True,
        gamma: float = 0.99,
    ) -> None:
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be between 0 and 1, got {gamma}")
        super().__init__()
        self.value_model = value_model
        self.value_loss = "l2" if value_loss is None else value_loss
        self.discount_loss = discount_loss
        self._register_unsaved_coefficients(gamma=gamma)
        self.out_keys = ["loss_value"]

    def _iter_in_keys(self) -> Iterator[NestedKey]:
        yield from self.value_model.in_keys
        yield "lambda_target"

    def forward(self, fake_data: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """The loss, and the data.

        Args:
            fake_data: imagined steps, batch size ``[*B, H]``; not written to.

        Returns:
            A tensordict with ``loss_value``, 0-dim, and ``fake_data``.

        Raises:
            KeyError: if an entry is missing.
            RuntimeError: if value and target differ in shape.
            NotImplementedError: for an unknown distance.
        """
        data = fake_data.detach().copy()
        hide_invalid(data, self.in_keys, self._loss_mask_keys())
        target = required_entry(data, "lambda_target", "the value is regressed on it; DreamerActorLoss returns it")
        value = self._value(data)
        distance = critic_distance(value, target, self.value_loss).loss
        losses = TensorDict({"loss_value": self._over_horizon(distance, data)})
        self._clear_weakrefs(fake_data, data, losses)
        return losses, fake_data

    def _value(self, data: TensorDictBase) -> Tensor:
        outputs = self.value_model(data.select(*self.value_model.in_keys, strict=False))
        return required_entry(outputs, self.tensor_keys.value, "the value model is to write it (set_keys(value=...))")

    def _over_horizon(self, distance: Tensor, data: TensorDictBase) -> Tensor:
        """Weigh the steps, sum over time, and average over what is imagined from the states that count."""
        valid = self._loss_mask(data, distance)
        distance = self._reduce_loss(distance, data, reduction="none")
        if _is_flat(data, distance):
            distance, valid = distance.unsqueeze(-2), None if valid is None else valid.unsqueeze(-2)
        if self.discount_loss:
            distance = distance * horizon_weights(self.gamma, distance)
        summed = distance.sum((-2, -1))
        if valid is None:
            return summed.mean()
        return summed.sum() / valid.any(-1).any(-1).sum().clamp_min(1)


def _is_flat(data: TensorDictBase, distance: Tensor) -> bool:
    """Whether the data are single steps ``[N, 1]`` rather than rows of steps ``[*B, H, 1]``."""
    return distance.ndim == 2 and data.batch_dims == 1 and data.names[0] != "time"
