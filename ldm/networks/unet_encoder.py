"""A UNet's encoder and middle, shared by denoisers and classifiers. B batch, C channels, H W size, E width of the embedding, S tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.core.errors import UserError, unknown
from ldm.networks.attention.attend import BACKENDS
from ldm.networks.blocks.norm import groups_for
from ldm.networks.blocks.resample import Downsample
from ldm.networks.blocks.residual import ResidualBlock
from ldm.networks.blocks.spatial_attention import MultiHeadSpatialAttention
from ldm.networks.blocks.transformer import SpatialTransformer
from ldm.networks.embed import time_embedding


@dataclass(frozen=True, kw_only=True)
class UNetEncoderConfig:
    """Dhariwal & Nichol 2021.

    Attributes:
        channels: at full size; the time embedding is 4 times as wide.
        multipliers: channels of each level, in units of `channels`; each level but the first halves the size.
        blocks: residual blocks per encoder level, one number or one per level.
        attention: downsampling factors (1 = full size, 2, 4, ...) at which there is attention.
        middle_attention: True = there is attention between the two residual blocks of the middle.
        heads: number of attention heads at all levels. Give heads or head_width, or neither if there is no attention.
        head_width: width of an attention head, so that wider levels have more heads.
        scale_shift: True = the embedding scales and shifts the residual blocks' norms, instead of being added.
        resample: how levels change size: with a convolution, or within a residual block.
        dropout: in the residual blocks.
        checkpointing: recomputes activations in the backward pass: less memory, about a third more time.
        attention_backend: see `ldm.networks.attention.attend`.
    """

    channels: int
    multipliers: tuple[int, ...]
    blocks: int | tuple[int, ...] = 2
    attention: tuple[int, ...] = (4, 2, 1)
    middle_attention: bool = True
    heads: int | None = None
    head_width: int | None = None
    scale_shift: bool = False
    resample: Literal["conv", "residual"] = "conv"
    dropout: float = 0.0
    checkpointing: bool = False
    attention_backend: str = "auto"

    def __post_init__(self) -> None:
        if self.channels < 1 or not self.multipliers or min(self.multipliers) < 1:
            raise UserError(f"a UNet needs channels and multipliers of at least 1, got {self.channels} and {self.multipliers}")
        if len(self.blocks_of_levels) != len(self.multipliers) or min(self.blocks_of_levels) < 1:
            raise UserError(
                f"blocks must be one number, or one per level ({len(self.multipliers)} levels), all at least 1; got {self.blocks}"
            )
        if any(factor < 1 or factor & (factor - 1) for factor in self.attention):
            raise UserError(f"attention must list downsampling factors: 1, 2, 4, 8, ...; got {self.attention}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.resample not in ("conv", "residual"):
            raise unknown("resample", self.resample, ("conv", "residual"))
        if self.attention_backend not in BACKENDS:
            raise unknown("attention backend", self.attention_backend, BACKENDS)
        if (self.heads is not None) + (self.head_width is not None) != self.attends:
            needed = "exactly one of heads and head_width" if self.attends else "neither heads nor head_width: there is no attention"
            raise UserError(f"give {needed}, got heads={self.heads}, head_width={self.head_width}")
        for level, multiplier in enumerate(self.multipliers):
            if 2**level in self.attention or (self.middle_attention and level == len(self.multipliers) - 1):
                self.heads_for(multiplier * self.channels)

    @property
    def attends(self) -> bool:
        """True if there is attention at any level."""
        return self.middle_attention or any(2**level in self.attention for level in range(len(self.multipliers)))

    @property
    def blocks_of_levels(self) -> tuple[int, ...]:
        """Residual blocks of each encoder level."""
        return (self.blocks,) * len(self.multipliers) if isinstance(self.blocks, int) else tuple(self.blocks)

    @property
    def size_multiple(self) -> int:
        """Height and width must be divisible by this."""
        factor: int = 2 ** (len(self.multipliers) - 1)
        return factor

    def heads_for(self, channels: int) -> int:
        """Number of attention heads for this many channels."""
        divisor = self.heads if self.heads is not None else self.head_width
        assert divisor is not None
        if divisor < 1 or channels % divisor:
            name = "heads" if self.heads is not None else "head_width"
            raise UserError(f"{name} {divisor} does not divide the {channels} channels of a level with attention")
        return divisor if self.heads is not None else channels // divisor

    @property
    def groups(self) -> int:
        """Largest number of groups of the norms: the same at all levels, as in other implementations."""
        return groups_for(self.channels)

    def residual(self, before: int, after: int, *, up: bool = False, down: bool = False) -> ResidualBlock:
        """A residual block that takes the time embedding, from `before` channels to `after`."""
        return ResidualBlock(
            before,
            after,
            embed_width=4 * self.channels,
            scale_shift=self.scale_shift,
            dropout=self.dropout,
            up=up,
            down=down,
            groups=self.groups,
            eps=1e-5,
            zero_init=True,
        )

    def attend(self, channels: int) -> nn.Module:
        """The attention block for this many channels."""
        return MultiHeadSpatialAttention(channels, self.heads_for(channels), groups=self.groups, backend=self.attention_backend)


class UNetEncoder(nn.Module):
    """Subclasses add what comes after the middle, and call the parts in `forward`.

    Args:
        config: its shape.
        in_channels: of the whole input.
        vector_width: width of a conditioning vector that is added to the time embedding; None = takes none.
    """

    def __init__(self, config: UNetEncoderConfig, in_channels: int, vector_width: int | None = None) -> None:
        super().__init__()
        self.config, self.in_channels = config, in_channels
        embed_width = 4 * config.channels
        self.time_embed = _mlp(config.channels, embed_width)
        self.vector_embed = None if vector_width is None else _mlp(vector_width, embed_width)

        is_residual = config.resample == "residual"
        width = config.channels
        self.input_blocks = nn.ModuleList([UNetBlock([nn.Conv2d(in_channels, width, 3, padding=1)])])
        skips = [width]
        for level, (multiplier, count) in enumerate(zip(config.multipliers, config.blocks_of_levels, strict=True)):
            if level > 0:
                down = config.residual(width, width, down=True) if is_residual else Downsample(width, asymmetric_pad=False)
                self.input_blocks.append(UNetBlock([down]))
                skips.append(width)
            for _ in range(count):
                parts: list[nn.Module] = [config.residual(width, multiplier * config.channels)]
                width = multiplier * config.channels
                if 2**level in config.attention:
                    parts.append(config.attend(width))
                self.input_blocks.append(UNetBlock(parts))
                skips.append(width)
        self.skip_channels = tuple(skips)  # of the skip connections

        attention = [config.attend(width)] if config.middle_attention else []
        self.middle_block = UNetBlock([config.residual(width, width), *attention, config.residual(width, width)])

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return next(self.parameters()).dtype

    def embed(self, network_time: Tensor, vector: Tensor | None = None) -> Tensor:
        """The embedding (B, E) of the network_time (B,), plus that of the vector if the network takes one."""
        emb: Tensor = self.time_embed(time_embedding(network_time, self.config.channels).to(self.dtype))
        if self.vector_embed is not None and vector is not None:
            emb = emb + self.vector_embed(vector.to(self.dtype))
        return emb

    def descend(
        self, x: Tensor, emb: Tensor, tokens: Tensor | None = None, token_mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The middle's output, and the output of each encoder block for the skip connections."""
        h, skips = x.to(self.dtype), []
        for block in self.input_blocks:
            h = self.run(block, h, emb, tokens, token_mask)
            skips.append(h)
        return self.run(self.middle_block, h, emb, tokens, token_mask), skips

    def run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        """A block's output, with activation checkpointing in training if the config enables it."""
        if self.config.checkpointing and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        else:
            out = block(*inputs)
        return out


class UNetBlock(nn.Sequential):
    """Modules in sequence; residual blocks also get the embedding (B, E), and transformers the tokens."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__(*parts)

    def forward(  # type: ignore[override]  # more than nn.Sequential hands on
        self, h: Tensor, emb: Tensor, tokens: Tensor | None, token_mask: Tensor | None
    ) -> Tensor:
        for module in self:
            if isinstance(module, ResidualBlock):
                h = module(h, emb)
            elif isinstance(module, SpatialTransformer):
                h = module(h, tokens, token_mask)
            else:
                h = module(h)
        return h


def _mlp(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, out), nn.SiLU(), nn.Linear(out, out))
