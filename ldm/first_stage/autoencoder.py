"""The KL autoencoder of latent diffusion."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ldm.core.errors import UserError
from ldm.core.family import kind
from ldm.first_stage.coders import Decoder, Encoder
from ldm.first_stage.config import FirstStageConfig
from ldm.first_stage.posterior import DiagonalGaussian, full_precision
from ldm.first_stage.stage import FirstStage


@kind("kl")
@dataclass(frozen=True, kw_only=True, slots=True)
class KLAutoencoderConfig(FirstStageConfig):
    """Defaults are the published KL-f8.

    Attributes:
        image_channels: of the pictures.
        channels: of the first level.
        multipliers: of `channels`, one a level; each level but the last halves the picture, so the ratio is 2^(levels - 1).
        blocks: residual blocks a level of the encoder; the decoder has one more.
        latent_channels: of the latents.
        attention: ratios of the levels whose blocks attend, e.g. (16, 32) at a sixteenth and a thirty-second of the picture's side.
        middle_attention: whether the middle, at the lowest resolution, attends.
        dropout: in the residual blocks.
        decoder_channels: of the decoder's first level; None = channels. A wider decoder costs nothing in stage two's training.
        scale_per_channel: whether the latent contract measures one shift and scale a channel, or one for all.

    Source: Rombach et al. 2022, appendix; KL-f4, f8, f16, f32 are pinned in the tests.
    """

    image_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent_channels: int = 4
    attention: tuple[int, ...] = ()
    middle_attention: bool = True
    dropout: float = 0.0
    decoder_channels: int | None = None
    scale_per_channel: bool = False

    def __post_init__(self) -> None:
        for name in ("image_channels", "channels", "blocks", "latent_channels", "decoder_channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"first_stage.{name} must be at least 1, got {value}")
        if not self.multipliers or min(self.multipliers) < 1:
            raise UserError(f"first_stage.multipliers needs one positive number a level, got {self.multipliers}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"first_stage.dropout must be in [0, 1), got {self.dropout}")
        ratios = [2**level for level in range(len(self.multipliers))]
        for ratio in self.attention:
            if ratio not in ratios:
                raise UserError(f"first_stage.attention names ratio {ratio}; the levels are at {', '.join(map(str, ratios))}")

    @property
    def ratio(self) -> int:
        return 2 ** (len(self.multipliers) - 1)

    def build(self) -> KLAutoencoder:
        return KLAutoencoder(self)


class KLAutoencoder(FirstStage):
    """Convolutional encoder to a diagonal Gaussian, and decoder. See KLAutoencoderConfig."""

    def __init__(self, config: KLAutoencoderConfig) -> None:
        super().__init__(image_channels=config.image_channels, latent_channels=config.latent_channels, ratio=config.ratio)
        self.config = config
        attends = [2**level in config.attention for level in range(len(config.multipliers))]
        latents, dropout = config.latent_channels, config.dropout
        self.encoder = Encoder(
            config.image_channels,
            2 * latents,
            [config.channels * m for m in config.multipliers],
            attends,
            middle_attends=config.middle_attention,
            blocks=config.blocks,
            dropout=dropout,
            first_width=config.channels,
        )
        self.decoder = Decoder(
            latents,
            config.image_channels,
            [(config.decoder_channels or config.channels) * m for m in config.multipliers],
            attends,
            middle_attends=config.middle_attention,
            blocks=config.blocks + 1,
            dropout=dropout,
        )
        self.quant_conv = nn.Conv2d(2 * latents, 2 * latents, 1)
        self.post_quant_conv = nn.Conv2d(latents, latents, 1)

    def posterior(self, images: Tensor) -> DiagonalGaussian:
        """The distribution of raw latents (B, Z, H / ratio, W / ratio), float32.

        Raises:
            UserError: wrong number of channels; a side that the ratio does not divide.
        """
        self.check_images(images)
        return DiagonalGaussian.of(self.quant_conv(self.encoder(images)))

    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, DiagonalGaussian]:
        posterior = self.posterior(images)
        return self._decode(posterior.sample(noise)), posterior

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.conv_out.weight

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.posterior(images)
        return posterior.mean, posterior.std

    def _decode(self, raw_latent: Tensor) -> Tensor:
        return full_precision(self.decoder(self.post_quant_conv(raw_latent)))
