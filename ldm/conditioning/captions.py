"""Captions to tokens: what the text conditioners share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.conditioning.inputs import ConditionInputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def captions_of(inputs: ConditionInputs) -> tuple[str, ...]:
    """B captions; "" where none are given."""
    return ("",) * inputs.count if inputs.captions is None else inputs.captions


def blank_captions(inputs: ConditionInputs, rows: Tensor) -> ConditionInputs:
    """Caption "" where rows is True."""
    kept = zip(captions_of(inputs), rows.tolist(), strict=True)
    return replace(inputs, captions=tuple("" if is_blank else caption for caption, is_blank in kept))


def word_pieces(tokenizer: PreTrainedTokenizerBase, caption: str, max_tokens: int) -> Tensor:
    """(L,) int64 with 2 <= L <= max_tokens: [CLS], the words, [SEP]; words that do not fit are cut."""
    return torch.tensor(tokenizer(caption, truncation=True, max_length=max_tokens)["input_ids"])


def padded(rows: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Rows (L_i, ...) as one (B, length, ...), 0 after each row's end, and where they are: (B, length) bool."""
    out = rows[0].new_zeros(len(rows), length, *rows[0].shape[1:])
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
        mask[i, : len(row)] = True
    return out, mask
