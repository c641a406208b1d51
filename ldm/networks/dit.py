"""The diffusion transformer. B batch, C channels, H W size of the latent, L tokens, D width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.core.condition import Condition
from ldm.core.errors import UserError, unknown
from ldm.core.family import kind
from ldm.networks.attention.attend import BACKENDS
from ldm.networks.blocks.dit_block import DiTBlock, FinalLayer
from ldm.networks.config import DenoiserNetworkConfig, check_condition
from ldm.networks.embed import time_embedding
from ldm.networks.positions import rotary_angles, sin_cos_table

Positions = Literal["sin_cos", "rotary"]
TIME_WIDTH = 256  # of the sinusoidal embedding, as published


@kind("dit")
@dataclass(frozen=True, kw_only=True)
class DiTConfig(DenoiserNetworkConfig):
    """Peebles & Xie 2023. The published network has sin-cos positions, neither qk_norm nor swiglu.

    Attributes:
        width: of a token; divisible by 4 and by the heads.
        depth: blocks.
        heads: of each attention.
        patch: side of the square of latent numbers that is one token.
        mlp_ratio: width of the MLP, in units of `width`; with swiglu two thirds of it, rounded up to a multiple of 8, so that the number of
            weights stays.
        positions: sin_cos = a fixed table is added; rotary = queries and keys are turned by row and column (RoPE), for several sizes.
        qk_norm: RMSNorm on each head's queries and keys.
        swiglu: a gated MLP.
        context_width: width of the condition's tokens, for cross-attention; None = takes no tokens.
        vector_width: width of the condition's vector; None = takes none. One of the network's own width is added to the time embedding as
            it is, as published; another goes through a linear map.
        frequency_shift: frequencies of the time embedding are 10,000^(-i / (128 - frequency_shift)): 0 as published, 1 in diffusers.
        mlp_eps: of the norm before the MLP: 1e-6 as published, 1e-5 in diffusers.
        checkpointing: recomputes activations in the backward pass: less memory, about a third more time.
        attention_backend: see `ldm.networks.attention.attend`.
    """

    width: int
    depth: int
    heads: int
    patch: int = 2
    mlp_ratio: float = 4.0
    positions: Positions = "sin_cos"
    qk_norm: bool = False
    swiglu: bool = False
    context_width: int | None = None
    vector_width: int | None = None
    frequency_shift: int = 0
    mlp_eps: float = 1e-6
    checkpointing: bool = False
    attention_backend: str = "auto"

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch"):
            if getattr(self, name) < 1:
                raise UserError(f"a DiT's {name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads or self.width % 4:
            raise UserError(f"a DiT's width must be divisible by its heads and by 4, got {self.width} and {self.heads} heads")
        if self.positions not in get_args(Positions):
            raise unknown("positions", self.positions, get_args(Positions))
        if self.positions == "rotary" and self.width // self.heads % 4:
            raise UserError(f"rotary positions need heads of a width that is divisible by 4, got {self.width // self.heads}")
        if not self.mlp_ratio > 0:
            raise UserError(f"a DiT's mlp_ratio must be above 0, got {self.mlp_ratio}")
        if self.frequency_shift not in (0, 1):
            raise UserError(f"frequency_shift is 0 (published) or 1 (diffusers), got {self.frequency_shift}")
        for name in ("context_width", "vector_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, or null, got {value}")
        if self.attention_backend not in BACKENDS:
            raise unknown("attention backend", self.attention_backend, BACKENDS)

    @property
    def size_multiple(self) -> int:
        """See `DenoiserNetworkConfig`."""
        return self.patch

    @property
    def hidden(self) -> int:
        """Width of the MLP."""
        full = self.mlp_ratio * self.width
        return -(-int(full * 2 / 3) // 8) * 8 if self.swiglu else int(full)

    def build(self, in_channels: int, out_channels: int) -> DiT:
        """See `DenoiserNetworkConfig.build`."""
        return DiT(self, in_channels, out_channels)


class DiT(nn.Module):
    """Starts as the zero function, since its last layer does. See DiTConfig.

    Args:
        config: its shape.
        in_channels: of x and the condition's concat together.
        out_channels: of the output.
    """

    def __init__(self, config: DiTConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.config, self.in_channels, self.out_channels = config, in_channels, out_channels
        self.patch_embed = nn.Conv2d(in_channels, config.width, config.patch, stride=config.patch)
        nn.init.xavier_uniform_(self.patch_embed.weight.flatten(1))  # as of a linear map, as published
        nn.init.zeros_(self.patch_embed.bias)  # type: ignore[arg-type]  # it has one
        self.time_embed = nn.Sequential(nn.Linear(TIME_WIDTH, config.width), nn.SiLU(), nn.Linear(config.width, config.width))
        for layer in (self.time_embed[0], self.time_embed[2]):
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
        is_foreign = config.vector_width not in (None, config.width)
        self.vector_embed = nn.Linear(config.vector_width or 0, config.width) if is_foreign else None
        self.blocks = nn.ModuleList(self._block() for _ in range(config.depth))
        self.final = FinalLayer(config.width, config.patch**2 * out_channels)

    def _block(self) -> DiTBlock:
        config = self.config
        block = DiTBlock(
            config.width,
            config.heads,
            config.hidden,
            context_width=config.context_width,
            qk_norm=config.qk_norm,
            swiglu=config.swiglu,
            mlp_eps=config.mlp_eps,
            backend=config.attention_backend,
        )
        for part in (block.attn, block.mlp):
            for layer in part.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)
        return block

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.patch_embed.weight.dtype

    def forward(self, x: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        """The raw output F.

        Args:
            x: (B, C, H, W); with the condition's concat, in_channels together. H and W divisible by the patch.
            network_time: (B,) real numbers, by convention 0 to num_steps - 1.
            condition: has a vector (of vector_width) and tokens (of context_width) if and only if the config has these widths.

        Returns:
            (B, out_channels, H, W), in the weights' dtype, or autocast's.

        Raises:
            UserError: another size or number of channels; a condition that the network was not built for, or a missing one.
        """
        x = check_condition(self.config, x, self.in_channels, condition)
        rows, columns = (side // self.config.patch for side in x.shape[2:])
        h = rearrange(self.patch_embed(x.to(self.dtype)), "b d h w -> b (h w) d")
        angles = None
        if self.config.positions == "rotary":
            angles = rotary_angles(rows, columns, self.config.width // self.config.heads, x.device)
        else:
            h = h + sin_cos_table(rows, columns, self.config.width, x.device).to(h.dtype)
        c: Tensor = self.time_embed(time_embedding(network_time, TIME_WIDTH, shift=self.config.frequency_shift).to(self.dtype))
        if condition.vector is not None:
            vector = condition.vector.to(self.dtype)
            c = c + (vector if self.vector_embed is None else self.vector_embed(vector))
        tokens = None if condition.tokens is None else condition.tokens.to(self.dtype)
        for block in self.blocks:
            h = self._run(block, h, c, tokens, condition.token_mask, angles)
        out: Tensor = rearrange(
            self.final(h, c),
            "b (h w) (p q c) -> b c (h p) (w q)",
            h=rows,
            p=self.config.patch,
            q=self.config.patch,
        )
        return out

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        """A block's output, with activation checkpointing in training if the config enables it."""
        if self.config.checkpointing and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        else:
            out = block(*inputs)
        return out
