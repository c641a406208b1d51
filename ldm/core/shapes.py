"""Broadcasting of per-sample numbers."""

from __future__ import annotations

from torch import Tensor


def over(values: Tensor, x: Tensor) -> Tensor:
    """(B,) or () numbers, shaped to multiply x of (B, ...), on x's device; the copy does not block the CPU."""
    moved = values.to(x.device, non_blocking=True)
    return moved.reshape(moved.shape + (1,) * (x.ndim - moved.ndim)) if moved.ndim else moved
