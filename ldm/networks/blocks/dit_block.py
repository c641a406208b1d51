"""The blocks of a diffusion transformer. B batch, L tokens of the picture, C width, N heads, S tokens of the condition."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.networks.attention.attend import attend
from ldm.networks.blocks.transformer import TokenAttention
from ldm.networks.blocks.zero import zeroed
from ldm.networks.positions import turned

EPS = 1e-6


class DiTBlock(nn.Module):
    """Self-attention, cross-attention if there is a context, and an MLP, each added: (B, L, C) -> same.

        c -> shift, scale, gate of attention and of MLP                 a linear map of SiLU(c), zero at first: the block is the identity
        x + gate * attention(norm(x) * (1 + scale) + shift)             likewise the MLP; cross-attention has neither, and ends in zeros

    Args:
        width: C.
        heads: must divide the width.
        hidden: width of the MLP.
        context_width: width of the condition's tokens; None = no cross-attention.
        qk_norm: RMSNorm on each head's queries and keys.
        swiglu: the MLP is gated by SiLU, instead of GELU's (tanh) two layers.
        mlp_eps: of the norm before the MLP.
        backend: see `attend`.

    Source: Peebles & Xie 2023, fig. 3 (adaLN-Zero); cross-attention as Chen et al. 2024 (PixArt), sec. 2.3.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        context_width: int | None,
        qk_norm: bool,
        swiglu: bool,
        mlp_eps: float,
        backend: str,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.attn = DiTAttention(width, heads, qk_norm=qk_norm, backend=backend)
        self.cross_norm = None if context_width is None else nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.cross = None if context_width is None else TokenAttention(width, context_width, heads, backend)
        if self.cross is not None:
            zeroed(self.cross.to_out)
        self.norm2 = nn.LayerNorm(width, eps=mlp_eps, elementwise_affine=False)
        self.mlp: nn.Module = SwiGLU(width, hidden) if swiglu else MLP(width, hidden)
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor, tokens: Tensor | None, token_mask: Tensor | None, angles: Tensor | None) -> Tensor:
        """x (B, L, C), c (B, C), tokens (B, S, context_width), angles (L, head width / 2) -> (B, L, C)."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(F.silu(c))[:, None].chunk(6, dim=-1)
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift, angles)
        if self.cross is not None and self.cross_norm is not None:
            assert tokens is not None, "this block was built with a context"
            x = x + self.cross(self.cross_norm(x), tokens, token_mask)
        out: Tensor = x + mlp_gate * self.mlp(self.norm2(x) * (1 + mlp_scale) + mlp_shift)
        return out


class DiTAttention(nn.Module):
    """Among the picture's tokens: (B, L, C) -> same. The rows of `qkv` are ordered (q k v, head, width), as in the published weights."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool, backend: str) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = (nn.RMSNorm(width // heads, eps=EPS) if qk_norm else nn.Identity() for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor | None) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b l (three n d) -> three b n l d", three=3, n=self.heads).unbind()
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if angles is not None:
            q, k = turned(q, angles), turned(k, angles)
        mixed = attend(q, k, v, backend=self.backend)
        out: Tensor = self.proj(rearrange(mixed, "b n l d -> b l (n d)"))
        return out


class MLP(nn.Module):
    """fc2(gelu(fc1(x))), with GELU's tanh approximation: (B, L, C) -> same."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class SwiGLU(nn.Module):
    """fc2(a * silu(b)) with (a, b) = fc1(x): (B, L, C) -> same. Source: Shazeer 2020."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).chunk(2, dim=-1)
        out: Tensor = self.fc2(a * F.silu(b))
        return out


class FinalLayer(nn.Module):
    """norm, shift and scale by c, a linear map, zero at the start: (B, L, C) -> (B, L, out)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.linear = zeroed(nn.Linear(width, out))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.modulation(F.silu(c))[:, None].chunk(2, dim=-1)
        out: Tensor = self.linear(self.norm(x) * (1 + scale) + shift)
        return out
