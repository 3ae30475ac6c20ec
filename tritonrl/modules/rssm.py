"""The recurrent state-space model: a latent state with a deterministic part (belief) and a stochastic one (state).

Hafner et al. 2019, "Learning latent dynamics for planning from pixels" (https://arxiv.org/abs/1811.04551), as used by
Dreamer (https://arxiv.org/abs/1912.01603).
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn

__all__ = ["RSSMPosterior", "RSSMPrior", "RSSMRollout"]


class RSSMPrior(nn.Module):
    r"""Predicts the next latent state without seeing the observation.

    .. math:: b_{t+1} = \mathrm{GRU}(f(s_t, a_t), b_t), \qquad s_{t+1} \sim \mathcal N(\mu(b_{t+1}), \sigma(b_{t+1}))

    Args:
        action_spec: of the action, whose last dimension is its size; or give ``action_dim``.
        hidden_dim: width of the hidden layers, and input size of the recurrent cell.
        rnn_hidden_dim: size of the belief b.
        state_dim: size of the state s.
        scale_lb: lower bound of the standard deviation.
        action_dim: size of the action.
        device: of the parameters.

    Raises:
        ValueError: if neither ``action_spec`` nor ``action_dim`` is given.

    Example:
        >>> prior = RSSMPrior(action_dim=2, hidden_dim=16, rnn_hidden_dim=8, state_dim=3)
        >>> mean, std, state, belief = prior(torch.zeros(5, 3), torch.zeros(5, 8), torch.zeros(5, 2))
        >>> mean.shape, state.shape, belief.shape
        (torch.Size([5, 3]), torch.Size([5, 3]), torch.Size([5, 8]))
    """

    def __init__(
        self,
        action_spec: Any = None,
        hidden_dim: int = 200,
        rnn_hidden_dim: int = 200,
        state_dim: int = 30,
        scale_lb: float = 0.1,
        action_dim: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if action_dim is None:
            if action_spec is None:
                raise ValueError("action_spec or action_dim must be given: the size of the action is unknown")
            action_dim = action_spec.shape[-1]
        self.action_state_projector = nn.Sequential(nn.Linear(action_dim + state_dim, hidden_dim), nn.ELU())
        self.rnn = nn.GRUCell(hidden_dim, rnn_hidden_dim)
        self.rnn_to_prior_projector = _gaussian_head(nn.Linear(rnn_hidden_dim, hidden_dim), state_dim, scale_lb)
        if device is not None:
            self.to(device)

    def forward(
        self, state: Tensor, belief: Tensor, action: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, standard deviation and sample of the next state, and the next belief.

        Args:
            state: ``[*B, S]``.
            belief: ``[*B, H]``.
            action: ``[*B, A]``.
            noise: standard normal, ``[*B, S]``; drawn here by default.

        Returns:
            prior mean, prior standard deviation, next state (``[*B, S]`` each), next belief ``[*B, H]``.
        """
        hidden = self.action_state_projector(torch.cat([state, action], -1))
        batch = belief.shape[:-1]
        # The cell takes one batch dimension.
        belief = self.rnn(hidden.reshape(-1, hidden.shape[-1]), belief.reshape(-1, belief.shape[-1]))
        belief = belief.reshape(*batch, -1)
        mean, std = self.rnn_to_prior_projector(belief)
        return mean, std, _sample(mean, std, noise), belief


class RSSMPosterior(nn.Module):
    r"""Corrects the predicted latent state by the observation.

    .. math:: s_t \sim \mathcal N(\mu(b_t, e_t), \sigma(b_t, e_t)), \qquad e_t = \mathrm{encoder}(o_t)

    Args:
        hidden_dim: width of the hidden layer.
        state_dim: size of the state.
        scale_lb: lower bound of the standard deviation.
        rnn_hidden_dim: size of the belief.
        obs_embed_dim: size of the encoded observation. If it or ``rnn_hidden_dim`` is left out, sizes are inferred at
            the first call.
        device: of the parameters.

    Example:
        >>> posterior = RSSMPosterior(hidden_dim=16, state_dim=3, rnn_hidden_dim=8, obs_embed_dim=4)
        >>> mean, std, state = posterior(torch.zeros(5, 8), torch.zeros(5, 4))
        >>> state.shape, bool((std > 0.1).all())
        (torch.Size([5, 3]), True)
    """

    def __init__(
        self,
        hidden_dim: int = 200,
        state_dim: int = 30,
        scale_lb: float = 0.1,
        rnn_hidden_dim: int | None = None,
        obs_embed_dim: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if rnn_hidden_dim is None or obs_embed_dim is None:
            first: nn.Linear = nn.LazyLinear(hidden_dim)
        else:
            first = nn.Linear(rnn_hidden_dim + obs_embed_dim, hidden_dim)
        self.obs_rnn_to_post_projector = _gaussian_head(first, state_dim, scale_lb)
        if device is not None:
            self.to(device)

    def forward(
        self, belief: Tensor, obs_embedding: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, standard deviation and sample of the state, ``[*B, S]`` each.

        Args:
            belief: ``[*B, H]``.
            obs_embedding: encoded observation, ``[*B, E]``.
            noise: standard normal, ``[*B, S]``; drawn here by default.
        """
        mean, std = self.obs_rnn_to_post_projector(torch.cat([belief, obs_embedding], -1))
        return mean, std, _sample(mean, std, noise)


class RSSMRollout(TensorDictModuleBase):
    """Runs prior and posterior along a sequence of actions and observations.

    The state and the belief of the first step are read; those of each further step are what the step before arrived at.
    The input is not written to.

    Args:
        rssm_prior: reads state, belief and action, writes the prior and the next belief.
        rssm_posterior: reads the next belief and the encoded next observation, writes the posterior and the next state.
        is_init_key: entry ``[*B, T, 1]`` that is True at the first step of a trajectory, whose own state and belief are
            then read; by default none is looked for, and a sequence is taken to be one trajectory.

    Example:
        >>> from tensordict import TensorDict
        >>> prior = TensorDictModule(
        ...     RSSMPrior(action_dim=2, hidden_dim=16, rnn_hidden_dim=8, state_dim=3),
        ...     in_keys=["state", "belief", "action"],
        ...     out_keys=[("next", "prior_mean"), ("next", "prior_std"), "_", ("next", "belief")],
        ... )
        >>> posterior = TensorDictModule(
        ...     RSSMPosterior(hidden_dim=16, state_dim=3, rnn_hidden_dim=8, obs_embed_dim=4),
        ...     in_keys=[("next", "belief"), ("next", "encoded_latents")],
        ...     out_keys=[("next", "posterior_mean"), ("next", "posterior_std"), ("next", "state")],
        ... )
        >>> data = {"state": torch.zeros(5, 7, 3), "belief": torch.zeros(5, 7, 8), "action": torch.zeros(5, 7, 2)}
        >>> data["next"] = {"encoded_latents": torch.zeros(5, 7, 4)}
        >>> out = RSSMRollout(prior, posterior)(TensorDict(data, [5, 7]))
        >>> out["next", "prior_mean"].shape
        torch.Size([5, 7, 3])
        >>> torch.equal(out["state"][:, 1:], out["next", "state"][:, :-1])
        True
    """

    def __init__(
        self, rssm_prior: TensorDictModule, rssm_posterior: TensorDictModule, is_init_key: NestedKey | None = None
    ) -> None:
        super().__init__()
        self.rssm_prior = rssm_prior
        self.rssm_posterior = rssm_posterior
        self.is_init_key = is_init_key
        prior_writes = {unravel_key(key) for key in rssm_prior.out_keys}
        read_later = [key for key in rssm_posterior.in_keys if unravel_key(key) not in prior_writes]
        self.in_keys = list(dict.fromkeys([*rssm_prior.in_keys, *read_later]))
        if is_init_key is not None:
            self.in_keys.append(is_init_key)
        self.out_keys = [*rssm_prior.out_keys, *rssm_posterior.out_keys]
        written = {unravel_key(key) for key in self.out_keys}
        self._carried = [key for key in rssm_prior.in_keys if unravel_key(("next", key)) in written]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The sequence with priors, posteriors, states and beliefs of all steps; batch size ``[*B, T]`` as the input."""
        time = tensordict.ndim - 1
        steps: list[TensorDictBase] = []
        for step in tensordict.unbind(time):
            step = step.copy()
            if steps:
                self._carry(steps[-1], step)
            self.rssm_prior(step)
            self.rssm_posterior(step)
            steps.append(step)
        return TensorDict.stack(steps, time)

    def _carry(self, before: TensorDictBase, step: TensorDictBase) -> None:
        """Set what the step before arrived at, but where a trajectory begins."""
        for key in self._carried:
            arrived = before.get(unravel_key(("next", key)))
            if self.is_init_key is not None:
                arrived = torch.where(step.get(self.is_init_key), step.get(key), arrived)
            step.set(key, arrived)


def _gaussian_head(first: nn.Linear, state_dim: int, scale_lb: float) -> nn.Sequential:
    """One hidden layer, then mean and standard deviation."""
    return nn.Sequential(
        first,
        nn.ELU(),
        nn.Linear(first.out_features, 2 * state_dim),
        NormalParamExtractor(scale_mapping="softplus", scale_lb=scale_lb),
    )


def _sample(mean: Tensor, std: Tensor, noise: Tensor | None) -> Tensor:
    return mean + std * (torch.randn_like(std) if noise is None else noise)
