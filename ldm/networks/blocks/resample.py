"""Halving and doubling the size of a feature map."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Downsample(nn.Module):
    """Convolution 3x3 of stride 2: (B, C, H, W) -> (B, out, H/2, W/2).

    Args:
        channels: of the input.
        out: of the output; None = as many.
        asymmetric_pad: True = pads one row and column of zeros at the bottom and right only, as in the published autoencoders;
            False = pads every side, as in the published UNets. Both halve even sizes, but weights of one do not suit the other.
    """

    def __init__(self, channels: int, out: int | None = None, *, asymmetric_pad: bool) -> None:
        super().__init__()
        self.asymmetric_pad = asymmetric_pad
        self.conv = nn.Conv2d(channels, out or channels, 3, stride=2, padding=0 if asymmetric_pad else 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric_pad else x)
        return out


class Upsample(nn.Module):
    """Nearest neighbour, then a convolution 3x3: (B, C, H, W) -> (B, out, 2H, 2W). `out` None = as many channels."""

    def __init__(self, channels: int, out: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out or channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(double(x))
        return out


def double(x: Tensor) -> Tensor:
    """Repeats each pixel four times: (B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def halve(x: Tensor) -> Tensor:
    """The mean of each 2x2: (B, C, H, W) -> (B, C, H/2, W/2)."""
    return F.avg_pool2d(x, 2)
