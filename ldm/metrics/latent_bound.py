"""Likelihood of images under both stages together: an upper bound of -log2 P(x), in bits per pixel value.

The model of an image: stage two's flow gives a normalised latent y; the latent normalization makes it raw, z = y / scale + shift; the
decoder makes an image of z; noise is added to each pixel value, which is then rounded to the nearest of 256 levels (an outer level includes
all values beyond it). So P(x | z) is a probability, not a density, and no dequantisation is needed. By Jensen's inequality, for the
encoder's Gaussian q,

    -log P(x) <= E_q[-log P(x | z)] + E_q[-log p(z)] - H(q)          (Kingma & Welling 2014, eq. 3; Vahdat et al. 2021, sec. 3)

with p(z) = p_flow((z - shift) scale) prod scale, the product over all numbers of the latent, and H(q) = sum of log(std) + log(2 pi e) / 2.
Shift and scale drop out of the sum of the last two terms: the bound does not depend on the latents' scale. One z is drawn per image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.special import log_ndtr

from ldm.diffusion import bound


@dataclass(frozen=True, kw_only=True)
class DecoderNoise:
    """The noise between a decoder's image and the pixels, the same for every pixel value.

    Attributes:
        kind: of the distribution. An l1 loss trains a decoder as if it were laplace, l2 as if it were gaussian.
        scale: the mean of |x| for laplace, the standard deviation for gaussian; values are in [-1, 1].
    """

    kind: Literal["laplace", "gaussian"]
    scale: float

    @staticmethod
    def fitted(mean_absolute: float, mean_square: float) -> DecoderNoise:
        """The kind and scale of maximum likelihood, for errors with this mean absolute value and mean square, both above 0."""
        laplace = 1 + math.log(2 * mean_absolute)  # nats per value, of the density
        gaussian = (1 + math.log(2 * math.pi * mean_square)) / 2
        if laplace < gaussian:
            return DecoderNoise(kind="laplace", scale=mean_absolute)
        return DecoderNoise(kind="gaussian", scale=math.sqrt(mean_square))

    def bits(self, images: Tensor, decoded: Tensor) -> Tensor:
        """(B,) float64 on the CPU: -log2 P(x | z) per pixel value. Both (B, C, H, W): images on 256 levels, decoded ones not clipped."""
        images, decoded, scale = images.cpu().double(), decoded.cpu().double(), torch.tensor(1 / self.scale, dtype=torch.float64)
        log_cdf = log_ndtr if self.kind == "gaussian" else _laplace_log_cdf
        return bound.bits_per_dim(-bound.level_log_probability(images, images - decoded, scale, bound.PIXEL_LEVELS, log_cdf))


@dataclass(frozen=True, kw_only=True)
class LatentBound:
    """All (B,) float64 on the CPU, bits per pixel value.

    Attributes:
        reconstruction: -log2 P(x | z).
        latent: -log2 p(z), of the raw latent.
        entropy: of q(z | x), of the raw latent.
    """

    reconstruction: Tensor
    latent: Tensor
    entropy: Tensor

    @property
    def total(self) -> Tensor:
        """An upper bound of -log2 P(x) per pixel value, on average over z."""
        return self.reconstruction + self.latent - self.entropy


def latent_bound(
    images: Tensor, decoded: Tensor, noise: DecoderNoise, std: Tensor, latent_bits: Tensor, scale: Sequence[float]
) -> LatentBound:
    """The bound's three terms.

    Args:
        images: (B, C, H, W), on 256 levels in [-1, 1].
        decoded: (B, C, H, W), the decoder's image of a latent drawn from q.
        noise: of the decoder.
        std: (B, Z, h, w), of q, for raw latents.
        latent_bits: (B,), -log2 of stage two's density per number, at the same latent, normalised.
        scale: of the latent normalization: one number, or one per channel.
    """
    share = std[0].numel() / images[0].numel()  # latent numbers per pixel value
    mean_log_scale = sum(map(math.log2, scale)) / len(scale)
    entropy = std.cpu().double().log2().flatten(1).mean(1) + math.log2(2 * math.pi * math.e) / 2
    return LatentBound(
        reconstruction=noise.bits(images, decoded), latent=share * (latent_bits.cpu().double() - mean_log_scale), entropy=share * entropy
    )


def _laplace_log_cdf(x: Tensor) -> Tensor:
    return torch.where(x < 0, x - math.log(2), torch.log1p(-torch.exp(-x.clamp(min=0)) / 2))
