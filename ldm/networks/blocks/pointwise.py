"""A convolution 1x1, computed as the product of matrices that it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`, a convolution 1x1: (B, in, H, W) -> (B, out, H, W), both channels-last.

    Some of torch's kernels for such a convolution copy the map into columns first; a channels-last map is a matrix already.

    Args:
        layer: nn.Conv2d of kernel size 1, or one with adapters, which is more than its weight and is called as it is.
        x: channels-last.
    """
    # A compiler knows such convolutions, and may believe of a map that it is channels-last where it is not.
    if type(layer) is not nn.Conv2d or torch.compiler.is_compiling():
        out: Tensor = layer(x)
        return out
    return F.linear(x.movedim(1, -1), layer.weight.flatten(1), layer.bias).movedim(-1, 1)
