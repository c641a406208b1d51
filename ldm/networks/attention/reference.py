"""The attention that the other backends are tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

QUERIES_AT_ONCE = 256


def math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Two matrix products in the inputs' dtype, with a softmax in float32 or better between them.

    It stores the scores of 256 queries at a time, so its memory grows as L + S, not as L S. With more queries the backward pass recomputes
    each part's scores.
    """
    parts = q.split(QUERIES_AT_ONCE, dim=-2)
    if len(parts) == 1:
        return _math(q, k, v, mask)
    return torch.cat([checkpoint(_math, part, k, v, mask, use_reentrant=False, preserve_rng_state=False) for part in parts], dim=-2)


def _math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
    exact = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=exact).to(v.dtype) @ v
