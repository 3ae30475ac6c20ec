"""Multi-layer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MLP"]

Kwargs = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
DEFAULT_NUM_CELLS = 32


class MLP(nn.Sequential):
    """Linear layers with activations between them: layer, dropout, norm, activation, and so on, and a last layer.

    Several inputs are concatenated along their last dimension.

    Args:
        in_features: size of the input; by default inferred at the first call.
        out_features: size of the output; several numbers for an output of several dimensions.
        depth: number of hidden layers; by default the length of ``num_cells``, without it zero.
        num_cells: their sizes, or one size for all; by default 32.
        activation_class: makes the activations.
        activation_kwargs: its arguments, for all or one for each activation.
        norm_class: makes the normalisations; by default there are none.
        norm_kwargs: its arguments, for all or one for each normalisation.
        dropout: probability of a feature to be dropped; by default no dropout.
        bias_last_layer: whether the last layer has a bias.
        layer_class: makes the layers, from input size, output size and ``bias``.
        layer_kwargs: its further arguments.
        activate_last_layer: put dropout, normalisation and activation behind the last layer too.
        device: of the parameters.

    Raises:
        ValueError: if ``out_features`` is missing, or the list of arguments has another length than what it is for.
        RuntimeError: if ``depth`` contradicts the length of ``num_cells``.

    Shapes: input ``[*B, in_features]``, output ``[*B, *out_features]``.

    Example:
        >>> network = MLP(in_features=5, out_features=2, num_cells=[64, 32], activation_class=nn.ReLU)
        >>> network(torch.zeros(3, 4), torch.zeros(3, 1)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | Sequence[int] | None = None,
        depth: int | None = None,
        num_cells: int | Sequence[int] | None = None,
        activation_class: Callable[..., nn.Module] = nn.Tanh,
        activation_kwargs: Kwargs = None,
        norm_class: Callable[..., nn.Module] | None = None,
        norm_kwargs: Kwargs = None,
        dropout: float | None = None,
        bias_last_layer: bool = True,
        layer_class: Callable[..., nn.Module] = nn.Linear,
        layer_kwargs: Mapping[str, Any] | None = None,
        activate_last_layer: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        if out_features is None:
            raise ValueError("out_features must be given")
        shape = (out_features,) if isinstance(out_features, int) else tuple(out_features)
        widths = [*_hidden_sizes(depth, num_cells), math.prod(shape)]
        activated = len(widths) - (0 if activate_last_layer else 1)
        activations = _kwargs_of_each("activation_kwargs", activation_kwargs, activated)
        norms = _kwargs_of_each("norm_kwargs", norm_kwargs, activated)
        layer_kwargs = {} if layer_kwargs is None else dict(layer_kwargs)

        def stages() -> Iterator[nn.Module]:
            for index, (inputs, outputs) in enumerate(zip([in_features, *widths[:-1]], widths, strict=True)):
                bias = layer_kwargs.get("bias", True) if index < len(widths) - 1 else bias_last_layer
                yield _layer(layer_class, inputs, outputs, {**layer_kwargs, "bias": bias})
                if index < activated:
                    if dropout is not None:
                        yield nn.Dropout(dropout)
                    if norm_class is not None:
                        yield norm_class(**norms[index])
                    yield activation_class(**activations[index])

        super().__init__(*stages())
        self.out_shape = shape
        if device is not None:
            self.to(device)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Output ``[*B, *out_features]`` for inputs ``[*B, n_i]`` whose sizes sum to ``in_features``."""
        out = super().forward(inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1))
        return out if len(self.out_shape) == 1 else out.unflatten(-1, self.out_shape)


def _hidden_sizes(depth: int | None, num_cells: int | Sequence[int] | None) -> list[int]:
    if num_cells is None or isinstance(num_cells, int):
        if depth is None:
            depth = 0 if num_cells is None else 1
        return [DEFAULT_NUM_CELLS if num_cells is None else num_cells] * depth
    if depth is not None and depth != len(num_cells):
        raise RuntimeError(f"depth {depth} contradicts num_cells {list(num_cells)}: one size for each hidden layer")
    return list(num_cells)


def _kwargs_of_each(name: str, kwargs: Kwargs, number: int) -> list[dict[str, Any]]:
    if kwargs is None or isinstance(kwargs, Mapping):
        return [dict(kwargs or {})] * number
    if len(kwargs) != number:
        raise ValueError(f"{name} must be one mapping, or one for each of {number} layers, got {len(kwargs)}")
    return [dict(each) for each in kwargs]


def _layer(
    layer_class: Callable[..., nn.Module], inputs: int | None, outputs: int, kwargs: dict[str, Any]
) -> nn.Module:
    if inputs is not None:
        return layer_class(inputs, outputs, **kwargs)
    if layer_class is not nn.Linear:
        raise ValueError(f"in_features must be given for layers of class {layer_class}")
    return nn.LazyLinear(outputs, **kwargs)
