"""Captions to tokens: what the text conditioners share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm.conditioning.conditioner import Conditioner, Examples
from ldm.conditioning.control import Control, Text
from ldm.core.errors import UserError
from ldm.data.batch import Batch
from ldm.data.facts import DataFacts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextConditioner(Conditioner[tuple[str, ...]]):
    """Base of the conditioners that read captions. Its input: B texts; "" is the null input."""

    uses_tokens = True

    @property
    def controls(self) -> dict[str, Control]:
        return {"": Text()}

    def null(self, count: int) -> tuple[str, ...]:
        return ("",) * count

    def of_batch(self, batch: Batch, facts: DataFacts) -> tuple[str, ...]:
        """The caption that each record has in this epoch."""
        return batch.captions

    def of_user(self, value: Any) -> tuple[str, ...]:
        """A text.

        Raises:
            UserError: an empty one; one that is no Unicode.
        """
        if not str(value).strip():
            raise UserError("the prompt is empty: say what to draw, or leave it out for images of nothing in particular")
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise UserError("the prompt has bytes that are not UTF-8: type it in a terminal whose encoding is UTF-8") from error
        return (str(value),)

    def examples(self, batch: Batch, facts: DataFacts, count: int, prompts: tuple[str, ...]) -> Examples:
        """The config's prompts, or the batch's captions."""
        shown = prompts or batch.captions[:count]
        return Examples(value=tuple(shown[i % len(shown)] for i in range(count)))


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
