"""The VQ autoencoder: each position of the latent is replaced by the nearest code of a learned codebook."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.core.errors import UserError
from ldm.core.family import kind
from ldm.core.precision import without_autocast
from ldm.first_stage.convolutional import ConvolutionalAutoencoder, ConvolutionalConfig
from ldm.first_stage.posterior import full_precision

DISTANCES_AT_ONCE = 2**25  # numbers: 128 MiB


@kind("vq")
@dataclass(frozen=True, kw_only=True)
class VQAutoencoderConfig(ConvolutionalConfig):
    """Defaults are the published VQ-f4. VQ-f4, VQ-f8 and VQ-f4 without attention are configs/published/vq-f*.yaml.

    Stage two sees the latent before quantisation; decoding quantises.

    Attributes:
        num_codes: codes in the codebook.
        code_channels: channels of a code, hence of the latents.

    Source: van den Oord et al. 2017; Esser et al. 2021; Rombach et al. 2022, sec. 3.1.
    """

    multipliers: tuple[int, ...] = (1, 2, 4)
    num_codes: int = 8192
    code_channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_codes", "code_channels"):
            if getattr(self, name) < 1:
                raise UserError(f"first_stage.{name} must be at least 1, got {getattr(self, name)}")

    @property
    def latent_channels(self) -> int:
        return self.code_channels

    def build(self) -> VQAutoencoder:
        return VQAutoencoder(self)


@dataclass(frozen=True)
class QuantisedLatent:
    """A latent before and after quantisation.

    Attributes:
        raw: (B, C, h, w) float32, the encoder's output.
        code: (B, C, h, w) float32, the code nearest to each position of `raw`.
        indices: (B, h, w) int64, the row of each code in the codebook.
        num_codes: rows of the codebook.
    """

    raw: Tensor
    code: Tensor
    indices: Tensor
    num_codes: int

    @property
    def mean(self) -> Tensor:
        """The latent itself: the encoder is deterministic."""
        return self.raw

    @property
    def std(self) -> Tensor:
        """Zeros."""
        return torch.zeros_like(self.raw)

    def sample(self, noise: Tensor) -> Tensor:
        """The latent itself, whatever the noise."""
        return self.raw

    @property
    def straight_through(self) -> Tensor:
        """The code's values; the gradient goes to `raw` as if it had not been replaced (van den Oord et al. 2017, sec. 3.2)."""
        return self.raw + (self.code - self.raw).detach()

    def penalties(self, values: int) -> dict[str, Tensor]:
        """(B,) each: the mean squared distance of latent and code, times `values`, the numbers of an image.

        "codebook" pulls the codes to the latents, "commitment" the latents to the codes: eq. 3 of van den Oord et al. 2017. Its other
        term, the negative log-likelihood, is a sum over the image here, hence the factor.
        """
        codebook = (self.code - self.raw.detach()).square()
        commitment = (self.raw - self.code.detach()).square()
        return {name: values * term.flatten(1).mean(1) for name, term in (("codebook", codebook), ("commitment", commitment))}

    def kl_per_dimension(self) -> None:
        """None: a code is chosen, not drawn from a density."""

    def code_counts(self) -> Tensor:
        """(num_codes,) int64: how often each code was chosen."""
        return torch.bincount(self.indices.flatten(), minlength=self.num_codes)


class VQAutoencoder(ConvolutionalAutoencoder):
    """Convolutional encoder to codes, and decoder. See VQAutoencoderConfig."""

    def __init__(self, config: VQAutoencoderConfig) -> None:
        super().__init__(config, encoded=config.code_channels)
        self.config = config
        self.codebook = nn.Embedding(config.num_codes, config.code_channels)
        nn.init.uniform_(self.codebook.weight, -1 / config.num_codes, 1 / config.num_codes)

    def quantise(self, raw_latent: Tensor) -> QuantisedLatent:
        """(B, C, h, w) and its nearest codes. In float32 even under autocast: in half precision neighbouring codes coincide."""
        with without_autocast(raw_latent.device):
            raw = full_precision(raw_latent)
            table = self.codebook.weight.to(raw.dtype)
            indices = nearest(rearrange(raw.detach(), "b c h w -> (b h w) c"), table.detach())
            indices = indices.reshape(len(raw), *raw.shape[2:])
            code = rearrange(nn.functional.embedding(indices, table), "b h w c -> b c h w")
        return QuantisedLatent(raw, code, indices, self.config.num_codes)

    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, QuantisedLatent]:
        self.check_images(images)
        latent = self.quantise(self._encoded(images))
        return self._decoded(latent.straight_through), latent

    def decode_raw(self, raw_latent: Tensor) -> Tensor:
        return self._decoded(self.quantise(raw_latent).straight_through)

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.check_images(images)
        raw = full_precision(self._encoded(images))
        return raw, torch.zeros_like(raw)

    def _decode(self, raw_latent: Tensor) -> Tensor:
        return self._decoded(self.quantise(raw_latent).code)


def nearest(points: Tensor, codes: Tensor) -> Tensor:
    """(P,) int64: for each of the points (P, C) the row of codes (K, C) at the least distance; of equal ones the first.

    |p - e|^2 = |p|^2 - 2 p e + |e|^2. The first term is the same for all codes and is left out: adding it would only cost precision.
    """
    squares = codes.square().sum(1)
    parts = points.split(max(1, DISTANCES_AT_ONCE // len(codes)))
    return torch.cat([torch.addmm(squares, part, codes.T, alpha=-2).argmin(1) for part in parts])
