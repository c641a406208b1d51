"""How probable pictures are under both stages together: a bound from above on -log2 P(x), in bits a pixel value.

The model of a picture: stage two's flow gives a normalised latent y; the latent contract makes it raw, z = y / scale + shift; the decoder
makes a picture of z; noise is added to each pixel value, which then is rounded to the nearest of 256 levels (the outer two take all that
is beyond). So P(x | z) is a probability, not a density, and nothing is dequantised. By Jensen's inequality, for the encoder's Gaussian q,

    -log P(x) <= E_q[-log P(x | z)] + E_q[-log p(z)] - H(q)          (Kingma & Welling 2014, eq. 3; Vahdat et al. 2021, sec. 3)

with p(z) = p_flow((z - shift) scale) prod scale, the product over all numbers of the latent, and H(q) = sum of log(std) + log(2 pi e) / 2.
Shift and scale drop out of the sum of the last two terms, as they must: a latent's unit is nobody's business. One z is drawn a picture.
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
    """What is between a decoder's picture and the pixels: the same for every pixel value.

    Attributes:
        kind: of the distribution. l1 trains a decoder as if it were Laplace's, l2 as if it were Gauss's.
        scale: the mean of |x| for laplace, the standard deviation for gaussian; values are in [-1, 1].
    """

    kind: Literal["laplace", "gaussian"]
    scale: float

    @staticmethod
    def fitted(mean_absolute: float, mean_square: float) -> DecoderNoise:
        """The likelier of the two kinds, each at its likeliest scale, for errors of which these two means are known, both above 0."""
        laplace = 1 + math.log(2 * mean_absolute)  # nats a value, of the density
        gaussian = (1 + math.log(2 * math.pi * mean_square)) / 2
        if laplace < gaussian:
            return DecoderNoise(kind="laplace", scale=mean_absolute)
        return DecoderNoise(kind="gaussian", scale=math.sqrt(mean_square))

    def bits(self, images: Tensor, decoded: Tensor) -> Tensor:
        """(B,): -log2 P(x | z) a pixel value; both (B, C, H, W), images on 256 levels, decoded as the decoder gave them."""
        images, scale = images.double(), torch.tensor(1 / self.scale, dtype=torch.float64, device=images.device)
        log_cdf = log_ndtr if self.kind == "gaussian" else _laplace_log_cdf
        return bound.bits_per_dim(-bound.level_log_probability(images, images - decoded.double(), scale, bound.PIXEL_LEVELS, log_cdf))


@dataclass(frozen=True, kw_only=True)
class LatentBound:
    """All (B,), bits a pixel value.

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
        """At least -log2 P(x) a pixel value, on average over z."""
        return self.reconstruction + self.latent - self.entropy


def latent_bound(
    images: Tensor, decoded: Tensor, noise: DecoderNoise, std: Tensor, latent_bits: Tensor, scale: Sequence[float]
) -> LatentBound:
    """The bound's three terms.

    Args:
        images: (B, C, H, W), on 256 levels in [-1, 1].
        decoded: (B, C, H, W), the decoder's picture of a latent drawn from q.
        noise: of the decoder.
        std: (B, Z, h, w), of q, raw.
        latent_bits: (B,), -log2 of stage two's density a number, at the same latent, normalised.
        scale: of the latent contract: one number, or one a channel.
    """
    share = std[0].numel() / images[0].numel()  # numbers of a latent for each pixel value
    mean_log_scale = sum(map(math.log2, scale)) / len(scale)
    entropy = std.double().log2().flatten(1).mean(1) + math.log2(2 * math.pi * math.e) / 2
    return LatentBound(
        reconstruction=noise.bits(images, decoded), latent=share * (latent_bits.double() - mean_log_scale), entropy=share * entropy
    )


def _laplace_log_cdf(x: Tensor) -> Tensor:
    return torch.where(x < 0, x - math.log(2), torch.log1p(-torch.exp(-x.clamp(min=0)) / 2))
