"""Pretrained text encoders that stay as they are: what their features are made by, kept in, and named by."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm.conditioning.captions import TextConditioner
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.core.errors import UserError
from ldm.core.precision import without_autocast
from ldm.core.tokenizer import Tokenizer, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Pretrained:
    """An encoder in float32, frozen, of ours or of transformers; its features' width; its tokenizer; a sha256 of its weights.

    On the meta device the encoder can only be counted.
    """

    encoder: Any
    width: int
    tokenizer: Tokenizer | None
    digest: str | None


class HubTokenizer:
    """A tokenizer of transformers, see `core.tokenizer.Tokenizer`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        has_unknown = tokenizer.unk_token_id != tokenizer.eos_token_id  # CLIP's reads bytes
        self.unknown: int | None = tokenizer.unk_token_id if has_unknown else None
        self.padding: int | None = tokenizer.pad_token_id

    def __call__(self, text: str) -> Tokens:
        encoded = self._tokenizer(text, truncation=False, return_offsets_mapping=True, verbose=False)
        return Tokens(encoded["input_ids"], encoded["offset_mapping"])


def load_pretrained(kind: type[Any], model: str, built_in: str) -> Pretrained:
    """A folder or hub name, stored as safetensors, by a class of transformers.

    Args:
        kind: whose `from_pretrained` loads it.
        model: folder or hub name.
        built_in: names that need neither, for the message.

    Raises:
        UserError: it cannot be downloaded, and is not in the cache.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        with torch.random.fork_rng(devices=[]):
            encoder = kind.from_pretrained(model, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the text encoder {model!r}: {str(error).splitlines()[0]} ({built_in})") from error
    content = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        content.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        content.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return Pretrained(encoder.requires_grad_(False).eval(), encoder.config.hidden_size, HubTokenizer(tokenizer), content.hexdigest())


def counted_only(build: Callable[[Any], PreTrainedModel], shape: PreTrainedConfig) -> Pretrained:
    """The encoder of a shape on the meta device."""
    with torch.device("meta"):
        return Pretrained(build(shape).requires_grad_(False), shape.hidden_size, None, None)


class FrozenText:
    """Features of captions, outside every module: no optimizer, state dict or copy ever holds them.

    They are computed one caption at a time, in float32 and outside autocast: so they are the same bits whatever stands beside the caption,
    and whether they come from memory or not.

    Args:
        pretrained: the encoder.
        pieces: a caption's tokens, (L,) int64.
        read: features (1, L, width) of tokens (1, L).
        max_tokens: what L is at most.
        cached: captions whose features are kept in memory, the longest unused forgotten first.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        pieces: Callable[[str], Tensor],
        read: Callable[[Tensor], Tensor],
        *,
        max_tokens: int,
        cached: int,
    ) -> None:
        self.encoder, self.digest, self.max_tokens = pretrained.encoder, pretrained.digest, max_tokens
        self.tokenizer = pretrained.tokenizer
        self.width = pretrained.width
        self._pieces, self._read, self._cached = pieces, read, cached
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenText:
        return self

    def features(self, captions: tuple[str, ...], device: torch.device | None = None) -> list[Tensor]:
        """One (L_i, width) float32 on the CPU a caption, without gradient; zeros of the longest L if the encoder can only be counted.

        Args:
            captions: any number.
            device: to compute new ones on, where the encoder then stays; None = where it is.
        """
        if self.digest is None:
            return [torch.zeros(self.max_tokens, self.width)] * len(captions)
        with self._lock:
            if device is not None and device != next(self.encoder.parameters()).device:
                self.encoder.to(device)
            return [self._feature(caption) for caption in captions]

    def _feature(self, caption: str) -> Tensor:
        found = self._known.get(caption)
        if found is None:
            found = self._known[caption] = self._computed(caption)
            if len(self._known) > max(self._cached, 1):
                self._known.popitem(last=False)
        self._known.move_to_end(caption)
        return found

    def _computed(self, caption: str) -> Tensor:
        device = next(self.encoder.parameters()).device
        pieces = self._pieces(caption).to(device)
        # inference_mode(False): a caption first met while sampling may be needed by training's backward pass.
        with torch.inference_mode(False), without_autocast(device):
            return self._read(pieces[None])[0].float().cpu()


class FrozenTextConditioner(TextConditioner):
    """Base of the conditioners that read captions by a frozen encoder; the null input is the empty caption."""

    def __init__(self, config: ConditionerConfig, name: str, frozen: FrozenText) -> None:
        super().__init__(config)
        self.name, self.frozen = name, frozen

    def tokens_read(self) -> tuple[Tokenizer, int] | None:
        """See `TextConditioner.tokens_read`."""
        return None if self.frozen.tokenizer is None else (self.frozen.tokenizer, self.frozen.max_tokens)

    def frozen_digests(self) -> dict[str, str]:
        """The encoder's."""
        return {} if self.frozen.digest is None else {self.name: self.frozen.digest}

    @property
    def num_frozen(self) -> int:
        """The encoder's."""
        return sum(p.numel() for p in self.frozen.encoder.parameters())


def moved_model(model: str, folder: Path) -> str | None:
    """Where a model's folder lies that is not where it was named: beside `folder`, by its last name; None = it is not there either.

    Its digest is recorded, so that another one would be refused.
    """
    named = Path(model)
    beside = folder.absolute().with_name(named.name)
    return str(beside) if named.is_absolute() and not named.is_dir() and beside.is_dir() else None


def check_cached(cached_captions: int) -> None:
    """
    Raises:
        UserError: a negative number.
    """
    if cached_captions < 0:
        raise UserError(f"cached_captions must not be negative, got {cached_captions}")
