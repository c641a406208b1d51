"""Conditions put together, whichever of their channels there are."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from ldm.core.condition import Condition


def test_vectors_add_and_tokens_and_channels_stand_side_by_side() -> None:
    """Tokens without a mask are all attended to, also beside tokens with one."""
    draw = torch.Generator().manual_seed(0)
    vectors, tokens, channels = (torch.randn(2, 3, *shape, generator=draw) for shape in ((4,), (5, 4), (1, 2, 2)))
    mask = torch.tensor([[True, False, True, True, False]]).expand(3, -1)
    one = Condition(vector=vectors[0], tokens=tokens[0], concat=channels[0])
    other = Condition(vector=vectors[1], tokens=tokens[1], token_mask=mask, concat=channels[1])
    both = one.beside(other)
    assert_close(both.vector, vectors.sum(0))
    assert_close(both.tokens, torch.cat([tokens[0], tokens[1]], dim=1))
    assert_close(both.token_mask, torch.cat([torch.ones_like(mask), mask], dim=1))
    assert_close(both.concat, torch.cat([channels[0], channels[1]], dim=1))

    alone = Condition().beside(one).beside(Condition())
    assert_close((alone.vector, alone.tokens, alone.concat), (vectors[0], tokens[0], channels[0]))
    assert alone.token_mask is None
