"""Halving and doubling the size of a feature map."""

from __future__ import annotations

import torch
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
        # An adapted convolution is more than its weight. On small maps the sums of weights cost more than they save.
        if type(self.conv) is nn.Conv2d and x.shape[2] * x.shape[3] >= 64:
            return _doubled_and_convolved(x, self.conv.weight, self.conv.bias)
        out: Tensor = self.conv(double(x))
        return out


def double(x: Tensor) -> Tensor:
    """Repeats each pixel four times: (B, C, H, W) -> (B, C, 2H, 2W)."""
    if x.is_contiguous():  # on a CPU interpolate would change to channels-last and back, seven times as long
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _doubled_and_convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`conv3x3(double(x))` without the doubled map, in 4/9 of its products.

    A row of the doubled map is one of x twice. So the three rows of the kernel meet two rows of x only: an even row of the output is
    w0 x[i-1] + (w1 + w2) x[i], an odd one (w0 + w1) x[i] + w2 x[i+1], and columns likewise. That makes four kernels of 2x2, one for
    each place in a 2x2 of the output. Their results at all (H + 1, W + 1) places are computed at once, and interleaved.
    """
    (height, width), channels = x.shape[2:], weight.shape[0]
    kernels = _two_of_three(_two_of_three(weight, 2), 4).transpose(0, 1).flatten(0, 2)  # (row, column, out) x in x 2 x 2
    placed = F.conv2d(x, kernels, None if bias is None else bias.repeat(4), padding=1).unflatten(1, (2, 2, channels))
    parts = [[placed[:, row, column, :, row : row + height, column : column + width] for column in (0, 1)] for row in (0, 1)]
    out = torch.stack([torch.stack(pair, dim=-1) for pair in parts], dim=3).reshape(-1, channels, 2 * height, 2 * width)
    return out if x.is_contiguous() else out.contiguous(memory_format=torch.channels_last)


def _two_of_three(weight: Tensor, dim: int) -> Tensor:
    """The kernels of even and odd outputs, as a new first dimension; `dim` of three taps becomes one of two."""
    first, middle, last = weight.unbind(dim)
    even, odd = torch.stack([first, middle + last], dim), torch.stack([first + middle, last], dim)
    return torch.stack([even, odd])


def halve(x: Tensor) -> Tensor:
    """The mean of each 2x2: (B, C, H, W) -> (B, C, H/2, W/2)."""
    return F.avg_pool2d(x, 2)
