"""V-trace: advantages and value targets corrected for data that another policy collected."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Unpack

from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from tritonrl.objectives.log_weight import as_key_list, behaviour_log_prob, log_prob_of_action
from tritonrl.objectives.value.functional import vtrace_advantage_estimate
from tritonrl.objectives.value.registry import ValueEstimators, register_value_estimator

from .base import ValueEstimatorBase
from .keys import AcceptedKeys, default_log_prob_key
from .options import EstimatorOptions
from .signals import Steps, per_step, zero_where_invalid
from .value_calls import held_out

__all__ = ["VTrace", "VTraceKeys"]

MIN_STD = 1e-5


@dataclass
class VTraceKeys(AcceptedKeys):
    """The keys of V-trace; of a composite action there is a list, with one key for each head.

    Examples:
        >>> VTraceKeys().action
        'action'
    """

    sample_log_prob: NestedKey | list[NestedKey] = field(default_factory=default_log_prob_key)
    action: NestedKey | list[NestedKey] = "action"


@register_value_estimator(ValueEstimators.VTrace, default_kwargs={"gamma": 0.99, "differentiable": True})
class VTrace(ValueEstimatorBase):
    r"""V-trace (Espeholt et al. 2018, IMPALA, https://arxiv.org/abs/1802.01561).

    For data of a policy ``mu`` that is not the policy ``pi`` to be evaluated. With value ``v``, value of the true next
    state ``w``, reward ``r``, done ``d``, terminated ``z``, per step ``t``::

        rho[t]   = min(pi(a[t]|s[t]) / mu(a[t]|s[t]), rho_thresh)
        c[t]     = min(pi(a[t]|s[t]) / mu(a[t]|s[t]), c_thresh)
        delta[t] = rho[t] (r[t] + gamma (1 - z[t]) w[t] - v[t])
        x[t]     = delta[t] + gamma (1 - d[t]) c[t] x[t+1],      x[T] = 0
        value_target[t] = v[t] + x[t]
        A[t]     = rho[t] (r[t] + gamma (1 - z[t]) u[t] - v[t])
        u[t]     = w[t] if d[t] or t = T-1 else value_target[t+1]

    The action ``a`` is the one stored in the rollout, and ``log mu`` its log-probability stored beside it. On data of
    ``pi`` itself, with caps of at least 1, the target is the TD(1) return (as far as ``w[t]`` is ``v[t+1]``).

    ``forward`` reads, besides what every estimator reads, the inputs of the actor, the action and its log-probability
    at the root (``set_keys(action=..., sample_log_prob=...)``; of a composite action a list of keys, by default those
    that the actor writes). It writes, all ``[*B, T, *F]``: the value at the root and under ``"next"``, the advantage and
    the value target; with ``shifted`` also ``"shifted_valid"`` ``[*B, T]``. Gradients (``differentiable``) reach root
    observations through ``v`` and through ``pi``, rewards, and tensor coefficients, but no parameter of either network.
    Stored actions and log-probabilities are data, free of gradient.

    Keyword Args:
        gamma: discount, a number or a 0-dim tensor. A number is kept in float64 and rounded to the precision of the
            data; a tensor stays what it is. (One per step, for data with ``steps_to_next_obs``, is computed from it.)
        actor_network: the policy ``pi``, a tensordict module with ``get_dist``. It is a submodule, unlike the value
            network.
        rho_thresh: cap of the weight of each error: 1 evaluates a policy between ``mu`` and ``pi``, infinity ``pi``
            itself at the price of variance. A number or a tensor, like ``gamma``.
        c_thresh: cap of the weight of the trace, that is of how far errors are carried back; likewise.
        average_adv: standardise the advantage (not the target) to mean 0 and standard deviation 1, the latter at least
            1e-5; over the valid steps where there is a ``"shifted_valid"`` mask, over each group with ``group_key``.
        time_dim: batch dimension that is time; by default the one named ``"time"``, else the last.
        **options: those of :class:`ValueEstimatorBase`, ``value_network`` (required) among them.

    Raises:
        TypeError: if the actor has no ``get_dist``.
        NotImplementedError: for a gamma with dimensions.
        ValueError: for a negative threshold.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
        >>> logits = TensorDictModule(torch.nn.Linear(3, 2), in_keys=["obs"], out_keys=["logits"])
        >>> draw = ProbabilisticTensorDictModule(
        ...     ["logits"], ["action"], distribution_class=torch.distributions.Categorical, return_log_prob=True
        ... )
        >>> actor = ProbabilisticTensorDictSequential(logits, draw)
        >>> critic = TensorDictModule(torch.nn.Linear(3, 1), in_keys=["obs"], out_keys=["state_value"])
        >>> done = torch.zeros(4, 8, 1, dtype=torch.bool)
        >>> step = {"obs": torch.randn(4, 8, 3), "reward": torch.ones(4, 8, 1), "done": done}
        >>> rollout = actor(TensorDict({"obs": torch.randn(4, 8, 3), "next": step}, batch_size=[4, 8]))
        >>> VTrace(gamma=0.99, actor_network=actor, value_network=critic)(rollout)["advantage"].shape
        torch.Size([4, 8, 1])
    """

    _AcceptedKeys = VTraceKeys
    default_keys = VTraceKeys
    keys_from_loss: ClassVar[tuple[str, ...]] = ("action", "sample_log_prob")
    _tensor_keys: VTraceKeys

    def __init__(
        self,
        *,
        gamma: float | Tensor,
        actor_network: TensorDictModuleBase,
        rho_thresh: float | Tensor = 1.0,
        c_thresh: float | Tensor = 1.0,
        average_adv: bool = False,
        time_dim: int | None = None,
        **options: Unpack[EstimatorOptions],
    ) -> None:
        _check_arguments(gamma, actor_network, rho_thresh, c_thresh)
        super().__init__(**options)
        self.actor_network = actor_network
        self._register_coefficient("gamma", gamma)
        self._register_coefficient("rho_thresh", rho_thresh)
        self._register_coefficient("c_thresh", c_thresh)
        self.average_adv = average_adv
        self.time_dim = time_dim
        self._tensor_keys = replace(self._tensor_keys, **_keys_of_heads(actor_network))

    @classmethod
    def for_loss(cls, loss: nn.Module, **hyperparams: Any) -> ValueEstimatorBase:
        """The estimator of a loss module, with its networks.

        The actor is ``hyperparams["actor_network"]`` if given, else the loss's ``actor_network``; of a functional loss a
        copy in which the loss's own parameters are installed, so that it follows the training. The rest as in the base.

        Raises:
            AttributeError: if there is no actor.
        """
        if "actor_network" not in hyperparams:
            stateful = getattr(loss, "get_stateful_net", None)
            hyperparams["actor_network"] = loss.actor_network if stateful is None else stateful("actor_network")
        return super().for_loss(loss, **hyperparams)

    def set_keys(self, **kwargs: NestedKey | list[NestedKey]) -> None:
        """Rename entries; of ``action`` and ``sample_log_prob`` a list names one entry for each head.

        Raises:
            KeyError, ValueError: see the base.
        """
        several = {name: _checked_list(name, kwargs[name]) for name in _lists(kwargs, self.keys_from_loss)}
        super().set_keys(**{name: key for name, key in kwargs.items() if name not in several})
        self._tensor_keys = replace(self._tensor_keys, **several)

    def _entries_read(self) -> list[NestedKey]:
        keys = self._tensor_keys
        ours = (*as_key_list(keys.sample_log_prob), *as_key_list(keys.action), *self.actor_network.in_keys)
        return list(dict.fromkeys([*super()._entries_read(), *(unravel_key(key) for key in ours)]))

    def _results(self, steps: Steps, tensordict: TensorDictBase) -> dict[NestedKey, Tensor]:
        log_pi, log_mu = self._log_probs(steps, tensordict)
        data = (steps.reward, steps.value, steps.next_value)
        advantage, target = vtrace_advantage_estimate(
            steps.gamma,
            log_pi,
            log_mu,
            steps.value,
            steps.next_value,
            steps.reward,
            steps.done,
            steps.terminated,
            rho_thresh=self._coefficient("rho_thresh", *data),
            c_thresh=self._coefficient("c_thresh", *data),
            time_dim=steps.time_dim,
        )
        advantage, target = (zero_where_invalid(result, steps.valid) for result in (advantage, target))
        if self.average_adv:
            advantage = self._standardised_advantage(advantage, MIN_STD, steps, tensordict)
        return {self.tensor_keys.advantage: advantage, self.tensor_keys.value_target: target}

    def _log_probs(self, steps: Steps, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """``log pi`` and ``log mu`` of the stored action, in the shape of the reward."""
        keys = self._tensor_keys
        names = [*as_key_list(keys.action), *as_key_list(keys.sample_log_prob)]
        stored = tensordict.select(*names, strict=False).detach()
        inputs = tensordict.select(*self.actor_network.in_keys, strict=False).copy()  # The actor writes into it.
        with held_out(self.actor_network, inputs):
            log_pi = log_prob_of_action(self.actor_network.get_dist(inputs), stored, keys.action)
        log_mu = behaviour_log_prob(stored, keys.sample_log_prob, log_pi)
        what = "log-probability of the action"
        return per_step(log_pi, what, steps.reward), per_step(log_mu, what, steps.reward)


def _check_arguments(gamma: Any, actor_network: Any, rho_thresh: Any, c_thresh: Any) -> None:
    if not hasattr(actor_network, "get_dist"):
        raise TypeError(
            "actor_network must be a probabilistic tensordict module (with get_dist), got "
            f"{type(actor_network).__name__}."
        )
    if isinstance(gamma, Tensor) and gamma.ndim:
        raise NotImplementedError(
            f"VTrace takes one gamma, a number or a 0-dim tensor, got shape {tuple(gamma.shape)}."
        )
    for name, value in (("rho_thresh", rho_thresh), ("c_thresh", c_thresh)):
        if isinstance(value, (int, float)) and not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}.")


def _keys_of_heads(actor_network: Any) -> dict[str, list[NestedKey]]:
    """What the actor calls action and log-probability, where it has several of them."""
    written = {
        "action": getattr(actor_network, "dist_sample_keys", None),
        "sample_log_prob": getattr(actor_network, "log_prob_keys", None),
    }
    return {name: [unravel_key(key) for key in keys] for name, keys in written.items() if keys and len(keys) > 1}


def _lists(kwargs: dict[str, Any], names: Iterable[str]) -> list[str]:
    return [name for name in names if isinstance(kwargs.get(name), list)]


def _checked_list(name: str, keys: Any) -> list[NestedKey]:
    if not keys or not all(isinstance(key, (str, tuple)) for key in keys):
        raise ValueError(f"The key {name!r} must be a string, a tuple of strings or a list of these, got {keys!r}.")
    return [unravel_key(key) for key in keys]
