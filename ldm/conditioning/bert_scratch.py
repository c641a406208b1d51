"""LDM's text encoder: BERT's word pieces into a transformer trained together with the denoiser (Rombach et al. 2022, sec. 4.3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ldm.conditioning.captions import TextConditioner, padded, word_pieces
from ldm.conditioning.conditioner import context_of
from ldm.conditioning.transformer import TokenTransformer, TransformerConfig, projection
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.family import kind
from ldm.core.tokenizer import Tokenizer
from ldm.data.facts import CAPTIONS

WORDS = 30522  # BERT's vocabulary


@kind("bert_scratch")
@dataclass(frozen=True, kw_only=True)
class BertScratchConfig(TransformerConfig):
    """LDM: width 1280 or 640, depth 32.

    Attributes:
        max_tokens: longer captions are cut; [CLS] and [SEP] count.
        is_masked: whether padding is kept from attention. LDM's published weights were trained with False.
    """

    reads: ClassVar[str] = CAPTIONS
    max_tokens: int = 77
    is_masked: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 2:
            raise UserError(f"max_tokens must be at least 2, got {self.max_tokens}")

    def build(self, *, context_width: int | None, latent_channels: int) -> BertScratch:
        """See `ConditionerConfig.build`."""
        return BertScratch(self, context_of("bert_scratch", context_width))


class BertScratch(TextConditioner):
    """Tokens of the last layer, normalised; the null input is the empty caption."""

    def __init__(self, config: BertScratchConfig, context_width: int) -> None:
        super().__init__(config)
        self.config = config
        self.encoder = TokenTransformer(config, WORDS, config.max_tokens)
        self.projection = projection(config.width, context_width)
        self._tokenizer: Tokenizer | None = None

    def forward(self, value: tuple[str, ...], latent_size: tuple[int, int]) -> Condition:
        """Tokens (B, max_tokens, context width) and, if masked, their mask."""
        pieces, mask = self._pieces(value)
        token_mask = mask.to(self.device) if self.config.is_masked else None
        return Condition(tokens=self.projection(self.encoder(pieces.to(self.device), token_mask)), token_mask=token_mask)

    def _pieces(self, captions: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """(B, max_tokens) int64 and bool: word pieces, and where they are. On the meta device no vocabulary is needed."""
        length = self.config.max_tokens
        if self.device.type == "meta":
            return torch.zeros(len(captions), length, dtype=torch.long), torch.ones(len(captions), length, dtype=torch.bool)
        return padded([word_pieces(self._loaded_tokenizer(), caption, length) for caption in captions], length)  # BERT's [PAD] is 0

    def _loaded_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            from ldm.pretrained import BertTokenizer

            self._tokenizer = BertTokenizer()
        return self._tokenizer

    def tokens_read(self) -> tuple[Tokenizer, int] | None:
        """See `TextConditioner.tokens_read`."""
        return None if self.device.type == "meta" else (self._loaded_tokenizer(), self.config.max_tokens)

    @property
    def num_unused(self) -> int:
        """See `Conditioner.num_unused`."""
        return self.encoder.num_unused
