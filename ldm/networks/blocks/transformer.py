"""A transformer over the pixels of a feature map. B batch, C channels, H W size, L = H W queries, S tokens, N heads, D their width."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.networks.attention.attend import attend
from ldm.networks.blocks.norm import group_norm
from ldm.networks.blocks.pointwise import pointwise
from ldm.networks.blocks.zero import zeroed


class SpatialTransformer(nn.Module):
    """Pixels attend to each other and to tokens; added to the input: (B, C, H, W) -> same. Starts as the identity.

    Args:
        channels: of input and output.
        heads: must divide the channels.
        depth: number of transformer blocks.
        context_width: width of the tokens; None = no cross-attention.
        groups: largest number of groups of the norm.
        backend: see `attend`.

    Source: Rombach et al. 2022, sec. 3.3 and appendix E.2.1.
    """

    def __init__(
        self, channels: int, heads: int, *, depth: int = 1, context_width: int | None = None, groups: int = 32, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups=groups, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, heads, context_width, backend) for _ in range(depth))
        self.proj_out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, tokens: Tensor | None = None, token_mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W), tokens (B, S, context_width), token_mask (B, S) bool with True = attend -> (B, C, H, W)."""
        h = self.norm(x).contiguous(memory_format=torch.channels_last)  # otherwise each layer norm below would make this copy
        h = rearrange(pointwise(self.proj_in, h), "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            h = block(h, tokens, token_mask)
        return x + pointwise(self.proj_out, rearrange(h, "b (h w) c -> b c h w", h=x.shape[2]))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention if there is a context, gated feed-forward; each after a layer norm, and added: (B, L, C) -> same."""

    def __init__(self, width: int, heads: int, context_width: int | None, backend: str) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = TokenAttention(width, width, heads, backend)
        self.norm2 = None if context_width is None else nn.LayerNorm(width)
        self.attn2 = None if context_width is None else TokenAttention(width, context_width, heads, backend)
        self.norm3 = nn.LayerNorm(width)
        self.ff = GatedFeedForward(width)

    def forward(self, x: Tensor, tokens: Tensor | None, token_mask: Tensor | None) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        if self.norm2 is not None and self.attn2 is not None:
            assert tokens is not None, "this block was built with a context"
            x = x + self.attn2(self.norm2(x), tokens, token_mask)
        out: Tensor = self.ff(self.norm3(x))
        return x + out


class TokenAttention(nn.Module):
    """Queries from x (B, L, width), keys and values from source (B, S, source_width) -> (B, L, width)."""

    def __init__(self, width: int, source_width: int, heads: int, backend: str) -> None:
        super().__init__()
        assert width % heads == 0, f"{heads} heads do not divide a width of {width}"
        self.heads, self.backend = heads, backend
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source_width, width, bias=False)
        self.to_v = nn.Linear(source_width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        parts = self.to_q(x), self.to_k(source), self.to_v(source)
        q, k, v = (rearrange(part, "b l (n d) -> b n l d", n=self.heads) for part in parts)
        mixed = attend(q, k, v, mask=mask, backend=self.backend)
        out: Tensor = self.to_out(rearrange(mixed, "b n l d -> b l (n d)"))
        return out


class GatedFeedForward(nn.Module):
    """out(a * gelu(b)) with (a, b) = proj(x), each 4 times as wide as x: (B, L, width) -> same. Source: Shazeer 2020 (GEGLU)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.proj(x).chunk(2, dim=-1)
        out: Tensor = self.out(a * F.gelu(b))
        return out
