"""Encoder and decoder of the convolutional autoencoders. Modules have their published names, so that published weights map one to one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import silu

from ldm.networks.blocks.norm import group_norm
from ldm.networks.blocks.resample import Downsample, Upsample
from ldm.networks.blocks.residual import ResidualBlock
from ldm.networks.blocks.spatial_attention import SpatialSelfAttention


class Level(nn.Module):
    """Residual blocks of one resolution, each with its own attention or none; the level's owner sets the resampling at its end."""

    def __init__(self, in_channels: int, channels: int, blocks: int, *, attends: bool, dropout: float) -> None:
        super().__init__()
        widths = [in_channels, *[channels] * blocks]
        self.block = nn.ModuleList(ResidualBlock(a, b, dropout=dropout) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.attn = nn.ModuleList(SpatialSelfAttention(channels) for _ in range(blocks if attends else 0))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            h = block(h)
            if self.attn:
                h = self.attn[index](h)
        out: Tensor = self.upsample(self.downsample(h))
        return out


class Middle(nn.Module):
    """Block, attention or none, block: at the lowest resolution."""

    def __init__(self, channels: int, *, attends: bool, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, dropout=dropout)
        self.attn_1: nn.Module = SpatialSelfAttention(channels) if attends else nn.Identity()
        self.block_2 = ResidualBlock(channels, channels, dropout=dropout)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(h)))
        return out


class Encoder(nn.Module):
    """(B, in_channels, H, W) to (B, out_channels, H / f, W / f), f = 2^(levels - 1).

    Args:
        in_channels: of the images.
        out_channels: of the result.
        widths: channels of each level, from the full resolution down.
        attends: whether each level's blocks are followed by attention.
        middle_attends: whether the middle attends.
        blocks: residual blocks a level.
        dropout: in the residual blocks.
        first_width: channels of the first convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        attends: Sequence[bool],
        *,
        middle_attends: bool,
        blocks: int,
        dropout: float,
        first_width: int,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, first_width, 3, padding=1)
        self.down = nn.ModuleList()
        before = first_width
        for index, width in enumerate(widths):
            level = Level(before, width, blocks, attends=attends[index], dropout=dropout)
            if index < len(widths) - 1:
                level.downsample = Downsample(width, asymmetric_pad=True)
            self.down.append(level)
            before = width
        self.mid = Middle(before, attends=middle_attends, dropout=dropout)
        self.norm_out = group_norm(before)
        self.conv_out = nn.Conv2d(before, out_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        h = self.conv_in(images)
        for level in self.down:
            h = level(h)
        out: Tensor = self.conv_out(silu(self.norm_out(self.mid(h))))
        return out


class Decoder(nn.Module):
    """(B, in_channels, h, w) to (B, out_channels, f h, f w). Arguments as Encoder's; its levels too are listed from the full resolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        attends: Sequence[bool],
        *,
        middle_attends: bool,
        blocks: int,
        dropout: float,
    ) -> None:
        super().__init__()
        before = widths[-1]
        self.conv_in = nn.Conv2d(in_channels, before, 3, padding=1)
        self.mid = Middle(before, attends=middle_attends, dropout=dropout)
        levels = []
        for index in reversed(range(len(widths))):
            level = Level(before, widths[index], blocks, attends=attends[index], dropout=dropout)
            if index > 0:
                level.upsample = Upsample(widths[index])
            levels.append(level)
            before = widths[index]
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = group_norm(before)
        self.conv_out = nn.Conv2d(before, out_channels, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        h = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            h = level(h)
        out: Tensor = self.conv_out(silu(self.norm_out(h)))
        return out
