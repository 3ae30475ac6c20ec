"""The Kullback-Leibler divergence between two policies."""

from __future__ import annotations

from functools import reduce

import torch
from tensordict.nn import CompositeDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, TransformedDistribution, kl_divergence
from torch.distributions import kl as torch_kl

from tritonrl.objectives.log_weight import sum_features


def kl_between(p: Distribution, q: Distribution, samples: int = 1) -> Tensor:
    r"""KL divergence of q from p, in closed form where torch has one for the two classes, else by Monte Carlo.

    .. math::
        \mathrm{KL}(p \,\|\, q) \approx \frac{1}{n} \sum_{i=1}^{n} \log p(a_i) - \log q(a_i), \qquad a_i \sim p

    The heads of a composite policy are independent given the observation: their divergences add up. A common
    transformation of both (the tanh of a squashed normal) leaves the divergence as it is.

    Args:
        p: where samples are drawn from (the old policy); no gradient flows into the samples.
        q: the other policy; composite if p is.
        samples: n, used where there is no closed form.

    Returns:
        Tensor of the shape of ``p.log_prob``; ``[*B]`` for composite policies.

    Example:
        >>> from torch.distributions import Normal
        >>> kl_between(Normal(torch.zeros(2), 1.0), Normal(torch.ones(2), 1.0))
        tensor([0.5000, 0.5000])
    """
    if isinstance(p, CompositeDistribution) and isinstance(q, CompositeDistribution):
        batch_dims = len(p.batch_shape)
        heads = [sum_features(kl_between(head, q.dists[name], samples), batch_dims) for name, head in p.dists.items()]
        return reduce(torch.add, heads)
    closed_form = _closed_form(p, q)
    if closed_form is not None:
        return closed_form
    with torch.no_grad():
        action = p.sample((samples,))
    return (p.log_prob(action) - q.log_prob(action)).mean(0)


def _closed_form(p: Distribution, q: Distribution) -> Tensor | None:
    """The divergence in closed form, or None.

    The two wrappers are unwrapped here rather than by torch, whose look-up of a formula cannot be compiled.
    """
    if isinstance(p, Independent) and isinstance(q, Independent):
        if p.reinterpreted_batch_ndims != q.reinterpreted_batch_ndims:
            return None
        base = _closed_form(p.base_dist, q.base_dist)
        dims = tuple(range(-p.reinterpreted_batch_ndims, 0))
        return base.sum(dims) if base is not None and dims else base
    kind = _kind_of_formula(type(p), type(q))
    if kind == "same transformation":
        assert isinstance(p, TransformedDistribution) and isinstance(q, TransformedDistribution)
        same = p.transforms == q.transforms and p.event_shape == q.event_shape
        return _closed_form(p.base_dist, q.base_dist) if same else None
    return kl_divergence(p, q) if kind == "direct" else None


@torch.compiler.assume_constant_result
def _kind_of_formula(p: type[Distribution], q: type[Distribution]) -> str:
    """How the divergence of two classes is had: ``direct``, ``same transformation`` (of two bases) or ``none``.

    It depends on classes only, so it is a constant of a compiled graph. A direct formula is left in the memory where
    ``kl_divergence`` looks first, since its search (``_dispatch_kl``) is what cannot be compiled.
    """
    formula = torch_kl._dispatch_kl(p, q)
    if formula is NotImplemented:
        return "none"
    if formula is torch_kl._dispatch_kl(TransformedDistribution, TransformedDistribution):
        return "same transformation"
    torch_kl._KL_MEMOIZE[p, q] = formula
    return "direct"
