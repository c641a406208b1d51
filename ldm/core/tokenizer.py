"""What the conditioners of text ask of a tokenizer, whoever made it."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Tokens(NamedTuple):
    """A whole text in tokens, those that begin and end it included.

    Attributes:
        ids: one number a token.
        places: the characters [start, end) that each stands for; none for one that begins or ends.
    """

    ids: list[int]
    places: list[tuple[int, int]]


class Tokenizer(Protocol):
    """Texts to tokens.

    Attributes:
        unknown: the token of words that it does not know; None = it knows all.
    """

    unknown: int | None

    def __call__(self, text: str) -> Tokens: ...
