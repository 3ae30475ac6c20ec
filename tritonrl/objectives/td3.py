"""Twin delayed deep deterministic policy gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor

from tritonrl.objectives.action_bounds import action_bounds
from tritonrl.objectives.critic_loss import required_entry
from tritonrl.objectives.off_policy import OffPolicyLoss

__all__ = ["TD3Loss"]


class TD3Loss(OffPolicyLoss):
    r"""Twin delayed DDPG, Fujimoto et al. 2018, https://arxiv.org/abs/1802.09477.

    .. math::
        L_{actor} &= -\mathbb{E}\left[Q_{1, \mathrm{sg}}(o, \mu(o))\right] \\
        L_{qvalue} &= \mathbb{E}\Big[\sum_i d\big(Q_i(o, a), y\big)\Big], \qquad
        y = r + \gamma^n (1 - z) \min_i \bar{Q}_i(o', a') \\
        a' &= \mathrm{clip}\big(\bar\mu(o') + \mathrm{clip}(\epsilon, -c, c), a_{min}, a_{max}\big), \qquad
        \epsilon \sim \mathcal{N}(0, \sigma^2)

    with z the terminated flag and bars for target parameters. The gradient of the actor runs through the action of the
    first critic alone, not to the critic, and y has none. y is computed by the value estimator (default TD(0) with
    gamma 0.99; see ``make_value_estimator``), n is ``steps_to_next_obs`` where the data have it, else 1. The *delayed*
    in the name, an actor that is updated less often, is up to the training loop.

    The data, of batch size ``[*B]``, hold what the networks read, at the root and under ``"next"`` (there without the
    action); ``action``; ``("next", reward | done | terminated)``, ``[*B, 1]``; and optionally ``priority_weight``,
    ``[*B]``. ``set_keys`` renames them. The largest squared TD error of the critics, ``[*B]``, is written into them as
    ``td_error``.

    The result has the terms to add up, ``loss_actor`` and ``loss_qvalue``, and, free of gradient: ``pred_value``
    Q_i(o, a) and ``state_action_value_actor`` Q_i(o, mu(o)), each ``[N, *B]``; ``next_state_value``, the minimum above,
    and ``target_value`` y, each ``[*B]``.

    Args:
        actor_network: the policy mu, a tensordict module that writes ``action``. One that draws its action is used at
            its deterministic one.
        qvalue_network: a critic, a tensordict module that reads ``action`` and writes ``state_action_value``
            ``[*B, 1]``, of which ``num_qvalue_nets`` are drawn; or a list of that many critics.

    Keyword Args:
        action_spec: the bounds of the action as a spec (:func:`~tritonrl.objectives.action_bounds.action_bounds`).
        bounds: or as a pair ``(low, high)``, each a number or as many as the action has.
        num_qvalue_nets: number of critics.
        policy_noise: sigma, in units of the action. Like ``noise_clip`` it may be assigned a new number at any time.
        noise_clip: c, in units of the action.
        loss_function: the distance d, ``"l1"``, ``"l2"`` or ``"smooth_l1"``.
        delay_actor: whether the target has an actor of its own, that a target updater moves.
        delay_qvalue: whether it has critics of its own.
        gamma: gone; the discount belongs to the value estimator.
        priority_key: gone; use ``set_keys``.
        separate_losses: keep the critics' gradient away from parameters that they share with the actor.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        deactivate_vmap: evaluate the critics one after the other.
        use_prioritized_weights: False ignores ``priority_weight``; with ``"auto"`` and True both losses are weighted
            where the data have it.

    Raises:
        ValueError: unless exactly one of ``action_spec`` and ``bounds`` is given and it gives bounds; for a negative
            ``policy_noise`` or ``noise_clip``; for no critic at all, or one that is listed twice.
        TypeError: for ``gamma`` or an unknown keyword.
        RuntimeError: for a key in the constructor, or a list of another length than ``num_qvalue_nets``.

    Example:
        >>> from tensordict.nn import TensorDictModule
        >>> class Q(torch.nn.Linear):
        ...     def forward(self, *inputs):
        ...         return super().forward(torch.cat(inputs, -1))
        >>> actor = TensorDictModule(torch.nn.Linear(4, 2), in_keys=["observation"], out_keys=["action"])
        >>> critic = TensorDictModule(Q(6, 1), in_keys=["observation", "action"], out_keys=["state_action_value"])
        >>> loss = TD3Loss(actor, critic, bounds=(-1.0, 1.0))
        >>> from tritonrl.objectives import SoftUpdate
        >>> updater = SoftUpdate(loss, tau=0.005)
        >>> ended = torch.zeros(5, 1, dtype=torch.bool)
        >>> next_data = {"observation": torch.randn(5, 4), "reward": torch.ones(5, 1), "done": ended, "terminated": ended}
        >>> data = {"observation": torch.randn(5, 4), "action": torch.randn(5, 2), "next": next_data}
        >>> out = loss(TensorDict(data, [5]))
        >>> loss.total(out).backward()
        >>> updater.step()
        >>> out["pred_value"].shape
        torch.Size([2, 5])
    """

    @dataclass
    class _AcceptedKeys:
        """Entries by role: ``reward``, ``done`` and ``terminated`` are read under ``"next"``."""

        action: NestedKey = "action"
        state_action_value: NestedKey = "state_action_value"
        priority: NestedKey = "td_error"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        priority_weight: NestedKey = "priority_weight"

    default_keys = _AcceptedKeys
    _schedulable_buffers = frozenset({"policy_noise", "noise_clip"})

    qvalue_network: TensorDictModuleBase
    min_action: Tensor
    max_action: Tensor
    policy_noise: Tensor
    noise_clip: Tensor

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        qvalue_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        *,
        action_spec: Any = None,
        bounds: tuple[Any, Any] | None = None,
        num_qvalue_nets: int = 2,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        loss_function: str = "smooth_l1",
        delay_actor: bool = True,
        delay_qvalue: bool = True,
        gamma: float | None = None,
        priority_key: str | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        deactivate_vmap: bool = False,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        self._refuse_gamma(gamma)
        super().__init__()
        self._set_deprecated_ctor_keys(priority_key=priority_key)
        self._register_reduction(reduction)
        self.use_prioritized_weights = use_prioritized_weights
        self.loss_function = loss_function
        self.delay_actor = delay_actor
        self.delay_qvalue = delay_qvalue
        low, high = action_bounds(action_spec, bounds, self.tensor_keys.action)
        self.convert_to_functional(actor_network, "actor_network", create_target_params=delay_actor)
        self._register_critics(
            qvalue_network,
            num_qvalue_nets,
            delay=delay_qvalue,
            compare_against=list(actor_network.parameters()) if separate_losses else None,
            deactivate_vmap=deactivate_vmap,
        )
        self.register_buffer("max_action", high.to(self._default_device))
        self.register_buffer("min_action", low.to(self._default_device))
        self._register_noise(policy_noise=policy_noise, noise_clip=noise_clip)
        self.out_keys = ["loss_actor", "loss_qvalue", "pred_value", "state_action_value_actor"]
        self.out_keys += ["next_state_value", "target_value"]

    def _register_noise(self, **sizes: float) -> None:
        """Buffers, so that annealing the noise compiles no second graph. Not saved: TorchRL's states have none."""
        for name, size in sizes.items():
            if not size >= 0:
                raise ValueError(f"{name} must not be negative, got {size}")
            buffer = torch.tensor(float(size), dtype=torch.float64, device=self._default_device)
            self.register_buffer(name, buffer, persistent=False)

    def _iter_in_keys(self) -> Iterator[NestedKey]:
        yield from self._input_keys(self.qvalue_network)
        yield from self._transition_keys()

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The terms of the loss and the metrics; see the class for what is read and returned.

        Args:
            tensordict: the transitions, batch size ``[*B]``; ``td_error`` is written into them.

        Returns:
            A tensordict of batch size ``[]``. With ``reduction="none"`` its ``loss_*`` entries have the shape ``[*B]``.

        Raises:
            KeyError: if an entry is missing.
            RuntimeError: if the shapes of reward, flags and values do not match.
            NotImplementedError: for an unknown reduction or ``loss_function``.
        """
        data = self._prepare(tensordict, detach=False)
        loss_actor, actor_metadata = self._actor_terms(data)
        loss_qvalue, value_metadata = self._value_terms(data)
        td_error = value_metadata.pop("td_error")
        self._write_priority(tensordict, td_error.amax(0))
        self._clear_weakrefs(data, tensordict)
        return TensorDict({"loss_actor": loss_actor, "loss_qvalue": loss_qvalue, **actor_metadata, **value_metadata})

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor's term alone, reduced, and ``state_action_value_actor``. Nothing is written into the data."""
        return self._actor_terms(self._prepare(tensordict, detach=False))

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The critics' term alone, reduced, and the metrics (see the class; ``td_error`` is ``[N, *B]``). Nothing is
        written into the data."""
        return self._value_terms(self._prepare(tensordict, detach=False))

    def _actor_terms(self, data: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        acted = data.copy().update(self._call("actor_network", data))
        values = self._critic_values(acted, self.qvalue_network_params.data)
        loss = self._reduce_loss(-values[0], data, weights=self._maybe_get_priority_weight(data))
        return loss, {"state_action_value_actor": values.detach()}

    def _value_terms(self, data: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        next_value = self._next_state_value(data)
        values = self._critic_values(data)
        target = self._td_target(data, next_value)
        distance = self._distance(values, target).sum(0)
        metadata = {
            "td_error": (values.detach() - target).square(),
            "next_state_value": next_value,
            "pred_value": values.detach(),
            "target_value": target,
        }
        return self._reduce_loss(distance, data, weights=self._maybe_get_priority_weight(data)), metadata

    @torch.no_grad()
    def _next_state_value(self, data: TensorDictBase) -> Tensor:
        """The least of the target critics' values of the target actor's next action, noise added, ``[*B]``."""
        keys = self.tensor_keys
        action = required_entry(data, keys.action, "the critics value it (set_keys(action=...))")
        noise = (torch.randn_like(action) * self.policy_noise).clamp(-self.noise_clip, self.noise_clip)
        acted = self._acted_next(data, self.qvalue_network)
        noisy = acted.get(keys.action) + noise
        acted.set(keys.action, noisy.clamp(self.min_action.to(noisy.dtype), self.max_action.to(noisy.dtype)))
        return self._critic_values(acted, self.target_qvalue_network_params).amin(0)
