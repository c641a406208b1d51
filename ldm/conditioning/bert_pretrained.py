"""A frozen BERT's features of the caption, and a trained projection to the width that the network attends to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ldm.conditioning.captions import padded, word_pieces
from ldm.conditioning.conditioner import ConditionerConfig, context_of
from ldm.conditioning.frozen_text import (
    FrozenText,
    FrozenTextConditioner,
    Pretrained,
    check_cached,
    counted_only,
    load_pretrained,
    moved_model,
)
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.family import kind
from ldm.data.facts import CAPTIONS
from ldm.pretrained.table import TABLE
from ldm.pretrained.text import MINILM, BertEncoder, BertTokenizer, minilm


@kind("bert_pretrained")
@dataclass(frozen=True, kw_only=True)
class BertPretrainedConfig(ConditionerConfig):
    """
    Attributes:
        model: `minilm-l6`, or a folder or hub name of any BERT of transformers that is stored as safetensors.
        max_tokens: longer captions are cut; [CLS] and [SEP] count.
        cached_captions: features kept in memory, the longest unused forgotten first (about 3 KB a token with MiniLM).
        vector_width: width of a vector for the time embedding, made of the mean of the features; None = tokens only. Small networks learn
            what a caption is about much sooner with it: it reaches every layer, not just those that attend.
    """

    reads: ClassVar[str] = CAPTIONS
    free: ClassVar[tuple[str, ...]] = (*ConditionerConfig.free, "word_drop", "feature_dropout", "cached_captions")
    model: str = MINILM
    max_tokens: int = 32
    cached_captions: int = 16384
    vector_width: int | None = None
    word_drop: float = 0.0
    feature_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("word_drop", "feature_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be a share from 0 to less than 1, got {getattr(self, name)}")
        if not 2 <= self.max_tokens <= 512:
            raise UserError(f"max_tokens must be from 2 to 512, got {self.max_tokens}")
        check_cached(self.cached_captions)
        if self.vector_width is not None and self.vector_width < 1:
            raise UserError(f"vector_width must be at least 1, got {self.vector_width}")

    @property
    def pretrained(self) -> str:
        """See `ConditionerConfig.pretrained`."""
        return self.model

    def beside(self, folder: Path) -> BertPretrainedConfig:
        """See `ConditionerConfig.beside`."""
        moved = moved_model(self.model, folder)
        return self if moved is None else replace(self, model=moved)

    def build(self, *, context_width: int | None, latent_channels: int) -> BertPretrained:
        """See `ConditionerConfig.build`. On the meta device nothing is fetched, and the conditioner can only be counted."""
        return BertPretrained(self, context_of("bert_pretrained", context_width))


class BertPretrained(FrozenTextConditioner):
    """Tokens = projection(norm(frozen features)), vector = summary(mean of the features); the null input is the empty caption."""

    def __init__(self, config: BertPretrainedConfig, context_width: int) -> None:
        super().__init__(config, config.model, _frozen(config))
        self.config = config
        width = self.frozen.width
        self.dropout = nn.Dropout(config.feature_dropout)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, context_width)
        self.vector_width = config.vector_width
        self.summary = None if config.vector_width is None else nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.vector_width))

    def forward(self, value: tuple[str, ...], latent_size: tuple[int, int]) -> Condition:
        """Tokens (B, max_tokens, context width) and their mask; a vector (B, vector_width) if there is one."""
        features, mask = padded(self.frozen.features(value, self.device), self.config.max_tokens)
        if self.training and self.config.word_drop:
            mask = mask & ~self._hidden(mask)
        tokens = self.projection(self.dropout(self.norm(self._here(features))))
        vector = None
        if self.summary is not None:
            mean = (features * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            vector = self.summary(self.dropout(self._here(mean)))
        return Condition(tokens=tokens, token_mask=mask.to(self.device), vector=vector)

    def _here(self, features: Tensor) -> Tensor:
        return features.to(self.device, self.norm.weight.dtype)

    def _hidden(self, mask: Tensor) -> Tensor:
        """(B, L) bool: the word pieces that this step hides; never [CLS] and [SEP], which hold the whole caption."""
        words = mask.clone()
        words[:, 0] = False
        words[torch.arange(len(words)), mask.sum(dim=1) - 1] = False
        return words & (torch.rand(mask.shape) < self.config.word_drop)


def _frozen(config: BertPretrainedConfig) -> FrozenText:
    pretrained = _counted(config) if torch.get_default_device().type == "meta" else _loaded(config)

    def pieces(caption: str) -> Tensor:
        assert pretrained.tokenizer is not None
        return word_pieces(pretrained.tokenizer, caption, config.max_tokens)

    def read(tokens: Tensor) -> Tensor:
        found = pretrained.encoder(tokens)
        last: Tensor = found if config.model == MINILM else found.last_hidden_state
        return last

    return FrozenText(pretrained, pieces, read, max_tokens=config.max_tokens, cached=config.cached_captions)


def _loaded(config: BertPretrainedConfig) -> Pretrained:
    if config.model == MINILM:
        encoder, digest = minilm()
        return Pretrained(encoder, encoder.width, BertTokenizer(), digest)
    from transformers import AutoModel

    return load_pretrained(AutoModel, config.model, f"built in: {MINILM}")


def _counted(config: BertPretrainedConfig) -> Pretrained:
    if config.model == MINILM:
        with torch.device("meta"):
            encoder = BertEncoder(TABLE[MINILM].architecture)
        return Pretrained(encoder.requires_grad_(False), encoder.width, None, None)
    from transformers import AutoConfig, AutoModel

    return counted_only(AutoModel.from_config, AutoConfig.from_pretrained(config.model))
