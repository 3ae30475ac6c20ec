"""The entropy of a policy and the bonus made of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import CompositeDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent

from tritonrl.objectives.log_weight import sum_features


def has_closed_form_entropy(distribution: Distribution) -> bool:
    """Whether the class of the distribution implements ``entropy``.

    Decided by the class alone, never by trying it or by the numbers it returns: the choice is the same on every call,
    costs no device synchronisation and leaves no break in a compiled graph.

    Example:
        >>> from torch.distributions import Normal, TransformedDistribution, TanhTransform
        >>> has_closed_form_entropy(Normal(0.0, 1.0))
        True
        >>> has_closed_form_entropy(TransformedDistribution(Normal(0.0, 1.0), [TanhTransform()]))
        False
    """
    if isinstance(distribution, Independent):
        return has_closed_form_entropy(distribution.base_dist)
    return type(distribution).entropy is not Distribution.entropy


def entropy_of(distribution: Distribution, samples: int = 1) -> Tensor:
    r"""Entropy in closed form, else by Monte Carlo.

    .. math:: H \approx -\frac{1}{n} \sum_{i=1}^{n} \log \pi(a_i), \qquad a_i \sim \pi

    with gradient in both cases. Samples that cannot be reparameterised carry none, and the mean of
    :math:`-\nabla\log\pi(a_i)` is zero whatever the policy, so there the gradient is that of the score function,
    :math:`-\log\pi(a_i)\,\nabla\log\pi(a_i)` (Williams 1992).

    Args:
        distribution: one that is not composite.
        samples: n, used where there is no closed form.

    Returns:
        Tensor of the shape of ``distribution.log_prob``.
    """
    if has_closed_form_entropy(distribution):
        return distribution.entropy()
    if distribution.has_rsample:
        return -distribution.log_prob(distribution.rsample((samples,))).mean(0)
    log_prob = distribution.log_prob(distribution.sample((samples,)))
    value = log_prob.detach()
    return -(value + value * (log_prob - value)).mean(0)


def head_entropies(distribution: CompositeDistribution, batch_size: torch.Size, samples: int = 1) -> TensorDict:
    """The entropy of each head of a composite distribution, under the name of its action plus ``_entropy``."""
    heads = {entropy_key(name): entropy_of(head, samples) for name, head in distribution.dists.items()}
    return TensorDict(heads, batch_size)


def entropy_key(head: NestedKey) -> NestedKey:
    """``("agent", "move")`` to ``("agent", "move_entropy")``."""
    return head + "_entropy" if isinstance(head, str) else (*head[:-1], head[-1] + "_entropy")


def sum_heads(entropies: TensorDictBase) -> Tensor:
    """Entropy of the composite action, ``[*B]``: the sum over its heads and over their features."""
    return reduce(torch.add, [sum_features(entropy, entropies.batch_dims) for entropy in entropies.values(True, True)])


def weigh_heads(entropies: TensorDictBase, coefficients: Mapping[NestedKey, Tensor]) -> Tensor:
    """Sum over the heads of coefficient times entropy, ``[*B]``; the features of a head are summed, as for one
    coefficient.

    Args:
        entropies: the entropy of each head, from :func:`head_entropies`.
        coefficients: by the name of the head's action (``"move"``) or of its entropy (``"move_entropy"``).

    Raises:
        KeyError: if a head has no coefficient.
    """
    weighted = [
        _coefficient_of(key, coefficients) * sum_features(entropy, entropies.batch_dims)
        for key, entropy in entropies.items(True, True)
    ]
    return reduce(torch.add, weighted)


def _coefficient_of(key: NestedKey, coefficients: Mapping[NestedKey, Tensor]) -> Tensor:
    """The coefficient of one head, found under the key of its entropy or of its action."""
    key = unravel_key(key)
    leaf = (key if isinstance(key, str) else key[-1]).removesuffix("_entropy")
    head = leaf if isinstance(key, str) else (*key[:-1], leaf)
    for candidate in (key, head):
        if candidate in coefficients:
            return coefficients[candidate]
    raise KeyError(f"entropy_coeff has no coefficient for the head {head!r} (or {key!r}); it has {list(coefficients)}")
