"""A UNet's way down and its middle: what denoisers and classifiers share. B batch, C channels, H W size, E embedding's width, S tokens."""

from __future__ import annotations

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
        multipliers: channels of each level, in units of `channels`; each level but the first halves the picture.
        blocks: residual blocks a level on the way down, one number or one a level.
        attention: at which reductions of the picture (1 = full size, 2, 4, ...) there is attention.
        middle_attention: whether there is attention between the two residual blocks of the middle.
        heads: attention heads everywhere, or
        head_width: their width, so that wider levels have more heads. Without any attention, neither.
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
                f"blocks must be one number, or one a level ({len(self.multipliers)} levels), all at least 1; got {self.blocks}"
            )
        if any(ratio < 1 or ratio & (ratio - 1) for ratio in self.attention):
            raise UserError(f"attention names reductions of the picture: 1, 2, 4, 8, ...; got {self.attention}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.resample not in ("conv", "residual"):
            raise unknown("resample", self.resample, ("conv", "residual"))
        if self.attention_backend not in BACKENDS:
            raise unknown("attention backend", self.attention_backend, BACKENDS)
        if (self.heads is not None) + (self.head_width is not None) != self.attends:
            asked = "exactly one of heads and head_width" if self.attends else "neither heads nor head_width: nothing here attends"
            raise UserError(f"give {asked}, got heads={self.heads}, head_width={self.head_width}")
        for level, multiplier in enumerate(self.multipliers):
            if 2**level in self.attention or (self.middle_attention and level == len(self.multipliers) - 1):
                self.heads_for(multiplier * self.channels)

    @property
    def attends(self) -> bool:
        """Whether there is attention anywhere."""
        return self.middle_attention or any(2**level in self.attention for level in range(len(self.multipliers)))

    @property
    def blocks_of_levels(self) -> tuple[int, ...]:
        """Residual blocks of each level on the way down."""
        return (self.blocks,) * len(self.multipliers) if isinstance(self.blocks, int) else tuple(self.blocks)

    @property
    def size_multiple(self) -> int:
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

    @property
    def groups(self) -> int:
        """Of the norms: one number for all levels, as other implementations have it."""
        return groups_for(self.channels)

    def residual(self, before: int, after: int, *, up: bool = False, down: bool = False) -> ResidualBlock:
        """A residual block from so many channels to so many, told the time."""
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
        """What pixels attend by where there are so many channels."""
        return MultiHeadSpatialAttention(channels, self.heads_for(channels), groups=self.groups, backend=self.attention_backend)


class UNetEncoder(nn.Module):
    """Heirs add what comes after the middle, and call the parts in `forward`.

    Args:
        config: its shape.
        in_channels: of all that it sees.
        vector_width: of a vector that it is told beside the time; None = takes none.
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
        left = [width]
        for level, (multiplier, count) in enumerate(zip(config.multipliers, config.blocks_of_levels, strict=True)):
            if level > 0:
                down = config.residual(width, width, down=True) if is_residual else Downsample(width, asymmetric_pad=False)
                self.input_blocks.append(UNetBlock([down]))
                left.append(width)
            for _ in range(count):
                parts: list[nn.Module] = [config.residual(width, multiplier * config.channels)]
                width = multiplier * config.channels
                if 2**level in config.attention:
                    parts.append(config.attend(width))
                self.input_blocks.append(UNetBlock(parts))
                left.append(width)
        self.left_channels = tuple(left)  # of what the stages of the way down leave

        attends = [config.attend(width)] if config.middle_attention else []
        self.middle_block = UNetBlock([config.residual(width, width), *attends, config.residual(width, width)])

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def embed(self, network_time: Tensor, vector: Tensor | None = None) -> Tensor:
        """(B, E) of the network_time (B,), and of a vector if the network takes one."""
        emb = self.time_embed(time_embedding(network_time, self.config.channels).to(self.dtype))
        if self.vector_embed is not None and vector is not None:
            emb = emb + self.vector_embed(vector.to(self.dtype))
        return emb

    def descend(
        self, x: Tensor, emb: Tensor, tokens: Tensor | None = None, token_mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The middle's output, and what each stage of the way down left."""
        h, left = x.to(self.dtype), []
        for stage in self.input_blocks:
            h = self.run(stage, h, emb, tokens, token_mask)
            left.append(h)
        return self.run(self.middle_block, h, emb, tokens, token_mask), left

    def run(self, stage: nn.Module, *inputs: Tensor | None) -> Tensor:
        """A stage, by checkpointing in training where the config says so."""
        if self.config.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(stage, *inputs, use_reentrant=False)
        return stage(*inputs)

    def check(self, x: Tensor, beside: str = "") -> None:
        """Refuses, by UserError, another number of channels than the network's, or a size that it cannot halve; `beside` is added."""
        height, width = x.shape[2:]
        ratio = self.config.size_multiple
        if height % ratio or width % ratio or not height or not width:
            raise UserError(
                f"this network takes heights and widths that are multiples of {ratio} ({ratio}, {2 * ratio}, ...), not {height} x {width}"
            )
        if x.shape[1] != self.in_channels:
            raise UserError(f"this network takes {self.in_channels} input channels, not {x.shape[1]}{beside}")


class UNetBlock(nn.ModuleList):
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
