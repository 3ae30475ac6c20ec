"""Policies on tensordicts: one that returns its action, and one that draws it from a distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import (
    CompositeDistribution,
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
)
from tensordict.nn.distributions import Delta
from torch import nn

__all__ = ["Actor", "ProbabilisticActor"]


class Actor(TensorDictModule):
    """A deterministic policy: observation to action.

    Args:
        module: the network.
        in_keys: entries that it reads; by default ``["observation"]``.
        out_keys: entries that it writes, the action first; by default ``["action"]``.
        spec: of the action; kept as ``spec`` for those who ask for it, and not enforced.

    Example:
        >>> from tensordict import TensorDict
        >>> actor = Actor(nn.Linear(4, 2))
        >>> actor(TensorDict({"observation": torch.zeros(3, 4)}, [3]))["action"].shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        module: nn.Module | Callable[..., Any],
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
        *,
        spec: Any = None,
    ) -> None:
        super().__init__(
            module,
            in_keys=["observation"] if in_keys is None else in_keys,
            out_keys=["action"] if out_keys is None else out_keys,
        )
        self.spec = spec

    def get_dist(self, tensordict: TensorDictBase) -> Delta:
        """The policy as a distribution: all mass on the action. Writes the action into the tensordict."""
        return Delta(self(tensordict)[self.out_keys[0]])


class ProbabilisticActor(ProbabilisticTensorDictSequential):
    """A stochastic policy: observation to the parameters of a distribution, from which the action is drawn.

    What is drawn follows ``tensordict.nn.set_interaction_type``; outside of it, ``default_interaction_type``.

    Args:
        module: writes the parameters of the distribution.
        in_keys: entries that hold the parameters; their names are the keywords of the distribution. A dictionary of
            keyword to entry where the names differ.
        out_keys: entry of the action. By default ``["action"]``, for a composite distribution the names of its heads.
        spec: of the action; kept as ``spec`` for those who ask for it (``target_entropy="auto"``), and not enforced.
        default_interaction_type: what to draw: DETERMINISTIC, RANDOM, MEAN, MEDIAN or MODE.
        distribution_class: a distribution, or a function that makes one; by default all mass on one point.
        distribution_kwargs: its further arguments.
        return_log_prob: write the log-probability of the action as well.
        log_prob_key: its entry; by default ``"action_log_prob"``.
        log_prob_keys: its entries, for a composite distribution.
        cache_dist: keep the distribution object and give it new parameters on each call.
        n_empirical_estimate: number of samples behind the mean of a distribution that has none in closed form.
        num_samples: how many actions to draw; by default one, without a dimension of its own.
        generator: source of randomness, by default torch's own.

    Raises:
        TypeError: if ``module`` does not read and write tensordicts.

    Example:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import NormalParamExtractor
        >>> from tritonrl.modules import TanhNormal
        >>> net = nn.Sequential(nn.Linear(4, 2 * 2), NormalParamExtractor())
        >>> policy = ProbabilisticActor(
        ...     TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        ...     in_keys=["loc", "scale"],
        ...     distribution_class=TanhNormal,
        ...     return_log_prob=True,
        ... )
        >>> data = policy(TensorDict({"observation": torch.zeros(3, 4)}, [3]))
        >>> data["action"].shape, data["action_log_prob"].shape
        (torch.Size([3, 2]), torch.Size([3]))
    """

    def __init__(
        self,
        module: TensorDictModuleBase,
        in_keys: NestedKey | Sequence[NestedKey] | dict[str, NestedKey],
        out_keys: Sequence[NestedKey] | None = None,
        *,
        spec: Any = None,
        default_interaction_type: InteractionType = InteractionType.DETERMINISTIC,
        distribution_class: Callable[..., torch.distributions.Distribution] = Delta,
        distribution_kwargs: dict[str, Any] | None = None,
        return_log_prob: bool = False,
        log_prob_key: NestedKey | None = None,
        log_prob_keys: list[NestedKey] | None = None,
        cache_dist: bool = False,
        n_empirical_estimate: int = 1000,
        num_samples: int | torch.Size | None = None,
        generator: torch.Generator | int | NestedKey | None = None,
    ) -> None:
        if not isinstance(module, TensorDictModuleBase):
            raise TypeError(
                "module must read and write tensordicts (wrap a network in tensordict.nn.TensorDictModule), got "
                f"{type(module).__name__}"
            )
        if out_keys is None and distribution_class is not CompositeDistribution:
            out_keys = ["action"]
        draw = ProbabilisticTensorDictModule(
            in_keys,
            out_keys,
            default_interaction_type=default_interaction_type,
            distribution_class=distribution_class,
            distribution_kwargs=distribution_kwargs,
            return_log_prob=return_log_prob,
            log_prob_key=log_prob_key,
            log_prob_keys=log_prob_keys,
            cache_dist=cache_dist,
            n_empirical_estimate=n_empirical_estimate,
            num_samples=num_samples,
            generator=generator,
        )
        super().__init__(module, draw)
        self.spec = spec
