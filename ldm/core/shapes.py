"""Broadcasting of per-sample numbers."""

from __future__ import annotations

from torch import Tensor


def over(values: Tensor, x: Tensor) -> Tensor:
    """(B,) or () numbers, shaped to multiply x of (B, ...)."""
    return values.to(x.device).reshape(values.shape + (1,) * (x.ndim - values.ndim)) if values.ndim else values.to(x.device)
