"""A fresh action of the policy and its log-probability, reparameterised: the gradient runs through both."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from tensordict import NestedKey
from tensordict.nn import CompositeDistribution
from torch import Tensor
from torch.distributions import Distribution

from tritonrl.objectives.log_weight import as_key_list, sum_features

__all__ = ["PolicySample", "sample_policy"]


class PolicySample(NamedTuple):
    """One action for each observation.

    Attributes:
        action: the entries of the action by their keys, ``[*B, ...]`` each; several for a composite action.
        log_prob: log pi(a|o), ``[*B]``, summed over the heads and over the dimensions of the action.
    """

    action: dict[NestedKey, Tensor]
    log_prob: Tensor


def sample_policy(distribution: Distribution, action_key: NestedKey | list[NestedKey], batch_dims: int) -> PolicySample:
    """Draw an action by reparameterisation, one random draw for each head.

    Args:
        distribution: the policy on observations of batch size ``[*B]``. The heads of a ``CompositeDistribution`` are
            named by the keys of their actions.
        action_key: the key of the action, where the distribution is not composite.
        batch_dims: number of dimensions of ``[*B]``.

    Raises:
        NotImplementedError: if the distribution cannot be reparameterised: without that the actor has no gradient.
        ValueError: if there are several action keys and the distribution is not composite.

    Examples:
        >>> from torch.distributions import Normal
        >>> sample = sample_policy(Normal(torch.zeros(5, 2), torch.ones(5, 2)), "action", 1)
        >>> sample.action["action"].shape, sample.log_prob.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """
    if isinstance(distribution, CompositeDistribution):
        heads = dict(distribution.dists.items())
    else:
        keys = as_key_list(action_key)
        if len(keys) != 1:
            raise ValueError(f"the actions {keys} need a CompositeDistribution, got {type(distribution).__name__}")
        heads = {keys[0]: distribution}
    for head in heads.values():
        if not head.has_rsample:
            raise NotImplementedError(
                f"the policy must be differentiable in its sample (rsample), which {type(head).__name__} is not; for "
                "discrete actions there is DiscreteSACLoss"
            )
    drawn = {key: _draw(head) for key, head in heads.items()}
    log_probs = [sum_features(log_prob, batch_dims) for _, log_prob in drawn.values()]
    return PolicySample({key: action for key, (action, _) in drawn.items()}, reduce(torch.add, log_probs))


def _draw(head: Distribution) -> tuple[Tensor, Tensor]:
    """A sample and its log-probability; together, where the distribution can, which is exact for a saturated sample."""
    if hasattr(head, "rsample_and_log_prob"):
        return head.rsample_and_log_prob()
    action = head.rsample()
    return action, head.log_prob(action)
