"""The world model of Dreamer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from torch import Tensor, nn

from tritonrl.objectives.common import LossModule
from tritonrl.objectives.critic_loss import required_entry
from tritonrl.objectives.distance_loss import distance_loss
from tritonrl.objectives.validity import hide_invalid
from tritonrl.objectives.value.estimators.keys import next_key

__all__ = ["DreamerModelLoss"]


class DreamerModelLoss(LossModule):
    r"""World model of Dreamer, Hafner et al. 2019, https://arxiv.org/abs/1912.01603.

    .. math::
        L_{kl} &= \lambda_{kl}\, \mathbb{E}\big[\max(\mathrm{KL}(q \| p),\, f)\big] \\
        L_{reco} &= \lambda_{reco}\, \mathbb{E}\Big[\textstyle\sum_i d(x_i, \hat x_i)\Big] \\
        L_{reward} &= \lambda_{reward}\, \mathbb{E}\big[d(r, \hat r)\big]

    with q the posterior over the latent state, which sees the observation x, p the prior, which does not, both diagonal
    Gaussians, and f the free nats below which the divergence is not pushed. Sums run over the dimensions of one step,
    means over the steps.

    The data, of batch size ``[*B, T]``, hold what the world model reads, and ``("next", reward | pixels)``. The world
    model is run on a shallow copy, in which the reward has been renamed to ``("next", true_reward)``, and has to write
    ``("next", prior_mean | prior_std | posterior_mean | posterior_std)``, ``[*B, T, S]``, ``("next", reco_pixels)`` in
    the shape of the pixels (``[*B, T, C, H, W]``, or any other observation), and its reward as ``("next", reward)``.
    The data are not written to. Steps that a validity mask (``loss_mask_key``) excludes do not count.

    Args:
        world_model: a tensordict module as described. (Not functional: its parameters are ``world_model.*``.)

    Keyword Args:
        lambda_kl, lambda_reco, lambda_reward: weights of the terms. Assign to them to schedule them.
        reco_loss, reward_loss: the distances d, ``"l2"`` (default), ``"l1"`` or ``"smooth_l1"``.
        free_nats: f, in nats, as summed over the latent dimensions.
        delayed_clamp: bound the mean divergence from below rather than each step's.
        global_average: means over the dimensions of a step in the place of sums.

    Raises:
        ValueError: for a negative number.

    Example:
        >>> import torch
        >>> from tensordict.nn import TensorDictModule, TensorDictSequential
        >>> latent = ["prior_mean", "prior_std", "posterior_mean", "posterior_std"]
        >>> class Latent(nn.Linear):
        ...     def forward(self, x):
        ...         posterior = super().forward(x)
        ...         ones = torch.ones_like(posterior)
        ...         return 0 * ones, ones, posterior, ones
        >>> encoder = TensorDictModule(Latent(5, 2), [("next", "pixels")], [("next", key) for key in latent])
        >>> decoder = TensorDictModule(nn.Linear(2, 5), [("next", "posterior_mean")], [("next", "reco_pixels")])
        >>> reward = TensorDictModule(nn.Linear(2, 1), [("next", "posterior_mean")], [("next", "reward")])
        >>> loss = DreamerModelLoss(TensorDictSequential(TensorDictSequential(encoder, decoder), reward))
        >>> step = {"pixels": torch.randn(3, 7, 5), "reward": torch.randn(3, 7, 1)}
        >>> losses, imagined = loss(TensorDict({"next": step}, [3, 7]))
        >>> loss.total(losses).shape
        torch.Size([1])
        >>> loss.total(losses).backward()
    """

    @dataclass
    class _AcceptedKeys:
        """Entries by role, all of them under ``"next"``."""

        reward: NestedKey = "reward"
        true_reward: NestedKey = "true_reward"
        prior_mean: NestedKey = "prior_mean"
        prior_std: NestedKey = "prior_std"
        posterior_mean: NestedKey = "posterior_mean"
        posterior_std: NestedKey = "posterior_std"
        pixels: NestedKey = "pixels"
        reco_pixels: NestedKey = "reco_pixels"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    _schedulable_buffers = frozenset({"lambda_kl", "lambda_reco", "lambda_reward", "free_nats"})

    world_model: nn.Module
    lambda_kl: Tensor
    lambda_reco: Tensor
    lambda_reward: Tensor
    free_nats: Tensor

    def __init__(
        self,
        world_model: nn.Module,
        *,
        lambda_kl: float = 1.0,
        lambda_reco: float = 1.0,
        lambda_reward: float = 1.0,
        reco_loss: str | None = None,
        reward_loss: str | None = None,
        free_nats: float = 3,
        delayed_clamp: bool = False,
        global_average: bool = False,
    ) -> None:
        coefficients = {"lambda_kl": lambda_kl, "lambda_reco": lambda_reco, "lambda_reward": lambda_reward}
        coefficients["free_nats"] = free_nats
        for name, value in coefficients.items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        super().__init__()
        self.world_model = world_model
        self.reco_loss = "l2" if reco_loss is None else reco_loss
        self.reward_loss = "l2" if reward_loss is None else reward_loss
        self.delayed_clamp = delayed_clamp
        self.global_average = global_average
        self._register_unsaved_coefficients(**coefficients)
        self.out_keys = ["loss_model_kl", "loss_model_reco", "loss_model_reward"]

    @property
    def decoder(self) -> Any:
        """The last module of the first part of the world model, where it is built like that."""
        return self._part(lambda model: model[0][-1])

    @property
    def reward_model(self) -> Any:
        """The second part of the world model, where it is built like that."""
        return self._part(lambda model: model[1])

    def _part(self, pick: Any) -> Any:
        try:
            return pick(self.world_model)
        except (TypeError, IndexError, NotImplementedError) as error:
            raise AttributeError(f"{type(self.world_model).__name__} is no sequence of a model and a reward") from error

    def _iter_in_keys(self) -> Iterator[NestedKey]:
        own = next_key(self.tensor_keys.true_reward)
        yield from (key for key in getattr(self.world_model, "in_keys", ()) if unravel_key(key) != unravel_key(own))
        yield next_key(self.tensor_keys.reward)
        yield next_key(self.tensor_keys.pixels)

    def forward(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """The terms of the loss, and what the world model made of the data.

        Args:
            tensordict: sequences, batch size ``[*B, T]``; not written to.

        Returns:
            A tensordict with ``loss_model_kl``, ``loss_model_reco`` and ``loss_model_reward``, ``[1]`` each, and the
            copy of the data with everything that the world model wrote, detached: the states from which the actor may
            start to imagine are in it.

        Raises:
            KeyError: if an entry is missing, in the data or in what the world model writes.
            RuntimeError: if prediction and truth differ in shape.
            NotImplementedError: for an unknown distance.
        """
        keys = self.tensor_keys
        data = tensordict.copy()
        hide_invalid(data, self.in_keys, self._loss_mask_keys())
        required_entry(data, next_key(keys.reward), "the reward model is trained on it")
        data = self.world_model(data.rename_key_(next_key(keys.reward), next_key(keys.true_reward)))
        losses = TensorDict(
            {
                "loss_model_kl": self.lambda_kl * self._kl_term(data).unsqueeze(-1),
                "loss_model_reco": self.lambda_reco * self._reconstruction_term(data).unsqueeze(-1),
                "loss_model_reward": self.lambda_reward * self._reward_term(data).unsqueeze(-1),
            }
        )
        self._clear_weakrefs(tensordict, data, losses)
        return losses, data.data

    def kl_loss(
        self,
        prior_mean: Tensor,
        prior_std: Tensor,
        posterior_mean: Tensor,
        posterior_std: Tensor,
    ) -> Tensor:
        r"""The divergence of the prior from the posterior, with the free nats, 0-dim and without its weight.

        .. math::
            \mathrm{KL}(q \| p) = \log\frac{\sigma_p}{\sigma_q}
            + \frac{\sigma_q^2 + (\mu_p - \mu_q)^2}{2 \sigma_p^2} - \frac{1}{2}
        """
        return self._with_free_nats(self._divergence(prior_mean, prior_std, posterior_mean, posterior_std))

    # -- terms ----------------------------------------------------------------------------------------------------

    def _written(self, data: TensorDictBase, key: NestedKey) -> Tensor:
        return required_entry(data, next_key(key), "the world model is to write it (set_keys names another entry)")

    def _kl_term(self, data: TensorDictBase) -> Tensor:
        keys = self.tensor_keys
        latent = (keys.prior_mean, keys.prior_std, keys.posterior_mean, keys.posterior_std)
        return self._with_free_nats(self._divergence(*(self._written(data, key) for key in latent)), data)

    def _divergence(self, mean_p: Tensor, std_p: Tensor, mean_q: Tensor, std_q: Tensor) -> Tensor:
        """Summed over the latent dimensions, ``[*B, T]``, unless ``global_average``."""
        divergence = (std_p / std_q).log() + (std_q.square() + (mean_p - mean_q).square()) / (2 * std_p.square()) - 0.5
        return divergence if self.global_average else divergence.sum(-1)

    def _with_free_nats(self, divergence: Tensor, data: TensorDictBase | None = None) -> Tensor:
        if self.delayed_clamp:
            return self._reduce_loss(divergence, data, reduction="mean").clamp_min(self.free_nats)
        return self._reduce_loss(divergence.clamp_min(self.free_nats), data, reduction="mean")

    def _reconstruction_term(self, data: TensorDictBase) -> Tensor:
        why = "the world model is trained to reconstruct it (set_keys(pixels=...) names another observation)"
        pixels = required_entry(data, next_key(self.tensor_keys.pixels), why)
        reconstruction = self._written(data, self.tensor_keys.reco_pixels)
        distance = _distance("pixels", pixels, reconstruction, self.reco_loss)
        # The dimensions of one observation: those of an image, or fewer for a vector.
        feature_dims = min(3, distance.ndim - data.batch_dims)
        if not self.global_average and feature_dims > 0:
            distance = distance.flatten(-feature_dims).sum(-1)
        return self._reduce_loss(distance, data, reduction="mean")

    def _reward_term(self, data: TensorDictBase) -> Tensor:
        true_reward, reward = (
            self._written(data, key) for key in (self.tensor_keys.true_reward, self.tensor_keys.reward)
        )
        return self._reduce_loss(_distance("reward", true_reward, reward, self.reward_loss), data, reduction="mean")


def _distance(name: str, truth: Tensor, prediction: Tensor, loss_function: str) -> Tensor:
    if truth.shape != prediction.shape:
        raise RuntimeError(
            f"{name}: the data have the shape {tuple(truth.shape)} and the world model wrote {tuple(prediction.shape)}"
        )
    return distance_loss(truth, prediction, loss_function)
