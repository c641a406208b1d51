"""Sinusoidal embeddings of numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def time_embedding(network_time: Tensor, width: int, max_period: float = 10_000.0, shift: int = 0) -> Tensor:
    """cos(network_time f_i) for all i, then sin(network_time f_i), with f_i = max_period^(-i / (half - shift)) and half = width // 2.

    Args:
        network_time: (B,) any real numbers; published networks were trained with 0 to 999.
        width: of the result; if it is odd, the last number is 0.
        max_period: period of the slowest wave over 2 pi, approximately.
        shift: 0 in most published networks; 1 in a few, such as diffusers' transformers.

    Returns:
        (B, width) float32 in [-1, 1].

    Source: Vaswani et al. 2017, sec. 3.5, in the order of Dhariwal & Nichol 2021 (cos before sin), which published weights need.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) / (half - shift) * torch.arange(half, dtype=torch.float32, device=network_time.device))
    angles = network_time.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))
