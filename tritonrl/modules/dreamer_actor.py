"""The policy network of Dreamer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict.nn import NormalParamExtractor
from torch import Tensor, nn

from tritonrl.modules.mlp import MLP

__all__ = ["DreamerActor"]


class DreamerActor(nn.Module):
    """State and belief to location and scale of the action (Hafner et al. 2019, https://arxiv.org/abs/1912.01603).

    For a :class:`~tritonrl.modules.TanhNormal` with ``tanh_loc=True``. The bias of the scale makes the first policies
    close to uniform.

    Args:
        out_features: size of the action.
        depth: number of hidden layers.
        num_cells: their width.
        activation_class: makes the activations.
        std_bias: the scale at a network output of zero.
        std_min_val: lower bound of the scale.
        device: of the parameters.
        in_features: size of state and belief together; by default inferred at the first call.

    Example:
        >>> actor = DreamerActor(2, depth=1, num_cells=16, in_features=11)
        >>> loc, scale = actor(torch.zeros(5, 3), torch.zeros(5, 8))
        >>> loc.shape, bool((scale > 4).all())
        (torch.Size([5, 2]), True)
    """

    def __init__(
        self,
        out_features: int,
        depth: int = 4,
        num_cells: int = 200,
        activation_class: Callable[..., nn.Module] = nn.ELU,
        std_bias: float = 5.0,
        std_min_val: float = 1e-4,
        device: torch.device | str | None = None,
        in_features: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = MLP(
            in_features,
            2 * out_features,
            depth=depth,
            num_cells=num_cells,
            activation_class=activation_class,
            device=device,
        )
        self.split = NormalParamExtractor(scale_mapping=f"biased_softplus_{std_bias}_{std_min_val}")

    def forward(self, state: Tensor, belief: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale, ``[*B, out_features]`` each."""
        return self.split(self.backbone(state, belief))
