"""The UNet of the latent diffusion family. B batch, C channels, H W size, E width of the time embedding, S tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.family import kind
from ldm.networks.blocks.norm import group_norm
from ldm.networks.blocks.resample import Upsample
from ldm.networks.blocks.transformer import SpatialTransformer
from ldm.networks.blocks.zero import zeroed
from ldm.networks.config import DenoiserNetworkConfig, check_condition
from ldm.networks.unet_encoder import UNetBlock, UNetEncoder, UNetEncoderConfig


@kind("unet")
@dataclass(frozen=True, kw_only=True)
class UNetConfig(UNetEncoderConfig, DenoiserNetworkConfig):
    """Rombach et al. 2022, after Dhariwal & Nichol 2021. Each level of the decoder has one residual block more than the encoder's.

    Attributes, besides those of UNetEncoderConfig:
        transformer_depth: transformer blocks in each attention; 0 = one plain self-attention, as in the unconditional models.
        context_width: width of the condition's tokens, for cross-attention; None = takes no tokens.
        vector_width: width of the condition's vector; None = takes none.
    """

    transformer_depth: int = 1
    context_width: int | None = None
    vector_width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transformer_depth < 0:
            raise UserError(f"transformer_depth must be at least 0, got {self.transformer_depth}")
        if self.context_width is not None and self.context_width < 1:
            raise UserError(f"context_width must be at least 1, or null, got {self.context_width}")
        if self.context_width is not None and self.transformer_depth == 0:
            raise UserError("context_width needs transformer_depth of at least 1: plain attention blocks take no tokens")

    def attend(self, channels: int) -> nn.Module:
        """See `UNetEncoderConfig.attend`."""
        if self.transformer_depth == 0:
            return super().attend(channels)
        return SpatialTransformer(
            channels,
            self.heads_for(channels),
            depth=self.transformer_depth,
            context_width=self.context_width,
            groups=self.groups,
            backend=self.attention_backend,
        )

    def build(self, in_channels: int, out_channels: int) -> UNet:
        return UNet(self, in_channels, out_channels)


class UNet(UNetEncoder):
    """Starts as the zero function, since its last convolution does. See UNetConfig.

    Args:
        config: its shape.
        in_channels: of x and the condition's concat together.
        out_channels: of the output.
    """

    config: UNetConfig

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__(config, in_channels, config.vector_width)
        skips = list(self.skip_channels)
        width = skips[-1]
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(config.multipliers))):
            count = config.blocks_of_levels[level] + 1
            for index in range(count):
                parts: list[nn.Module] = [config.residual(width + skips.pop(), config.multipliers[level] * config.channels)]
                width = config.multipliers[level] * config.channels
                if 2**level in config.attention:
                    parts.append(config.attend(width))
                if level > 0 and index == count - 1:
                    parts.append(config.residual(width, width, up=True) if config.resample == "residual" else Upsample(width))
                self.output_blocks.append(UNetBlock(parts))

        last = zeroed(nn.Conv2d(width, out_channels, 3, padding=1))
        self.out = nn.Sequential(group_norm(width, groups=config.groups, eps=1e-5), nn.SiLU(), last)

    def forward(self, x: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        """The raw output F.

        Args:
            x: (B, C, H, W); with the condition's concat, in_channels together. H and W divisible by the config's size_multiple.
            network_time: (B,) real numbers, by convention 0 to num_steps - 1.
            condition: has a vector (of vector_width) and tokens (of context_width) if and only if the config has these widths.

        Returns:
            (B, out_channels, H, W), in the weights' dtype, or autocast's.

        Raises:
            UserError: another size or number of channels; a condition that the network was not built for, or a missing one.
        """
        x = check_condition(self.config, x, self.in_channels, condition)
        emb = self.embed(network_time, condition.vector)
        tokens = None if condition.tokens is None else condition.tokens.to(self.dtype)
        conditioning = emb, tokens, condition.token_mask
        h, skips = self.descend(x, *conditioning)
        for block in self.output_blocks:
            h = self.run(block, torch.cat([h, skips.pop()], dim=1), *conditioning)
        out: Tensor = self.out(h)
        return out
