"""The patch discriminator."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from ldm.core.errors import UserError, unknown
from ldm.networks.blocks.norm import group_norm

NORMS = ("group", "none", "batch")


class PatchGAN(nn.Module):
    """Logits of overlapping patches: (B, in_channels, H, W) -> (B, 1, H', W'), high = real.

    `layers` 4x4 convolutions of stride 2, then two of stride 1. A logit's receptive field is 16, 34, 70, 142 or 286 pixels square for 1 to
    5 layers. There is no norm after the first convolution; all weights start from N(0, 0.02).

    Args:
        in_channels: of the image.
        channels: after the first convolution; doubled by each further one, up to 8 times.
        layers: 1 to 5.
        norm: group, none, or batch (the published one; it makes an image's logits depend on its batch, hence on the number of processes).

    Raises:
        UserError: layers outside 1 to 5, unknown norm; in `forward`: an image too small for one logit.

    Source: Isola et al. 2017, sec. 6.1 and appendix.
    """

    def __init__(self, in_channels: int, channels: int = 64, layers: int = 3, norm: Literal["group", "none", "batch"] = "group") -> None:
        super().__init__()
        if not 1 <= layers <= 5:
            raise UserError(f"a PatchGAN has 1 to 5 layers, not {layers}")
        if norm not in NORMS:
            raise unknown("PatchGAN norm", norm, NORMS)
        self.smallest = smallest_side(layers)
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]

        steps: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (before, width) in enumerate(pairwise(widths), start=1):
            stride = 2 if i < layers else 1
            # Batch norm would subtract a bias again.
            steps.append(nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=norm != "batch"))
            if norm == "group":
                steps.append(group_norm(width))
            elif norm == "batch":
                steps.append(nn.BatchNorm2d(width))
            steps.append(nn.LeakyReLU(0.2))
        steps.append(nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*steps)
        self.apply(_start)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W) in [-1, 1] -> (B, 1, H', W') logits."""
        if min(images.shape[2:]) < self.smallest:
            height, width = images.shape[2:]
            raise UserError(
                f"pictures of {width}x{height} are too small for this discriminator (at least {self.smallest}); use fewer layers"
            )
        logits: Tensor = self.main(images)
        return logits


def smallest_side(layers: int) -> int:
    """Smallest side, in pixels, of images that a PatchGAN of this many layers accepts."""
    side: int = 3 * 2**layers
    return side


def _start(module: nn.Module) -> None:
    """Initial values: weights N(0, 0.02), norm gains N(1, 0.02), norm biases 0, other biases as torch draws them."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
