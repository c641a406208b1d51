"""What the KL and the VQ autoencoder share: their shape, encoder and decoder."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor, nn

from ldm.core.errors import UserError
from ldm.first_stage.coders import Decoder, Encoder
from ldm.first_stage.config import FirstStageConfig
from ldm.first_stage.posterior import full_precision
from ldm.first_stage.stage import FirstStage


@dataclass(frozen=True, kw_only=True)
class ConvolutionalConfig(FirstStageConfig, abc.ABC):
    """
    Attributes:
        image_channels: of the images.
        channels: of the first level.
        multipliers: of `channels`, one a level; each level but the last halves the sides, so the downsampling factor is 2^(levels - 1).
        blocks: residual blocks a level of the encoder; the decoder has one more.
        attention: downsampling factors of the levels whose blocks attend, e.g. (16, 32): at 1/16 and 1/32 of the image's side.
        middle_attention: whether the middle, at the lowest resolution, attends.
        dropout: in the residual blocks.
        decoder_channels: of the decoder's first level; None = channels. A wider decoder does not slow stage two's training.
        scale_per_channel: whether the latent normalization has one shift and scale per channel, or one for all channels.

    Source: Rombach et al. 2022, appendix, after Esser et al. 2021.
    """

    image_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
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
        factors = [2**level for level in range(len(self.multipliers))]
        for factor in self.attention:
            if factor not in factors:
                raise UserError(f"first_stage.attention has {factor}; the levels' downsampling factors are {', '.join(map(str, factors))}")

    @property
    def downsampling_factor(self) -> int:
        factor: int = 2 ** (len(self.multipliers) - 1)
        return factor


class ConvolutionalAutoencoder(FirstStage):
    """Encoder and decoder with a 1x1 convolution on either side of the latent.

    Args:
        config: the shape.
        encoded: channels of the encoder's output, from which subclasses make the latent.
    """

    def __init__(self, config: ConvolutionalConfig, encoded: int) -> None:
        super().__init__(
            image_channels=config.image_channels, latent_channels=config.latent_channels, downsampling_factor=config.downsampling_factor
        )
        attends = [2**level in config.attention for level in range(len(config.multipliers))]
        latents = config.latent_channels
        self.encoder = Encoder(
            config.image_channels,
            encoded,
            [config.channels * m for m in config.multipliers],
            attends,
            middle_attends=config.middle_attention,
            blocks=config.blocks,
            dropout=config.dropout,
            first_width=config.channels,
        )
        self.decoder = Decoder(
            latents,
            config.image_channels,
            [(config.decoder_channels or config.channels) * m for m in config.multipliers],
            attends,
            middle_attends=config.middle_attention,
            blocks=config.blocks + 1,
            dropout=config.dropout,
        )
        self.quant_conv = nn.Conv2d(encoded, encoded, 1)
        self.post_quant_conv = nn.Conv2d(latents, latents, 1)

    @property
    def last_layer(self) -> nn.Conv2d:
        return self.decoder.conv_out

    def _encoded(self, images: Tensor) -> Tensor:
        """(B, encoded, H / f, W / f) of checked images."""
        encoded: Tensor = self.quant_conv(self.encoder(images))
        return encoded

    def _decoded(self, latent: Tensor) -> Tensor:
        """Images of (B, Z, h, w), float32 or wider."""
        return full_precision(self.decoder(self.post_quant_conv(latent)))
