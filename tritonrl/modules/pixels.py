"""Convolutional encoder and decoder of world models (Ha and Schmidhuber 2018, https://arxiv.org/abs/1803.10122)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ObsDecoder", "ObsEncoder"]


class ObsEncoder(nn.Module):
    """Image to vector: convolutions of kernel 4 and stride 2, each with twice the channels of the one before.

    Args:
        channels: number of channels behind the first convolution.
        num_layers: number of convolutions.
        in_channels: number of channels of the image; by default inferred at the first call.
        device: of the parameters.

    Shapes: image ``[*B, C, H, W]``, output ``[*B, E]``; E = 1024 for 64 x 64 and the default sizes.

    Example:
        >>> ObsEncoder(channels=4, num_layers=3, in_channels=3)(torch.zeros(2, 5, 3, 32, 32)).shape
        torch.Size([2, 5, 64])
    """

    def __init__(
        self,
        channels: int = 32,
        num_layers: int = 4,
        in_channels: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be positive, got {num_layers}")
        layers: list[nn.Module] = []
        for index in range(num_layers):
            out = channels * 2**index
            before = in_channels if index == 0 else out // 2
            layers.append(nn.LazyConv2d(out, 4, 2) if before is None else nn.Conv2d(before, out, 4, 2))
            layers.append(nn.ReLU())
        self.encoder = nn.Sequential(*layers)
        if device is not None:
            self.to(device)

    def forward(self, observation: Tensor) -> Tensor:
        """Encode images."""
        if observation.ndim < 3:
            raise ValueError(f"the observation must have the shape [*B, C, H, W], got {tuple(observation.shape)}")
        latent = self.encoder(observation.reshape(-1, *observation.shape[-3:]))
        return latent.reshape(*observation.shape[:-3], latent.shape[1:].numel())


class ObsDecoder(nn.Module):
    """State and belief to image: transposed convolutions of stride 2, from 1 x 1 up.

    Args:
        channels: number of channels before the last convolution.
        num_layers: number of convolutions.
        kernel_sizes: of each of them, or one for all; by default ``[5, 5, 6, 6]`` for four layers (1 x 1 to 64 x 64),
            else 5.
        latent_dim: size of state and belief together; by default inferred at the first call.
        out_channels: number of channels of the image.
        device: of the parameters.

    Raises:
        ValueError: if there is another number of kernel sizes than layers.

    Shapes: state ``[*B, S]``, belief ``[*B, H]``, image ``[*B, out_channels, height, width]``.

    Example:
        >>> ObsDecoder(channels=4, latent_dim=11)(torch.zeros(2, 5, 3), torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 3, 64, 64])
    """

    def __init__(
        self,
        channels: int = 32,
        num_layers: int = 4,
        kernel_sizes: int | Sequence[int] | None = None,
        latent_dim: int | None = None,
        out_channels: int = 3,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be positive, got {num_layers}")
        if kernel_sizes is None:
            kernel_sizes = [5, 5, 6, 6] if num_layers == 4 else 5
        sizes = [kernel_sizes] * num_layers if isinstance(kernel_sizes, int) else list(kernel_sizes)
        if len(sizes) != num_layers:
            raise ValueError(f"kernel_sizes {sizes} must be one number, or one for each of {num_layers} layers")
        widths = [channels * 32]
        widths += [channels * 2 ** (num_layers - 2 - index) for index in range(num_layers - 1)]
        first = nn.LazyLinear(widths[0]) if latent_dim is None else nn.Linear(latent_dim, widths[0])
        self.state_to_latent = nn.Sequential(first, nn.ReLU())
        layers: list[nn.Module] = []
        for before, out, size in zip(widths, [*widths[1:], out_channels], sizes, strict=True):
            layers += [nn.ConvTranspose2d(before, out, size, stride=2), nn.ReLU()]
        self.decoder = nn.Sequential(*layers[:-1])
        if device is not None:
            self.to(device)

    def forward(self, state: Tensor, rnn_hidden: Tensor) -> Tensor:
        """Decode state and belief."""
        latent = self.state_to_latent(torch.cat([state, rnn_hidden], -1))
        image = self.decoder(latent.reshape(-1, latent.shape[-1], 1, 1))
        return image.reshape(*latent.shape[:-1], *image.shape[1:])
