"""The residual block of autoencoder and UNet."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ldm.networks.blocks.norm import group_norm
from ldm.networks.blocks.resample import double, halve
from ldm.networks.blocks.zero import zeroed


class ResidualBlock(nn.Module):
    """norm, SiLU, conv 3x3, embedding, norm, SiLU, dropout, conv 3x3; plus the input, through a 1x1 conv if the channels change.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        embed_width: width of the embedding that `forward` takes; None = takes none (autoencoders).
        scale_shift: the embedding scales and shifts the second norm (ADM) instead of being added before it.
        dropout: probability of dropping a value before the last convolution.
        up: doubles the size (nearest neighbour) in both branches.
        down: halves the size (2x2 means) in both branches.
        groups: largest number of groups of the norms.
        eps: of the norms.
        zero_init: the last convolution starts at zero, so the block starts as its skip connection.

    Source: Ho et al. 2020; scale-shift and residual resampling: Dhariwal & Nichol 2021.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embed_width: int | None = None,
        scale_shift: bool = False,
        dropout: float = 0.0,
        up: bool = False,
        down: bool = False,
        groups: int = 32,
        eps: float = 1e-6,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        assert not (up and down), "up or down, not both"
        assert embed_width is not None or not scale_shift, "scale_shift needs an embedding"
        self.scale_shift = scale_shift
        self.resample = double if up else halve if down else None
        self.norm1 = group_norm(in_channels, groups=groups, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embed = None if embed_width is None else nn.Linear(embed_width, out_channels * (2 if scale_shift else 1))
        self.norm2 = group_norm(out_channels, groups=groups, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip: nn.Module = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        if zero_init:
            zeroed(self.conv2)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W), with emb (B, embed_width) -> (B, out_channels, H', W')."""
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        if self.embed is None:
            h = self.norm2(h)
        else:
            assert emb is not None, "this block was built with an embedding"
            projected = self.embed(F.silu(emb)).to(h.dtype)[:, :, None, None]
            if self.scale_shift:
                scale, shift = projected.chunk(2, dim=1)
                h = self.norm2(h) * (1 + scale) + shift
            else:
                h = self.norm2(h + projected)
        out: Tensor = self.skip(x) + self.conv2(self.dropout(F.silu(h)))
        return out
