"""Captions to tokens: what the text conditioners share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ldm.conditioning.conditioner import Conditioner, Examples
from ldm.conditioning.control import Control, Text
from ldm.core.errors import UserError
from ldm.core.tokenizer import Tokenizer
from ldm.data.batch import Batch
from ldm.data.facts import DataFacts
from ldm.data.findings import Finding


class TextConditioner(Conditioner[tuple[str, ...]]):
    """Base of the conditioners that read captions. Its input: B texts; "" is the null input."""

    uses_tokens = True

    @property
    def controls(self) -> dict[str, Control]:
        return {"": Text()}

    def null(self, count: int, latent_size: tuple[int, int]) -> tuple[str, ...]:
        return ("",) * count

    def of_batch(self, batch: Batch, facts: DataFacts) -> tuple[str, ...]:
        """The caption that each record has in this epoch."""
        return batch.captions

    def of_user(self, value: Any) -> tuple[str, ...]:
        """A text.

        Raises:
            UserError: something else, as a list of texts; an empty one; one that is no Unicode.
        """
        if not isinstance(value, str):
            raise UserError(f"a prompt is one text, got {value!r:.80}: ask for one prompt a call")
        if not value.strip():
            raise UserError("the prompt is empty: say what to draw, or leave it out for images of nothing in particular")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError("the prompt has bytes that are not UTF-8: type it in a terminal whose encoding is UTF-8") from error
        return (value,)

    def tokens_read(self) -> tuple[Tokenizer, int] | None:
        """The tokenizer, and the most tokens of a caption that are read; None = none: all is read, or the part is on the meta device."""
        return None

    def unread(self, value: tuple[str, ...]) -> list[str]:
        """What of texts is not read, a line each."""
        reads = self.tokens_read()
        found = [] if reads is None else [unread_of(text, *reads) for text in value]
        return [one.line for one in found if one.line]

    def remarks(self, captions: Iterable[tuple[str, tuple[str, ...]]]) -> list[Finding]:
        """See `Conditioner.remarks`."""
        reads = self.tokens_read()
        if reads is None:
            return []
        cut: list[str] = []
        unknown: list[str] = []
        lost = 0
        tokens: list[int] = []
        for record, texts in captions:
            found = [unread_of(text, *reads) for text in texts]
            tokens += [one.tokens for one in found]
            lost += sum(one.lost for one in found)
            cut += [record] * any(one.cut for one in found)
            unknown += [f"{record}: {' '.join(one.unknown)}" for one in found if one.unknown]
        findings = []
        if tokens:
            span = f"{min(tokens)} to {max(tokens)} tokens, median {sorted(tokens)[len(tokens) // 2]}"
            findings.append(Finding(f"captions have {span}; up to {reads[1]} are read", ()))
        if cut:
            what = f"records with a caption of more than {reads[1]} tokens, whose end is not read ({lost / sum(tokens):.1%} of all tokens)"
            findings.append(Finding(what, tuple(cut)))
        if unknown:
            findings.append(Finding("captions with words that the text encoder does not know", tuple(unknown)))
        return findings

    def examples(self, batch: Batch, facts: DataFacts, count: int, prompts: tuple[str, ...], latent_size: tuple[int, int]) -> Examples:
        """The config's prompts, or the batch's captions."""
        shown = prompts or batch.captions[:count]
        texts = tuple(shown[i % len(shown)] for i in range(count))
        return Examples(value=texts, words=texts)


class Unread(NamedTuple):
    """What of a text is not read.

    Attributes:
        cut: its end, which does not fit; "" = all fits.
        unknown: words that the tokenizer does not know.
        tokens: of the whole text.
        lost: of these, those in `cut`.
        most: that are read.
    """

    cut: str
    unknown: tuple[str, ...]
    tokens: int
    lost: int
    most: int

    @property
    def line(self) -> str:
        """In one line; empty if everything is read."""
        parts = [f"{self.cut!r} is not read: the text encoder reads {self.most} tokens and this text has {self.tokens}"] if self.cut else []
        parts += [f"the text encoder does not know {', '.join(map(repr, self.unknown))}"] if self.unknown else []
        return "; ".join(parts)


def unread_of(text: str, tokenizer: Tokenizer, most: int) -> Unread:
    """What a tokenizer that reads `most` tokens, the last of which ends the text, does not read."""
    tokens, places = tokenizer(text)
    kept = len(tokens) if len(tokens) <= most else most - 1
    strange = [place for token, place in zip(tokens, places, strict=True) if token == tokenizer.unknown and place[1] > place[0]]
    words = dict.fromkeys(text[start:end][:40] for start, end in strange)
    cut = text[places[kept][0] :].strip() if kept < len(tokens) else ""
    return Unread(cut=cut, unknown=tuple(words), tokens=len(tokens), lost=max(0, len(tokens) - 1 - kept) if cut else 0, most=most)


def word_pieces(tokenizer: Tokenizer, caption: str, max_tokens: int) -> Tensor:
    """(L,) int64 with 2 <= L <= max_tokens: [CLS], the words, [SEP]; words that do not fit are cut."""
    tokens, _ = tokenizer(caption)
    return torch.tensor(tokens if len(tokens) <= max_tokens else [*tokens[: max_tokens - 1], tokens[-1]])


def padded(rows: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Rows (L_i, ...) as one (B, length, ...), 0 after each row's end, and where they are: (B, length) bool."""
    longest = rows[0].new_zeros(length, *rows[0].shape[1:])
    lengths = torch.tensor([row.shape[0] for row in rows])
    return pad_sequence([*rows, longest], batch_first=True)[:-1], torch.arange(length) < lengths[:, None]
