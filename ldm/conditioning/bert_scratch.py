"""LDM's text encoder: BERT's word pieces into a transformer trained together with the denoiser (Rombach et al. 2022, sec. 4.3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.conditioning.captions import blank_captions, captions_of, padded, word_pieces
from ldm.conditioning.conditioner import Conditioner, ConditionerConfig, context_of, needs
from ldm.conditioning.inputs import ConditionInputs
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.family import kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORDS = 30522  # BERT's vocabulary


@kind("bert_scratch")
@dataclass(frozen=True, kw_only=True)
class BertScratchConfig(ConditionerConfig):
    """
    Attributes:
        width: of the encoder; a projection follows if the network attends to another width. LDM: 1280, 640 or 512.
        depth: layers. LDM: 32.
        heads, head_width: of its attention.
        max_tokens: longer captions are cut; [CLS] and [SEP] count.
        is_masked: whether padding is kept from attention. LDM's published weights were trained with False.
        dropout: of embeddings, attention's output and feed-forward.
    """

    width: int = 512
    depth: int = 8
    heads: int = 8
    head_width: int = 64
    max_tokens: int = 77
    is_masked: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "depth", "heads", "head_width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_tokens < 2:
            raise UserError(f"max_tokens must be at least 2, got {self.max_tokens}")

    def fitted(self, *, label_names: tuple[str, ...], map_names: tuple[str, ...], has: frozenset[str]) -> ConditionerConfig:
        """See `ConditionerConfig.fitted`."""
        needs("bert_scratch", "captions", has)
        return self

    def build(self, *, context_width: int | None, latent_channels: int) -> BertScratch:
        """See `ConditionerConfig.build`."""
        return BertScratch(self, context_of("bert_scratch", context_width))


class BertScratch(Conditioner):
    """Tokens of the last layer, normalised; "nothing" = the empty caption."""

    reads_text = True
    uses_tokens = True

    def __init__(self, config: BertScratchConfig, context_width: int) -> None:
        super().__init__(config.drop)
        self.config = config
        self.encoder = TextEncoder(config)
        self.projection = nn.Identity() if context_width == config.width else nn.Linear(config.width, context_width)
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def forward(self, inputs: ConditionInputs, latent_size: tuple[int, int]) -> Condition:
        """Tokens (B, max_tokens, context width) and, if masked, their mask."""
        if self._tokenizer is None:
            from ldm.pretrained import bert_tokenizer

            self._tokenizer = bert_tokenizer()
        rows = [word_pieces(self._tokenizer, caption, self.config.max_tokens) for caption in captions_of(inputs)]
        pieces, mask = padded(rows, self.config.max_tokens)  # BERT's [PAD] is 0
        token_mask = mask.to(self.device) if self.config.is_masked else None
        return Condition(tokens=self.projection(self.encoder(pieces.to(self.device), token_mask)), token_mask=token_mask)

    def blank(self, inputs: ConditionInputs, rows: Tensor) -> ConditionInputs:
        """Caption ""."""
        return blank_captions(inputs, rows)


class TextEncoder(nn.Module):
    """Pre-norm transformer with learned positions. Letters: B batch, L tokens, N heads, D head width."""

    def __init__(self, config: BertScratchConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(WORDS, config.width)
        self.position_embedding = nn.Embedding(config.max_tokens, config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, pieces: Tensor, token_mask: Tensor | None) -> Tensor:
        """(B, L) int64 and (B, L) bool (True = attend) -> (B, L, width)."""
        positions = torch.arange(pieces.shape[1], device=pieces.device)
        x = self.dropout(self.token_embedding(pieces) + self.position_embedding(positions))
        for layer in self.layers:
            x = layer(x, token_mask)
        return self.norm(x)


class Layer(nn.Module):
    """x + attention(norm x), then x + feed-forward(norm x)."""

    def __init__(self, config: BertScratchConfig) -> None:
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
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=None if token_mask is None else token_mask[:, None, None])
        x = x + self.dropout(self.to_out(rearrange(attended, "B N L D -> B L (N D)")))
        return x + self.dropout(self.narrow(F.gelu(self.widen(self.feed_forward_norm(x)))))
