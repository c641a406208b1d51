"""What a denoising network is conditioned on: the one record that conditioners make and networks read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Up to three conditioning inputs; None = this input is unused.

    Attributes:
        vector: (B, E), added to the time embedding.
        tokens: (B, L, D), for cross-attention.
        token_mask: (B, L) bool, True = attend; None = all. At least one True a row.
        concat: (B, K, H, W), concatenated to the network's input channels.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    token_mask: Tensor | None = None
    concat: Tensor | None = None

    def beside(self, other: Condition) -> Condition:
        """Both conditions together: vectors are added, tokens and channels are concatenated."""
        tokens, mask = self.tokens, self.token_mask
        if other.tokens is not None:
            if tokens is None:
                tokens, mask = other.tokens, other.token_mask
            else:
                if mask is not None or other.token_mask is not None:
                    mask = torch.cat([_mask_of(self), _mask_of(other)], dim=1)
                tokens = torch.cat([tokens, other.tokens], dim=1)
        return Condition(
            vector=_either(self.vector, other.vector, lambda a, b: a + b),
            tokens=tokens,
            token_mask=mask,
            concat=_either(self.concat, other.concat, lambda a, b: torch.cat([a, b], dim=1)),
        )

    def toward(self, other: Condition, share: float) -> Condition:
        """Linear interpolation to a condition of the same inputs: 0 = self, 1 = other, each to the bit.

        Between them a token is attended to if it is in either: those of a text that the other has not are interpolated from or to zero.
        """
        if share in (0, 1):
            return other if share else self

        def mixed(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            assert (a is None) == (b is None), "conditions of different inputs"
            return None if a is None or b is None else torch.lerp(a, b, share)

        mask = None if self.token_mask is None and other.token_mask is None else _mask_of(self) | _mask_of(other)
        tokens, concat = mixed(self.tokens, other.tokens), mixed(self.concat, other.concat)
        return Condition(vector=mixed(self.vector, other.vector), tokens=tokens, token_mask=mask, concat=concat)

    def repeated(self, count: int) -> Condition:
        """The condition of one image, (1, ...), expanded to `count` images without copying."""
        parts = {name: getattr(self, name) for name in ("vector", "tokens", "token_mask", "concat")}
        return Condition(**{name: None if value is None else value.expand(count, *value.shape[1:]) for name, value in parts.items()})

    @staticmethod
    def stack(conditions: Sequence[Condition]) -> Condition:
        """Concatenates batches. All must use the same inputs, with the same number of tokens."""

        def joined(name: str) -> Tensor | None:
            parts = [getattr(c, name) for c in conditions]
            if any(p is None for p in parts):
                assert all(p is None for p in parts), f"some conditions have {name}, some have not"
                return None
            return torch.cat(parts)

        if any(c.token_mask is not None for c in conditions):
            mask: Tensor | None = torch.cat([_mask_of(c) for c in conditions])
        else:
            mask = None
        return Condition(vector=joined("vector"), tokens=joined("tokens"), token_mask=mask, concat=joined("concat"))


def _mask_of(condition: Condition) -> Tensor:
    if condition.token_mask is not None:
        return condition.token_mask
    assert condition.tokens is not None
    return torch.ones(condition.tokens.shape[:2], dtype=torch.bool, device=condition.tokens.device)


def _either(a: Tensor | None, b: Tensor | None, both: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
    return both(a, b) if a is not None and b is not None else (b if a is None else a)
