"""Deep Q-learning on distributions of returns (C51)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor, nn

from tritonrl.objectives.categorical_projection import check_support, project_categorical
from tritonrl.objectives.chosen_action_value import chosen_action_value, network_action_space
from tritonrl.objectives.critic_loss import required_entry
from tritonrl.objectives.functional import assert_all
from tritonrl.objectives.off_policy import OffPolicyLoss
from tritonrl.objectives.value.estimators.coefficients import as_coefficient
from tritonrl.objectives.value.estimators.keys import next_key
from tritonrl.objectives.value.registry import ValueEstimators, as_value_estimator_type

__all__ = ["DistributionalDQNLoss"]

_WITH_ONE_CHOICE = ("one_hot", "categorical")


class DistributionalDQNLoss(OffPolicyLoss):
    r"""Double deep Q-learning on categorical distributions of the return, C51: Bellemare et al. 2017,
    https://arxiv.org/abs/1707.06887; double as in Hessel et al. 2018 (Rainbow), https://arxiv.org/abs/1710.02298.

    The network gives, for each action, the probabilities p of the atoms :math:`z_1 < \dots < z_k` of a fixed support:

    .. math::
        a^* = \arg\max_{a'} \sum_i z_i\, p_i(o', a'), \qquad
        m = \Pi\big(r + \gamma^n (1 - t)\, z,\; \bar{p}(o', a^*)\big), \qquad
        L = \mathbb{E}\Big[-\sum_i m_i \log p_i(o, a)\Big]

    with t the terminated flag, n = ``steps_to_next_obs`` (1 if absent), o' the next observation, the bar marking target
    parameters and :math:`\Pi` the projection on the support
    (:func:`~tritonrl.objectives.categorical_projection.project_categorical`). Where t is set the network's output for o'
    is not looked at. The target carries no gradient.

    The data hold, for any batch size ``[*B]``: what the network reads, at the root and under ``"next"``; ``action``;
    ``("next", "reward")`` and ``("next", "terminated")`` (or ``"done"`` if that is absent), ``[*B, 1]``; and optionally
    ``steps_to_next_obs``, ``[*B, 1]``, and ``priority_weight``, ``[*B]``. ``set_keys`` renames them. One entry is written
    into them: ``td_error``, the cross-entropy of each step, ``[*B, 1]``.

    The result has one entry, ``loss``.

    Args:
        value_network: a :class:`~tritonrl.modules.DistributionalQValueActor`, or another tensordict module that writes
            ``action`` (the greedy one) and ``action_value`` (log-probabilities ``[*B, atoms, n]``) and holds a buffer
            ``support`` ``[atoms]``.

    Keyword Args:
        gamma: the discount; a buffer that can be assigned to (``loss.gamma = 0.9``).
        delay_value: take the distribution of the next step from ``target_value_network_params``, which a ``SoftUpdate``
            or ``HardUpdate`` moves; otherwise from the current parameters.
        priority_key: gone; use ``set_keys``.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        use_prioritized_weights: weigh the steps with ``priority_weight`` where the data have it (``"auto"``, True) or
            not (False).

    Raises:
        TypeError: if ``gamma`` is missing or no number, or the network is a plain module.
        ValueError: if the network has no increasing support, or an action has several parts: they have one return
            together, not a distribution each.
        RuntimeError: for a key in the constructor.

    Example:
        >>> from tritonrl.modules import DistributionalQValueActor
        >>> net = nn.Sequential(nn.Linear(3, 5 * 2), nn.Unflatten(-1, (5, 2)))
        >>> actor = DistributionalQValueActor(net, torch.linspace(-1, 1, 5), action_space="categorical")
        >>> loss = DistributionalDQNLoss(actor, gamma=0.99, delay_value=False)
        >>> step = {"observation": torch.randn(4, 3), "reward": torch.ones(4, 1)}
        >>> step["terminated"] = torch.ones(4, 1, dtype=torch.bool)
        >>> data = TensorDict({"observation": torch.randn(4, 3), "action": torch.ones(4, dtype=torch.int64)}, [4])
        >>> out = loss(data.set("next", step))
        >>> log_probs = actor(data.select("observation"))["action_value"]  # a return of 1 is the last atom
        >>> bool(torch.isclose(loss.total(out), -log_probs[:, -1, 1].mean()))
        True
    """

    @dataclass
    class _AcceptedKeys(OffPolicyLoss._AcceptedKeys):
        """Entries by role; see the class."""

        action_value: NestedKey = "action_value"
        steps_to_next_obs: NestedKey = "steps_to_next_obs"

    default_keys = _AcceptedKeys
    SUPPORTED_VALUE_ESTIMATORS: ClassVar[tuple[ValueEstimators, ...]] = (ValueEstimators.TD0,)
    _schedulable_buffers = frozenset({"gamma"})
    gamma: Tensor

    def __init__(
        self,
        value_network: nn.Module,
        *,
        gamma: float,
        delay_value: bool = True,
        priority_key: str | None = None,
        reduction: str | None = None,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        if not isinstance(value_network, TensorDictModuleBase):
            raise TypeError(
                "value_network must be a DistributionalQValueActor or another tensordict module, got "
                f"{type(value_network).__name__}"
            )
        super().__init__()
        self._set_deprecated_ctor_keys(priority_key=priority_key)
        self.reduction = "mean" if reduction is None else reduction
        self.out_keys = ["loss"]
        self.action_space, _ = network_action_space(
            getattr(value_network, "action_space", None), value_network, self.tensor_keys.action
        )
        if self.action_space not in _WITH_ONE_CHOICE:
            raise ValueError(
                f"the action space must be one of {_WITH_ONE_CHOICE}, got {self.action_space!r}: the distribution of a "
                "return belongs to one choice"
            )
        self._support_key = _support_key(value_network)
        support = check_support(value_network.get_buffer(".".join(self._support_key)))
        self.use_prioritized_weights = use_prioritized_weights
        self.delay_value = delay_value
        self.register_coeff_buffer("gamma", as_coefficient("gamma", gamma, support.device))
        self.convert_to_functional(value_network, "value_network", create_target_params=delay_value)

    # -- value estimator ------------------------------------------------------------------------------------------

    @property
    def _estimator_can_be_built(self) -> bool:
        return False

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> None:
        """Record the choice of TD(0), the only one there is: the target is a distribution, which no value estimator of
        the package computes.

        Args:
            value_type: ``ValueEstimators.TD0``, its alias or None.
            **hyperparams: ``gamma`` is assigned to the buffer.

        Raises:
            NotImplementedError: for any other estimator.
            TypeError: for another hyper-parameter.
        """
        value_type = self.default_value_estimator if value_type is None else value_type
        if isinstance(value_type, str):
            value_type = as_value_estimator_type(value_type)
        if value_type is not ValueEstimators.TD0:
            raise NotImplementedError(
                f"Value type {value_type} is not implemented for loss {type(self).__name__}: only TD0 is."
            )
        gamma = hyperparams.pop("gamma", None)
        if hyperparams:
            raise TypeError(f"make_value_estimator: {type(self).__name__} takes gamma only, got {sorted(hyperparams)}")
        if gamma is not None:
            self.gamma = gamma
        self.value_type = value_type

    def _default_value_estimator(self) -> None:
        """There is none to build: ``value_estimator`` is None."""

    # -- loss -----------------------------------------------------------------------------------------------------

    def _iter_in_keys(self) -> Iterator[NestedKey]:
        yield from self._network_in_keys(self.value_network)
        yield from self._transition_keys()
        yield self.tensor_keys.steps_to_next_obs
        if self.use_prioritized_weights in (True, "auto"):
            yield self.tensor_keys.priority_weight

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss; see the class for what is read and returned.

        Args:
            tensordict: the data, batch size ``[*B]``. ``td_error`` is written into it.

        Returns:
            A tensordict of batch size ``[]`` with the entry ``loss``: 0-dim, or ``[*B]`` with ``reduction="none"``.

        Raises:
            KeyError: if an entry is missing.
            RuntimeError: if the action, the reward or a flag does not have its shape.
            NotImplementedError: for an unknown reduction.
            ValueError: if the priority weights do not have the shape ``[*B]``.
        """
        data = self._prepare(tensordict, detach=False)
        outputs = self._call("value_network", data)
        log_probs = self._log_probs_of_action(outputs, data)
        target = self._target_distribution(data)
        # Where no mass is, the log-probability does not matter: 0 * -inf would be NaN.
        cross_entropy = -torch.where(target == 0, 0.0, target * log_probs).sum(-1)
        loss = self._reduce_loss(cross_entropy, data, weights=self._maybe_get_priority_weight(data))
        self._write_priority(tensordict, cross_entropy.unsqueeze(-1))
        self._clear_weakrefs(tensordict, data)
        return TensorDict({"loss": loss})

    def _log_probs_of_action(self, outputs: TensorDictBase, actions: TensorDictBase) -> Tensor:
        """Log-probabilities of the atoms, of the actions in ``actions``: ``[*B, atoms]``."""
        keys = self.tensor_keys
        log_probs = required_entry(outputs, keys.action_value, "the value network must write the log-probabilities")
        action = required_entry(actions, keys.action, "the distribution is that of the action taken")
        atoms = self._support.shape[0]
        if log_probs.ndim != outputs.ndim + 2 or log_probs.shape[-2] != atoms:
            raise RuntimeError(
                f"{keys.action_value!r} must have the shape [*B, {atoms}, actions] for {atoms} atoms and the batch size "
                f"{tuple(outputs.batch_size)}, got {tuple(log_probs.shape)}"
            )
        by_atom = chosen_action_value(log_probs.movedim(-2, 0), action.expand(atoms, *action.shape), self.action_space)
        return by_atom.movedim(0, -1)

    @property
    def _support(self) -> Tensor:
        return self.value_network_params.get(self._support_key)

    @torch.no_grad()
    def _target_distribution(self, data: TensorDictBase) -> Tensor:
        """Mass of the target at each atom, ``[*B, atoms]``."""
        inputs = self._next_inputs(data, self.value_network)
        greedy = self._call("value_network", inputs)
        outputs = self._call("value_network", inputs, self.target_value_network_params)
        probs = self._log_probs_of_action(outputs, greedy).exp()
        probs = probs.to(torch.promote_types(probs.dtype, torch.float32))
        support = self._support.to(probs.dtype)
        reward, terminated, discount = self._outcome(data, probs.dtype)
        # The return of a terminal step is its reward, whatever the network makes of an observation that may be NaN.
        probs = torch.where(terminated, torch.full_like(probs, 1 / probs.shape[-1]), probs)
        returns = reward + torch.where(terminated, torch.zeros_like(probs), discount * support)
        assert_all(
            torch.isfinite(returns), "the returns must be finite: the reward, gamma or the number of steps is not"
        )
        return project_categorical(probs, returns, support)

    def _outcome(self, data: TensorDictBase, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, terminated flag and discount of the steps, ``[*B, 1]`` each."""
        keys = self.tensor_keys
        reward = _per_step(data, next_key(keys.reward))
        has_terminated = data.get(next_key(keys.terminated), None) is not None
        terminated = _per_step(data, next_key(keys.terminated if has_terminated else keys.done))
        gamma = self.gamma.to(dtype)
        if data.get(keys.steps_to_next_obs, None) is not None:
            gamma = gamma ** _per_step(data, keys.steps_to_next_obs).to(dtype)
        return reward.to(dtype), terminated.bool(), gamma


def _per_step(data: TensorDictBase, key: NestedKey) -> Tensor:
    """An entry with one number per step, ``[*B]`` or ``[*B, 1]``, as ``[*B, 1]``.

    Raises:
        KeyError: if it is missing.
        RuntimeError: if it has another shape.
    """
    entry = required_entry(data, key, "the target of the distribution is made from it")
    aligned = entry.unsqueeze(-1) if entry.ndim == data.ndim else entry
    if aligned.shape != (*data.batch_size, 1):
        raise RuntimeError(f"{key!r} must have the shape {(*data.batch_size, 1)}, got {tuple(entry.shape)}")
    return aligned


def _support_key(network: nn.Module) -> tuple[str, ...]:
    """Where among the parameters and buffers of the network the support is.

    Raises:
        ValueError: if there is none.
    """
    paths = (tuple(name.split(".")) for name, _ in network.named_buffers())
    path = next((path for path in paths if path[-1] == "support"), None)
    if path is None:
        raise ValueError(
            f"value_network must hold a buffer 'support' [atoms], which the {type(network).__name__} does not"
        )
    return path
