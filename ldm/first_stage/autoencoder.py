"""The KL autoencoder of latent diffusion."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldm.core.family import kind
from ldm.first_stage.convolutional import ConvolutionalAutoencoder, ConvolutionalConfig
from ldm.first_stage.posterior import DiagonalGaussian


@kind("kl")
@dataclass(frozen=True, kw_only=True)
class KLAutoencoderConfig(ConvolutionalConfig):
    """Defaults are the published KL-f8; KL-f4, f8, f16 and f32 are configs/published/kl-f*.yaml.

    Attributes:
        latent_channels: of the latents.
    """

    latent_channels: int = 4

    def build(self) -> KLAutoencoder:
        return KLAutoencoder(self)


class KLAutoencoder(ConvolutionalAutoencoder):
    """Convolutional encoder to a diagonal Gaussian, and decoder. See KLAutoencoderConfig."""

    def __init__(self, config: KLAutoencoderConfig) -> None:
        super().__init__(config, encoded=2 * config.latent_channels)
        self.config = config

    def posterior(self, images: Tensor) -> DiagonalGaussian:
        """The distribution of raw latents (B, Z, H / f, W / f), float32.

        Raises:
            UserError: wrong number of channels; a side that the downsampling factor does not divide.
        """
        self.check_images(images)
        return DiagonalGaussian.of(self._encoded(images))

    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, DiagonalGaussian]:
        posterior = self.posterior(images)
        return self._decode(posterior.sample(noise)), posterior

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.posterior(images)
        return posterior.mean, posterior.std

    def _decode(self, raw_latent: Tensor) -> Tensor:
        return self._decoded(raw_latent)
