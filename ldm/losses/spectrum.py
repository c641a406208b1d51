"""How much of a signal's power lies at high spatial frequencies.

Latents that have much more of it than their images hide detail where stage two, like any diffusion model, learns last and worst.

Source: Skorokhodov et al. 2025 (arXiv 2502.14831), sec. 3, who compare the spectra.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

HIGH = 0.25  # cycles a sample, along either axis: half of what a grid can hold


def power(x: Tensor) -> Tensor:
    """(2, C) float64 on the CPU: the power beyond HIGH, and all of it without that of the mean, of a batch (B, C, h, w).

    Of white noise about 3 in 4 lie beyond. Edges are mirrored, so that they are no jumps.
    """
    x = x.cpu().double()
    mirrored = torch.cat([x, x.flip(-1)], -1)
    mirrored = torch.cat([mirrored, mirrored.flip(-2)], -2)
    found = torch.fft.fft2(mirrored).abs().square().sum(0)  # (C, 2h, 2w)
    found[:, 0, 0] = 0
    rows, columns = (torch.fft.fftfreq(side).abs() > HIGH for side in found.shape[1:])
    return torch.stack([found[:, rows[:, None] | columns].sum(1), found.sum((1, 2))])


def high_share(powers: Tensor) -> float:
    """The share beyond HIGH, of the sums of `power` over a set (2, C): mean of the channels that vary; 0 if none does."""
    high, whole = powers
    varies = whole > 0
    return (high[varies] / whole[varies]).mean().item() if varies.any() else 0.0


def as_small_as(images: Tensor, latent: Tensor) -> Tensor:
    """Images (B, C, H, W) averaged down to the sides of their latents: what a latent of that size could show of them."""
    height, width = latent.shape[2:]
    return F.adaptive_avg_pool2d(images, (height, width))
