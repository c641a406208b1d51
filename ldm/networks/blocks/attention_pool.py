"""A feature map as one vector. B batch, C channels, H W size, L = 1 + H W tokens, N heads, D width of a head."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.networks.attention.attend import attend


class AttentionPool(nn.Module):
    """The map's mean attends to itself and to all pixels, with a learned embedding per position: (B, C, H, W) -> (B, out).

    Args:
        channels: of the map.
        positions: H W, which is fixed.
        heads: must divide the channels.
        out: width of the vector.
        backend: see `attend`.

    Source: Radford et al. 2021 (CLIP), sec. 2.4.
    """

    def __init__(self, channels: int, positions: int, heads: int, out: int, *, backend: str = "auto") -> None:
        super().__init__()
        assert channels % heads == 0, f"{heads} heads do not divide {channels} channels"
        self.heads, self.backend = heads, backend
        self.place = nn.Parameter(torch.randn(1 + positions, channels) / channels**0.5)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        pixels = rearrange(x, "b c h w -> b (h w) c")
        tokens = torch.cat([pixels.mean(1, keepdim=True), pixels], dim=1) + self.place.to(x.dtype)  # (B, L, C)
        parts = self.to_q(tokens[:, :1]), self.to_k(tokens), self.to_v(tokens)
        q, k, v = (rearrange(part, "b l (n d) -> b n l d", n=self.heads) for part in parts)
        out: Tensor = self.to_out(rearrange(attend(q, k, v, backend=self.backend), "b n 1 d -> b (n d)"))
        return out
