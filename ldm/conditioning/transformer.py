"""The transformer that reads tokens, trained together with the denoiser (Rombach et al. 2022, sec. 4.3.1 and appendix E.2.1)."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.conditioning.conditioner import ConditionerConfig
from ldm.core.embedding import embedding
from ldm.core.errors import UserError
from ldm.networks.attention.attend import attend


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(ConditionerConfig, abc.ABC):
    """What conditioners with such a transformer share.

    Attributes:
        width: of the encoder; a projection follows if the network attends to another width.
        depth: layers.
        heads, head_width: of its attention.
        dropout: of embeddings, attention's output and feed-forward.
    """

    free: ClassVar[tuple[str, ...]] = (*ConditionerConfig.free, "dropout")
    width: int = 512
    depth: int = 8
    heads: int = 8
    head_width: int = 64
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "depth", "heads", "head_width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be a share from 0 to less than 1, got {self.dropout}")


class TokenTransformer(nn.Module):
    """Pre-norm transformer with learned positions. Letters: B batch, L tokens, N heads, D head width.

    Args:
        config: its shape.
        vocabulary: tokens are 0 to vocabulary - 1.
        length: most tokens.
    """

    def __init__(self, config: TransformerConfig, vocabulary: int, length: int) -> None:
        super().__init__()
        self.token_embedding = embedding(vocabulary, config.width, std=0.02)
        self.position_embedding = embedding(length, config.width, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor, token_mask: Tensor | None) -> Tensor:
        """(B, L) int64 and (B, L) bool (True = attend) -> (B, L, width)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        for layer in self.layers:
            x = layer(x, token_mask)
        out: Tensor = self.norm(x)
        return out

    @property
    def num_unused(self) -> int:
        """Parameters of the output layer to the vocabulary, which the published encoders carry and nothing reads: we have none."""
        vocabulary, width = self.token_embedding.weight.shape
        return vocabulary * width + vocabulary


class Layer(nn.Module):
    """x + attention(norm x), then x + feed-forward(norm x)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width)
        self.to_q = nn.Linear(config.width, inner, bias=False)
        self.to_k = nn.Linear(config.width, inner, bias=False)
        self.to_v = nn.Linear(config.width, inner, bias=False)
        self.to_out = nn.Linear(inner, config.width)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.widen = nn.Linear(config.width, 4 * config.width)
        self.narrow = nn.Linear(4 * config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, token_mask: Tensor | None) -> Tensor:
        """(B, L, width) -> the same."""
        h = self.attention_norm(x)
        q, k, v = (rearrange(to(h), "B L (N D) -> B N L D", N=self.heads) for to in (self.to_q, self.to_k, self.to_v))
        attended = attend(q, k, v, mask=token_mask)
        x = x + self.dropout(self.to_out(rearrange(attended, "B N L D -> B L (N D)")))
        fed: Tensor = self.dropout(self.narrow(F.gelu(self.widen(self.feed_forward_norm(x)))))
        return x + fed


def projection(width: int, context_width: int) -> nn.Module:
    """From a transformer's width to the one that the network attends to; nothing where they are one."""
    return nn.Identity() if context_width == width else nn.Linear(width, context_width)
