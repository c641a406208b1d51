"""A frozen BERT's features of the caption, and a trained projection to the width that the network attends to."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ldm.conditioning.captions import blank_captions, captions_of, padded, word_pieces
from ldm.conditioning.conditioner import Conditioner, ConditionerConfig, context_of, needs
from ldm.conditioning.inputs import ConditionInputs
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.family import kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MINILM = "minilm-l6"


@kind("bert_pretrained")
@dataclass(frozen=True, kw_only=True)
class BertPretrainedConfig(ConditionerConfig):
    """
    Attributes:
        model: `minilm-l6`, or a folder or hub name of any BERT of transformers that is stored as safetensors.
        max_tokens: longer captions are cut; [CLS] and [SEP] count.
        cached_captions: features kept in memory, the longest unused forgotten first (about 3 KB a token with MiniLM).
        vector_width: width of a vector for the time embedding, made of the mean of the features; None = tokens only. Small networks learn
            what a caption is about much sooner with it: each layer is told, not just those that attend.
    """

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
        if self.cached_captions < 0:
            raise UserError(f"cached_captions must not be negative, got {self.cached_captions}")
        if self.vector_width is not None and self.vector_width < 1:
            raise UserError(f"vector_width must be at least 1, got {self.vector_width}")

    def fitted(self, *, label_names: tuple[str, ...], map_names: tuple[str, ...], has: frozenset[str]) -> ConditionerConfig:
        """See `ConditionerConfig.fitted`."""
        needs("bert_pretrained", "captions", has)
        return self

    def build(self, *, context_width: int | None, latent_channels: int) -> BertPretrained:
        """See `ConditionerConfig.build`. On the meta device nothing is fetched, and the conditioner can only be counted."""
        return BertPretrained(self, context_of("bert_pretrained", context_width))


class FrozenBert:
    """A pretrained encoder and its tokenizer, outside every module: no optimizer, state dict or copy ever holds it.

    Features are computed one caption at a time, without padding, in float32 and outside autocast: so they are the same bits whatever
    stands beside the caption, and whether they come from memory or not.
    """

    def __init__(self, encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, digest: str, config: BertPretrainedConfig) -> None:
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.digest = digest
        self.config = config
        self.width: int = encoder.config.hidden_size
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenBert:
        return self

    def features(self, captions: tuple[str, ...]) -> list[Tensor]:
        """One (L_i, width) float32 on the CPU a caption, without gradient."""
        with self._lock:
            return [self._feature(caption) for caption in captions]

    def _feature(self, caption: str) -> Tensor:
        found = self._known.get(caption)
        if found is None:
            found = self._known[caption] = self._computed(caption)
            if len(self._known) > max(self.config.cached_captions, 1):
                self._known.popitem(last=False)
        self._known.move_to_end(caption)
        return found

    def _computed(self, caption: str) -> Tensor:
        device = self.encoder.device
        pieces = word_pieces(self.tokenizer, caption, self.config.max_tokens).to(device)
        # inference_mode(False): a caption first met while sampling may be needed by training's backward pass.
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            return self.encoder(input_ids=pieces[None]).last_hidden_state[0].float().cpu()


class BertPretrained(Conditioner):
    """Tokens = projection(norm(frozen features)), vector = summary(mean of the features); "nothing" = those of the empty caption."""

    reads_text = True
    uses_tokens = True

    def __init__(self, config: BertPretrainedConfig, context_width: int) -> None:
        super().__init__(config.drop)
        self.config = config
        self.frozen = None if torch.get_default_device().type == "meta" else _load(config)
        width = _width_of(config) if self.frozen is None else self.frozen.width
        self.dropout = nn.Dropout(config.feature_dropout)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, context_width)
        self.vector_width = config.vector_width
        self.summary = None if config.vector_width is None else nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.vector_width))

    def forward(self, inputs: ConditionInputs, latent_size: tuple[int, int]) -> Condition:
        """Tokens (B, max_tokens, context width) and their mask; a vector (B, vector_width) if there is one."""
        assert self.frozen is not None, "built on the meta device: only to be counted"
        features, mask = padded(self.frozen.features(captions_of(inputs)), self.config.max_tokens)
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

    def blank(self, inputs: ConditionInputs, rows: Tensor) -> ConditionInputs:
        """Caption ""."""
        return blank_captions(inputs, rows)

    def frozen_digests(self) -> dict[str, str]:
        """The encoder's."""
        return {} if self.frozen is None else {self.config.model: self.frozen.digest}

    @property
    def num_frozen(self) -> int:
        """The encoder's."""
        return 0 if self.frozen is None else sum(p.numel() for p in self.frozen.encoder.parameters())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BertPretrained:
        """The frozen encoder follows to the device, but stays float32."""
        super()._apply(fn, recurse)
        if self.frozen is not None and self.device.type != "meta":
            self.frozen.encoder.to(self.device)  # type: ignore[arg-type]
        return self


def _load(config: BertPretrainedConfig) -> FrozenBert:
    from ldm.pretrained import bert_tokenizer, minilm

    if config.model == MINILM:
        encoder, digest = minilm()
        return FrozenBert(encoder, bert_tokenizer(), digest, config)

    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model)
        with torch.random.fork_rng(devices=[]):
            encoder = AutoModel.from_pretrained(config.model, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the text encoder {config.model!r}: {str(error).splitlines()[0]} (built in: {MINILM})") from error
    content = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        content.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        content.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return FrozenBert(encoder.requires_grad_(False).eval(), tokenizer, content.hexdigest(), config)


def _width_of(config: BertPretrainedConfig) -> int:
    from ldm.pretrained.table import TABLE

    if config.model == MINILM:
        return int(TABLE[MINILM].architecture["hidden_size"])  # type: ignore[call-overload]
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(config.model).hidden_size
