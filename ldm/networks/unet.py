"""The UNet of the latent diffusion family. B batch, C channels, H W size, E width of the time embedding, S tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.core.condition import Condition
from ldm.core.errors import UserError, unknown
from ldm.core.family import kind
from ldm.networks.attention.attend import BACKENDS
from ldm.networks.blocks.norm import group_norm, groups_for
from ldm.networks.blocks.resample import Downsample, Upsample
from ldm.networks.blocks.residual import ResidualBlock
from ldm.networks.blocks.spatial_attention import MultiHeadSpatialAttention
from ldm.networks.blocks.transformer import SpatialTransformer
from ldm.networks.blocks.zero import zeroed
from ldm.networks.config import DenoiserNetworkConfig
from ldm.networks.embed import time_embedding


@kind("unet")
@dataclass(frozen=True, kw_only=True, slots=True)
class UNetConfig(DenoiserNetworkConfig):
    """Rombach et al. 2022, after Dhariwal & Nichol 2021. Exactly one of heads and head_width must be given.

    Attributes:
        channels: at full size; the time embedding is 4 times as wide.
        multipliers: channels of each level, in units of `channels`; each level but the first halves the picture.
        blocks: residual blocks a level on the way down (one more on the way up), one number or one a level.
        attention: at which reductions of the picture (1 = full size, 2, 4, ...) there is attention. The middle always has it.
        heads: attention heads everywhere, or
        head_width: their width, so that wider levels have more heads.
        transformer_depth: transformer blocks in each attention; 0 = one plain self-attention, as in the unconditional models.
        context_width: width of the condition's tokens, for cross-attention; None = takes no tokens.
        vector_width: width of the condition's vector; None = takes none.
        scale_shift: the embedding scales and shifts the residual blocks' norms, instead of being added.
        resample: how levels change size: by a convolution, or within a residual block.
        dropout: in the residual blocks.
        checkpointing: recomputes activations in the backward pass: less memory, about a third more time.
        attention_backend: see `ldm.networks.attention.attend`.
    """

    channels: int
    multipliers: tuple[int, ...]
    blocks: int | tuple[int, ...] = 2
    attention: tuple[int, ...] = (4, 2, 1)
    heads: int | None = None
    head_width: int | None = None
    transformer_depth: int = 1
    context_width: int | None = None
    vector_width: int | None = None
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
                f"blocks must be one number, or one a level ({len(self.multipliers)} levels), all at least 1; got {self.blocks}"
            )
        if any(ratio < 1 or ratio & (ratio - 1) for ratio in self.attention):
            raise UserError(f"attention names reductions of the picture: 1, 2, 4, 8, ...; got {self.attention}")
        if self.transformer_depth < 0:
            raise UserError(f"transformer_depth must be at least 0, got {self.transformer_depth}")
        if self.context_width is not None and self.transformer_depth == 0:
            raise UserError("context_width needs transformer_depth of at least 1: plain attention blocks cannot read tokens")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.resample not in ("conv", "residual"):
            raise unknown("resample", self.resample, ("conv", "residual"))
        if self.attention_backend not in BACKENDS:
            raise unknown("attention backend", self.attention_backend, BACKENDS)
        if (self.heads is None) == (self.head_width is None):
            raise UserError(f"give exactly one of heads and head_width, got heads={self.heads}, head_width={self.head_width}")
        for level, multiplier in enumerate(self.multipliers):
            if 2**level in self.attention or level == len(self.multipliers) - 1:
                self.heads_for(multiplier * self.channels)

    @property
    def blocks_of_levels(self) -> tuple[int, ...]:
        """Residual blocks of each level on the way down."""
        return (self.blocks,) * len(self.multipliers) if isinstance(self.blocks, int) else tuple(self.blocks)

    @property
    def ratio(self) -> int:
        """Height and width must be divisible by this."""
        return 2 ** (len(self.multipliers) - 1)

    def heads_for(self, channels: int) -> int:
        """Number of attention heads where there are so many channels."""
        divisor = self.heads if self.heads is not None else self.head_width
        assert divisor is not None
        if divisor < 1 or channels % divisor:
            name = "heads" if self.heads is not None else "head_width"
            raise UserError(f"{name} {divisor} does not divide the {channels} channels of a level with attention")
        return divisor if self.heads is not None else channels // divisor

    def build(self, in_channels: int, out_channels: int) -> UNet:
        return UNet(self, in_channels, out_channels)


class UNet(nn.Module):
    """Starts as the zero function, since its last convolution does. See UNetConfig.

    Args:
        config: its shape.
        in_channels: of x and the condition's concat together.
        out_channels: of the output.
    """

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.config, self.in_channels = config, in_channels
        embed_width = 4 * config.channels
        groups = groups_for(config.channels)  # one number for all levels, as other implementations have it
        self.time_embed = _mlp(config.channels, embed_width)
        self.vector_embed = None if config.vector_width is None else _mlp(config.vector_width, embed_width)

        def residual(before: int, after: int, *, up: bool = False, down: bool = False) -> ResidualBlock:
            return ResidualBlock(
                before,
                after,
                embed_width=embed_width,
                scale_shift=config.scale_shift,
                dropout=config.dropout,
                up=up,
                down=down,
                groups=groups,
                eps=1e-5,
                zero_init=True,
            )

        def attention(width: int) -> nn.Module:
            heads, backend = config.heads_for(width), config.attention_backend
            if config.transformer_depth == 0:
                return MultiHeadSpatialAttention(width, heads, groups=groups, backend=backend)
            return SpatialTransformer(
                width, heads, depth=config.transformer_depth, context_width=config.context_width, groups=groups, backend=backend
            )

        is_residual = config.resample == "residual"
        width = config.channels
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(in_channels, width, 3, padding=1)])])
        left = [width]  # channels of what the way down leaves for the way up
        for level, (multiplier, count) in enumerate(zip(config.multipliers, config.blocks_of_levels, strict=True)):
            if level > 0:
                down = residual(width, width, down=True) if is_residual else Downsample(width, asymmetric_pad=False)
                self.input_blocks.append(Stage([down]))
                left.append(width)
            for _ in range(count):
                parts: list[nn.Module] = [residual(width, multiplier * config.channels)]
                width = multiplier * config.channels
                if 2**level in config.attention:
                    parts.append(attention(width))
                self.input_blocks.append(Stage(parts))
                left.append(width)

        self.middle_block = Stage([residual(width, width), attention(width), residual(width, width)])

        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(config.multipliers))):
            count = config.blocks_of_levels[level] + 1
            for index in range(count):
                parts = [residual(width + left.pop(), config.multipliers[level] * config.channels)]
                width = config.multipliers[level] * config.channels
                if 2**level in config.attention:
                    parts.append(attention(width))
                if level > 0 and index == count - 1:
                    parts.append(residual(width, width, up=True) if is_residual else Upsample(width))
                self.output_blocks.append(Stage(parts))

        last = zeroed(nn.Conv2d(width, out_channels, 3, padding=1))
        self.out = nn.Sequential(group_norm(width, groups=groups, eps=1e-5), nn.SiLU(), last)

    def forward(self, x: Tensor, clock: Tensor, condition: Condition) -> Tensor:
        """The raw output F.

        Args:
            x: (B, C, H, W); with the condition's concat, in_channels together. H and W divisible by the config's ratio.
            clock: (B,) real numbers, by convention 0 to num_steps - 1.
            condition: a vector of vector_width and tokens of context_width, exactly if the config has these widths.

        Returns:
            (B, out_channels, H, W), in the weights' dtype, or autocast's.

        Raises:
            UserError: another size or number of channels; a condition that the network was not built for, or that it misses.
        """
        if condition.concat is not None:
            x = torch.cat([x, condition.concat.to(x.dtype)], dim=1)
        self._check(x, condition)
        dtype = next(self.parameters()).dtype
        emb = self.time_embed(time_embedding(clock, self.config.channels).to(dtype))
        if self.vector_embed is not None and condition.vector is not None:
            emb = emb + self.vector_embed(condition.vector.to(dtype))

        tokens = None if condition.tokens is None else condition.tokens.to(dtype)
        told = emb, tokens, condition.token_mask
        h = x.to(dtype)
        left = []
        for stage in self.input_blocks:
            h = self._run(stage, h, *told)
            left.append(h)
        h = self._run(self.middle_block, h, *told)
        for stage in self.output_blocks:
            h = self._run(stage, torch.cat([h, left.pop()], dim=1), *told)
        return self.out(h)

    def _run(self, stage: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.config.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(stage, *inputs, use_reentrant=False)
        return stage(*inputs)

    def _check(self, x: Tensor, condition: Condition) -> None:
        height, width = x.shape[2:]
        ratio = self.config.ratio
        if height % ratio or width % ratio or not height or not width:
            raise UserError(
                f"this network takes heights and widths that are multiples of {ratio} ({ratio}, {2 * ratio}, ...), not {height} x {width}"
            )
        if x.shape[1] != self.in_channels:
            beside = "" if condition.concat is None else f", {condition.concat.shape[1]} of them from the condition"
            raise UserError(f"this network takes {self.in_channels} input channels, not {x.shape[1]}{beside}")
        _fits("tokens", condition.tokens, "context_width", self.config.context_width)
        _fits("vector", condition.vector, "vector_width", self.config.vector_width)


class Stage(nn.ModuleList):
    """Modules in a row, of which each kind takes what it reads of the embedding (B, E) and the tokens."""

    def forward(self, h: Tensor, emb: Tensor, tokens: Tensor | None, token_mask: Tensor | None) -> Tensor:
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


def _fits(name: str, told: Tensor | None, key: str, width: int | None) -> None:
    if told is None and width is not None:
        raise UserError(f"condition.{name} is missing, but this network has {key} {width}")
    if told is not None and width is None:
        raise UserError(f"condition.{name} has width {told.shape[-1]}, but this network was built without {key}")
    if told is not None and told.shape[-1] != width:
        raise UserError(f"condition.{name} has width {told.shape[-1]}, but this network has {key} {width}")
