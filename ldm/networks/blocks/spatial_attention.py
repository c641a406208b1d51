"""Self-attention among the pixels of a feature map. B batch, C channels, H W size, N heads, D width of a head.

The norm's output is converted to channels-last, whatever the model's memory format. Then the queries, keys and values of a pixel are
contiguous in memory, as every fused kernel requires. This costs one copy, or none if the model is channels-last already.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.networks.attention.attend import attend
from ldm.networks.blocks.norm import group_norm
from ldm.networks.blocks.pointwise import pointwise
from ldm.networks.blocks.zero import zeroed


class SpatialSelfAttention(nn.Module):
    """One head over all channels, added to its input: (B, C, H, W) -> same. The published autoencoders' block.

    Args:
        channels: of input and output; also the width of the head.
        groups: largest number of groups of the norm.
        eps: of the norm.
        backend: see `attend`.

    Source: Esser et al. 2021 (VQGAN), whose weights have this layout.
    """

    def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-6, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend
        self.norm = group_norm(channels, groups=groups, eps=eps)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).contiguous(memory_format=torch.channels_last)
        q, k, v = (rearrange(pointwise(part, h), "b d h w -> b 1 (h w) d") for part in (self.q, self.k, self.v))
        mixed = attend(q, k, v, backend=self.backend)
        return x + pointwise(self.proj_out, rearrange(mixed, "b 1 (h w) d -> b d h w", h=x.shape[2]))


class MultiHeadSpatialAttention(nn.Module):
    """Several heads, added to the input: (B, C, H, W) -> same. The block of published UNets without cross-attention.

    Args:
        channels: of input and output.
        heads: must divide the channels.
        groups: largest number of groups of the norm.
        eps: of the norm.
        backend: see `attend`.

    Source: Dhariwal & Nichol 2021. The rows of `qkv` are ordered (head, q k v, width), as in the published weights.
    """

    def __init__(self, channels: int, heads: int, *, groups: int = 32, eps: float = 1e-5, backend: str = "auto") -> None:
        super().__init__()
        assert channels % heads == 0, f"{heads} heads do not divide {channels} channels"
        self.heads, self.backend = heads, backend
        self.norm = group_norm(channels, groups=groups, eps=eps)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).contiguous(memory_format=torch.channels_last)
        q, k, v = rearrange(pointwise(self.qkv, h), "b (n three d) h w -> three b n (h w) d", three=3, n=self.heads).unbind()
        mixed = attend(q, k, v, backend=self.backend)
        return x + pointwise(self.proj_out, rearrange(mixed, "b n (h w) d -> b (n d) h w", h=x.shape[2]))
