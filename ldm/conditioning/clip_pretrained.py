"""The features of a frozen CLIP's text tower, attended to as they are: Stable Diffusion's conditioning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.conditioning.captions import word_pieces
from ldm.conditioning.conditioner import ConditionerConfig, context_of
from ldm.conditioning.frozen_text import (
    FrozenText,
    FrozenTextConditioner,
    HubTokenizer,
    Pretrained,
    check_cached,
    counted_only,
    load_pretrained,
    moved_model,
)
from ldm.core.condition import Condition
from ldm.core.errors import UserError, unknown
from ldm.core.family import kind
from ldm.data.facts import CAPTIONS

CLIP_L = "openai/clip-vit-large-patch14"
OPEN_CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
SHAPES: dict[str, dict[str, object]] = {  # so that they can be counted before anything is fetched
    CLIP_L: {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    OPEN_CLIP_H: {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
}
LAYERS = ("last", "penultimate")


@kind("clip_pretrained")
@dataclass(frozen=True, kw_only=True)
class ClipPretrainedConfig(ConditionerConfig):
    """Defaults are Stable Diffusion 1's. Stable Diffusion 2: `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`, layer penultimate.

    Attributes:
        model: folder or hub name of any CLIP with a text tower that transformers reads and that is stored as safetensors.
        layer: whose output is used, after the tower's last norm: the last layer's, or that of the one before.
        max_tokens: shorter captions are padded, longer ones cut; start and end count. Padding is attended to, as published.
        cached_captions: features kept in memory, the longest unused forgotten first (a quarter of a megabyte each with the default model).
    """

    reads: ClassVar[str] = CAPTIONS
    free: ClassVar[tuple[str, ...]] = (*ConditionerConfig.free, "cached_captions")
    model: str = CLIP_L
    layer: Literal["last", "penultimate"] = "last"
    max_tokens: int = 77
    cached_captions: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer not in LAYERS:
            raise unknown("layer", self.layer, LAYERS)
        if self.max_tokens < 2:
            raise UserError(f"max_tokens must be at least 2, got {self.max_tokens}")
        check_cached(self.cached_captions)

    @property
    def pretrained(self) -> str:
        """See `ConditionerConfig.pretrained`."""
        return self.model

    def beside(self, folder: Path) -> ClipPretrainedConfig:
        """See `ConditionerConfig.beside`."""
        moved = moved_model(self.model, folder)
        return self if moved is None else replace(self, model=moved)

    def build(self, *, context_width: int | None, latent_channels: int) -> ClipPretrained:
        """See `ConditionerConfig.build`. On the meta device nothing is fetched, and the conditioner can only be counted."""
        return ClipPretrained(self, context_of("clip_pretrained", context_width))


class ClipPretrained(FrozenTextConditioner):
    """Has no weights of its own: the network attends to the encoder's features, so its context_width is the encoder's width."""

    def __init__(self, config: ClipPretrainedConfig, context_width: int) -> None:
        super().__init__(config, config.model, _frozen(config))
        if self.frozen.width != context_width:
            raise UserError(f"denoiser.context_width must be {self.frozen.width}, the width of {config.model}, not {context_width}")

    def forward(self, value: tuple[str, ...], latent_size: tuple[int, int]) -> Condition:
        """Tokens (B, max_tokens, context width)."""
        return Condition(tokens=torch.stack(self.frozen.features(value, self.device)).to(self.device))


def _frozen(config: ClipPretrainedConfig) -> FrozenText:
    pretrained = _counted(config) if torch.get_default_device().type == "meta" else _loaded(config)

    def pieces(caption: str) -> Tensor:
        assert isinstance(pretrained.tokenizer, HubTokenizer) and pretrained.tokenizer.padding is not None
        tokens = word_pieces(pretrained.tokenizer, caption, config.max_tokens)
        return F.pad(tokens, (0, config.max_tokens - len(tokens)), value=pretrained.tokenizer.padding)

    def read(tokens: Tensor) -> Tensor:
        if config.layer == "last":
            last: Tensor = pretrained.encoder(input_ids=tokens).last_hidden_state
            return last
        before_last = pretrained.encoder(input_ids=tokens, output_hidden_states=True).hidden_states[-2]
        tower: Any = getattr(pretrained.encoder, "text_model", pretrained.encoder)  # transformers 5 has had it both ways
        normed: Tensor = tower.final_layer_norm(before_last)
        return normed

    return FrozenText(pretrained, pieces, read, max_tokens=config.max_tokens, cached=config.cached_captions)


def _loaded(config: ClipPretrainedConfig) -> Pretrained:
    from transformers import CLIPTextModel

    loaded = load_pretrained(CLIPTextModel, config.model, "a folder or a hub name")
    positions = loaded.encoder.config.max_position_embeddings
    if config.max_tokens > positions:
        raise UserError(f"{config.model} reads at most {positions} tokens; max_tokens is {config.max_tokens}")
    return loaded


def _counted(config: ClipPretrainedConfig) -> Pretrained:
    from transformers import CLIPTextConfig, CLIPTextModel

    shape = CLIPTextConfig.from_dict(dict(SHAPES[config.model])) if config.model in SHAPES else CLIPTextConfig.from_pretrained(config.model)
    return counted_only(CLIPTextModel, shape)
