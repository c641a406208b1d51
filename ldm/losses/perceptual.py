"""LPIPS (Zhang et al. 2018) as a loss: distances of a frozen network's features, with gradient to the reconstruction.

The features may be computed in half precision (autocast); their comparison is always float32. Same numbers as `lpips.LPIPS.forward`.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from ldm.core.errors import UserError
from ldm.core.precision import without_autocast

SMALLEST_SIDE = 16  # four poolings of VGG16 leave one position


class Perceptual(nn.Module):
    """Wraps an `lpips.LPIPS`, which is frozen, always in eval mode, and not part of this module's parameters or state dict.

    Images that are not RGB: a single channel becomes grey (repeated three times); with any other number of channels each one becomes a
    grey image of its own, and the distances are averaged.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = (network.eval().requires_grad_(False),)  # in a tuple: not a submodule; it follows the images' device

    @property
    def network(self) -> Any:
        """The frozen lpips.LPIPS."""
        return self._network[0]

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """(B,) distances of two (B, C, H, W) in [-1, 1]. No gradient goes to `images`.

        Raises:
            UserError: a side below 16 pixels.
        """
        if min(images.shape[2:]) < SMALLEST_SIDE:
            raise UserError(
                f"LPIPS needs pictures of at least {SMALLEST_SIDE} pixels a side, got {images.shape[2]} x {images.shape[3]}; "
                "set loss.perceptual_weight=0 or a larger data.size"
            )
        network = self.network.to(images.device)
        with torch.no_grad():
            wanted = network.net(network.scaling_layer(_as_rgb(images)))
        given = network.net(network.scaling_layer(_as_rgb(reconstruction)))
        with without_autocast(images.device):
            layers = zip(network.lins, wanted, given, strict=True)
            distance = sum(layer((_unit(a) - _unit(b)).square()).mean((1, 2, 3)) for layer, a, b in layers)
        distances: Tensor = reduce(distance, "(b k) -> b", "mean", b=len(images))
        return distances


def _as_rgb(x: Tensor) -> Tensor:
    """(B, C, H, W) as RGB images, (B K, 3, H, W): K = 1 for grey and RGB, else C."""
    return x if x.shape[1] == 3 else repeat(rearrange(x, "b c h w -> (b c) 1 h w"), "k 1 h w -> k c h w", c=3)


def _unit(features: Tensor) -> Tensor:
    """Features scaled to length 1 along the channels. Where all are 0, the ReLU's zero slope before cancels the root's infinite one."""
    features = features.float()
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)  # lpips' own floor
