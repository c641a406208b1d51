"""The attention that the others are tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Two matrix products in the inputs' dtype with a softmax in float32 (or better) between; holds all (B, N, L, S) scores."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
    exact = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=exact).to(v.dtype) @ v
