"""The logarithm of the importance weight of a stored action, and the log-probabilities that it is made of.

A composite action (several heads, each with its own distribution) has one log-probability: the sum over its heads, the
heads being independent given the observation.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import CompositeDistribution
from torch import Tensor
from torch.distributions import Distribution


class LogWeight(NamedTuple):
    """Where the policy stands from the two policies that matter, for each stored action.

    Attributes:
        ratio: log pi(a|o) - log pi_prox(a|o), differentiable: how far the policy has moved from the proximal policy,
            which is what a trust region limits. Without a proximal policy of its own (``delay_actor=False``) the
            behaviour policy takes its place.
        correction: log pi_prox(a|o) - log pi_behaviour(a|o), free of gradient, or None where it is zero: the share of
            importance sampling that is owed to stale data (Hilton et al. 2021, "Batch size-invariance for policy
            optimization").
    """

    ratio: Tensor
    correction: Tensor | None

    @property
    def total(self) -> Tensor:
        """log pi(a|o) - log pi_behaviour(a|o), the capped correction included."""
        return self.ratio if self.correction is None else self.ratio + self.correction

    def corrected(self, log_ratio: Tensor) -> Tensor:
        """The log-weight of the surrogate for another (clipped) ratio: the correction is owed all the same."""
        return log_ratio if self.correction is None else log_ratio + self.correction


def cap_correction(ratio: Tensor, correction: Tensor | None, max_importance_ratio: Tensor | None) -> Tensor | None:
    r"""Limit the importance weight to M through the part of it that carries no gradient.

    .. math:: c \leftarrow \min(c, \log M - \mathrm{sg}(\ell))

    so that the weight :math:`\exp(\ell + c)` is at most M while the gradient still runs through :math:`\ell` (truncated
    importance sampling: Ionides 2008; Espeholt et al. 2018).

    Args:
        ratio: :math:`\ell`, the differentiable part, ``[*B, 1]``.
        correction: c, same shape, or None for zero.
        max_importance_ratio: M > 0, 0-dim, or None for no limit.

    Returns:
        The new correction; None only if there is neither a correction nor a limit.
    """
    if max_importance_ratio is None:
        return correction
    ceiling = max_importance_ratio.log() - ratio.detach()
    return ceiling.clamp_max(0.0) if correction is None else torch.minimum(correction, ceiling)


def as_key_list(key: NestedKey | list[NestedKey]) -> list[NestedKey]:
    """One key or several as a list. A tuple is one nested key, a list is several."""
    return list(key) if isinstance(key, list) else [key]


def sum_features(log_prob: Tensor, batch_dims: int) -> Tensor:
    """Sum over everything behind the batch dimensions: ``[*B, *F]`` to ``[*B]``."""
    return log_prob.flatten(batch_dims).sum(-1) if log_prob.ndim > batch_dims else log_prob


def stored_entry(tensordict: TensorDictBase, key: NestedKey, name: str) -> Tensor:
    """An entry that the behaviour policy wrote: there, and free of gradient.

    Raises:
        KeyError: if it is missing.
        RuntimeError: if it requires grad. It would be a constant in no sense of the word, and the policy gradient
            wrong.
    """
    entry = tensordict.get(key, None)
    if entry is None:
        raise KeyError(
            f"the {name} {key!r} was not found in the input tensordict (set_keys({name}=...) names another entry)"
        )
    if entry.requires_grad:
        raise RuntimeError(
            f"the {name} {key!r} stored in the tensordict requires grad: detach it before calling the loss"
        )
    return entry


def log_prob_of_action(
    distribution: Distribution, tensordict: TensorDictBase, action_key: NestedKey | list[NestedKey]
) -> Tensor:
    """Log-probability of the stored action under a distribution: ``[*B]``, summed over the heads of a composite one.

    A distribution whose log-probability keeps dimensions of the action (``Normal`` without ``Independent``, a token
    model) gives ``[*B, *token]``.

    Raises:
        KeyError: if the action is missing.
        RuntimeError: if the action requires grad.
        ValueError: if there are several actions and the distribution is not composite.
    """
    if isinstance(distribution, CompositeDistribution):
        return reduce(
            torch.add,
            [
                sum_features(head.log_prob(stored_entry(tensordict, name, "action")), tensordict.batch_dims)
                for name, head in distribution.dists.items()
            ],
        )
    keys = as_key_list(action_key)
    if len(keys) != 1:
        raise ValueError(f"the actions {keys} need a CompositeDistribution, got {type(distribution).__name__}")
    return distribution.log_prob(stored_entry(tensordict, keys[0], "action"))


def behaviour_log_prob(
    tensordict: TensorDictBase, log_prob_key: NestedKey | list[NestedKey], log_prob: Tensor
) -> Tensor:
    """The log-probability stored with the action, in the shape of the current one; summed if there is one for each
    head.

    Args:
        tensordict: the data.
        log_prob_key: its key, or the list of keys of the heads.
        log_prob: the current log-probability of the same action, for the shape.

    Raises:
        KeyError: if it is missing.
        RuntimeError: if it requires grad.
        ValueError: if its shape is not the one of the current log-probability: the difference would be an outer
            product.
    """
    keys = as_key_list(log_prob_key)
    stored = [stored_entry(tensordict, key, "sample_log_prob") for key in keys]
    total = stored[0]
    if len(stored) > 1:
        total = reduce(torch.add, [sum_features(entry, tensordict.batch_dims) for entry in stored])
    if total.shape == (*log_prob.shape, 1):
        return total.squeeze(-1)
    if total.shape != log_prob.shape:
        raise ValueError(
            f"the stored log-probability {log_prob_key!r} has shape {tuple(total.shape)} but the policy gives the "
            "stored "
            f"action a log-probability of shape {tuple(log_prob.shape)}"
        )
    return total
