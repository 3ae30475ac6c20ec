"""Noise on the actions of a deterministic policy, annealed while it learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import InteractionType, TensorDictModuleBase
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor

from tritonrl.modules.action_space import action_leaf, action_space_name, action_space_sizes
from tritonrl.modules.greedy_action import greedy_action
from tritonrl.modules.tanh_transform import Bound, check_bounds

__all__ = ["AdditiveGaussianModule", "EGreedyModule"]


class _AnnealedModule(TensorDictModuleBase):
    """A module with a coefficient that goes down (or up) linearly, step by step of the training."""

    _coefficient: str

    def __init__(
        self, initial: float, end: float, annealing_num_steps: int, action_key: NestedKey, device: Any
    ) -> None:
        super().__init__()
        if annealing_num_steps <= 0:
            raise ValueError(f"annealing_num_steps must be positive, got {annealing_num_steps}")
        if initial < end:
            raise ValueError(f"{self._coefficient}_init {initial} must not be below {self._coefficient}_end {end}")
        self.annealing_num_steps = annealing_num_steps
        self.action_key = action_key
        self.in_keys: list[NestedKey] = [action_key]
        self.out_keys: list[NestedKey] = [action_key]
        for name, value in (("_init", initial), ("_end", end), ("", initial)):
            self.register_buffer(self._coefficient + name, torch.tensor(float(value), device=device))

    @torch.no_grad()
    def step(self, frames: int = 1) -> None:
        """Anneal by so many steps. Call it in the training loop: nothing else does."""
        name = self._coefficient
        now, initial, end = getattr(self, name), getattr(self, f"{name}_init"), getattr(self, f"{name}_end")
        now.copy_(torch.maximum(end, now - (initial - end) * (frames / self.annealing_num_steps)))

    @staticmethod
    def _exploring() -> bool:
        """Whether the interaction type lets a policy explore: not where deterministic actions are asked for."""
        return interaction_type() in (None, InteractionType.RANDOM)


class EGreedyModule(_AnnealedModule):
    r"""Replaces the action by a random one with probability :math:`\epsilon` (epsilon-greedy exploration).

    Epsilon goes linearly from ``eps_init`` to ``eps_end`` in ``annealing_num_steps`` calls of :meth:`step`. Within
    ``set_interaction_type`` of anything but RANDOM the action stays as it is.

    Args:
        spec: of the action, of TorchRL or Gymnasium; or give ``action_space`` and ``num_actions``.
        eps_init: epsilon at the start.
        eps_end: and at the end, not above ``eps_init``.
        annealing_num_steps: number of steps between the two.
        action_key: entry of the action.
        action_mask_key: entry of the mask ``[*B, n]``, True where an action is allowed.
        action_space: encoding of the action, see :class:`~tritonrl.modules.QValueModule`.
        num_actions: number n of actions; needed where neither the action, its mask nor the spec tells (categorical).
        var_nums: number of choices of each part of an action, for the spaces of several parts.
        device: of the buffers.

    Raises:
        ValueError: if neither or both of ``spec`` and ``action_space`` are given, if ``num_actions`` is needed and
            unknown, or a number is out of range.

    Example:
        >>> from tensordict import TensorDict
        >>> explore = EGreedyModule(action_space="categorical", num_actions=4, eps_init=1.0, eps_end=0.1)
        >>> data = explore(TensorDict({"action": torch.zeros(1000, dtype=torch.long)}, [1000]))
        >>> bool((data["action"].bincount(minlength=4) > 200).all())
        True
        >>> explore.step(500); explore.eps
        tensor(0.5500)
    """

    _coefficient = "eps"
    eps: Tensor

    def __init__(
        self,
        spec: Any = None,
        eps_init: float = 1.0,
        eps_end: float = 0.1,
        annealing_num_steps: int = 1000,
        *,
        action_key: NestedKey = "action",
        action_mask_key: NestedKey | None = None,
        action_space: str | None = None,
        num_actions: int | None = None,
        var_nums: int | Sequence[int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if (spec is None) == (action_space is None):
            raise ValueError(f"give one of spec and action_space, got spec={spec} and action_space={action_space!r}")
        super().__init__(eps_init, eps_end, annealing_num_steps, action_key, device)
        self.spec = spec
        self.action_space = action_space_name(spec if action_space is None else action_space, action_key)
        self.var_nums = action_space_sizes(spec, action_key) if var_nums is None else var_nums
        self.num_actions = _number_of_actions(spec, action_key) if num_actions is None else num_actions
        self.action_mask_key = action_mask_key
        if action_mask_key is not None:
            self.in_keys.append(action_mask_key)
        elif self.action_space == "categorical" and self.num_actions is None:
            raise ValueError("num_actions must be given: an index does not tell how many actions there are")

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Replace some actions in the tensordict.

        Raises:
            KeyError: if the action or the mask is missing.
            ValueError: if the mask is one of another number of actions taken.
        """
        if not self._exploring():
            return tensordict
        action = tensordict.get(self.action_key)
        feature_dims = int(self.action_space != "categorical")
        batch = action.shape[: action.ndim - feature_dims]
        random = self._random_action(tensordict, action, batch).to(action.dtype)
        explore = torch.rand(batch, device=action.device) < self.eps
        chosen = torch.where(explore.unsqueeze(-1) if feature_dims else explore, random, action)
        return tensordict.set(self.action_key, chosen)

    def _random_action(self, tensordict: TensorDictBase, action: Tensor, batch: torch.Size) -> Tensor:
        """A uniform one of the allowed actions: the greedy one for random values."""
        mask = None
        if self.action_mask_key is not None:
            mask = tensordict.get(self.action_mask_key)
            if mask.shape[:-1].numel() != batch.numel():
                raise ValueError(
                    f"the action mask {self.action_mask_key!r} of shape {tuple(mask.shape)} must have one row for each "
                    f"action, of shape {tuple(action.shape)}"
                )
        number = mask.shape[-1] if mask is not None else self._number_of_values(action)
        values = torch.rand(*batch, number, device=action.device) - 0.5
        if mask is not None:
            # An index of shape [*B, 1] has one dimension more than the batch of its mask.
            values = torch.where(mask.bool().reshape(values.shape), values, torch.full_like(values, -1.0))
        return greedy_action(values, self.action_space, self.var_nums)

    def _number_of_values(self, action: Tensor) -> int:
        if self.action_space in ("one_hot", "mult_one_hot", "binary"):
            return action.shape[-1]
        if self.action_space == "multi_categorical":
            return self.var_nums * action.shape[-1] if isinstance(self.var_nums, int) else sum(self.var_nums or ())
        assert self.num_actions is not None
        return self.num_actions


class AdditiveGaussianModule(_AnnealedModule):
    r"""Adds Gaussian noise to the action, and clips it to its bounds.

    .. math:: a \leftarrow \mathrm{clip}(a + \sigma \epsilon, low, high), \qquad \epsilon \sim \mathcal N(mean, std)

    Sigma goes linearly from ``sigma_init`` to ``sigma_end`` in ``annealing_num_steps`` calls of :meth:`step`. Within
    ``set_interaction_type`` of anything but RANDOM the action stays as it is.

    Args:
        spec: of the action, of TorchRL or Gymnasium, which tells the bounds; or give ``low`` and ``high``.
        sigma_init: sigma at the start.
        sigma_end: and at the end, not above ``sigma_init``.
        annealing_num_steps: number of steps between the two.
        mean: of the noise, before sigma.
        std: of the noise, before sigma.
        action_key: entry of the action.
        low: lower bound of the action, a number or a tensor; by default none.
        high: upper bound; by default none.
        device: of the buffers.

    Raises:
        ValueError: if bounds are given together with a spec, only one bound is given, or a number is out of range.
        RuntimeError: if ``low`` is not below ``high``.

    Example:
        >>> from tensordict import TensorDict
        >>> explore = AdditiveGaussianModule(sigma_init=5.0, low=-1.0, high=1.0)
        >>> data = explore(TensorDict({"action": torch.zeros(100, 2)}, [100]))
        >>> data["action"].abs().max()
        tensor(1.)
    """

    _coefficient = "sigma"
    sigma: Tensor

    def __init__(
        self,
        spec: Any = None,
        sigma_init: float = 1.0,
        sigma_end: float = 0.1,
        annealing_num_steps: int = 1000,
        mean: float = 0.0,
        std: float = 1.0,
        *,
        action_key: NestedKey = "action",
        low: Bound | None = None,
        high: Bound | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(sigma_init, sigma_end, annealing_num_steps, action_key, device)
        if (low is None) != (high is None):
            raise ValueError(f"low and high must be given together, got low={low} and high={high}")
        if spec is not None and low is not None:
            raise ValueError("the bounds are given twice: by spec, and by low and high")
        self.spec = spec
        self.mean = mean
        self.std = std
        bounds = (low, high) if spec is None else _bounds_of(spec, action_key)
        for name, bound in zip(("low", "high"), bounds, strict=True):
            value = None if bound is None else torch.as_tensor(bound, dtype=torch.get_default_dtype(), device=device)
            self.register_buffer(name, value, persistent=False)
        if self.low is not None:
            shape = torch.broadcast_shapes(self.low.shape, self.high.shape)
            check_bounds(type(self).__name__, self.low, self.high, shape)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Add noise to the action in the tensordict.

        Raises:
            KeyError: if there is no action.
        """
        if not self._exploring():
            return tensordict
        action = tensordict.get(self.action_key)
        noisy = action + self.sigma.to(action.dtype) * (self.mean + self.std * torch.randn_like(action))
        if self.low is not None:
            noisy = noisy.clamp(self.low.to(action.dtype), self.high.to(action.dtype))
        return tensordict.set(self.action_key, noisy)


def _number_of_actions(spec: Any, action_key: NestedKey) -> int | None:
    """Of a discrete action, as Gymnasium (``n``) or TorchRL (``space.n``) say."""
    leaf = action_leaf(spec, action_key)
    number = getattr(leaf, "n", None)
    number = getattr(getattr(leaf, "space", None), "n", None) if number is None else number
    return None if number is None else int(number)


def _bounds_of(spec: Any, action_key: NestedKey) -> tuple[Any, Any]:
    """Of a bounded action, as Gymnasium (``low``) or TorchRL (``space.low``) say; no bounds of an unbounded one."""
    leaf = action_leaf(spec, action_key)
    for holder in (leaf, getattr(leaf, "space", None)):
        low, high = getattr(holder, "low", None), getattr(holder, "high", None)
        if low is not None:
            return low, high
    return None, None
