"""Broadcasting of per-sample numbers."""

from __future__ import annotations

from torch import Tensor


def over(values: Tensor, x: Tensor) -> Tensor:
    """(B,) or () numbers, shaped to multiply x of (B, ...), on its device; the CPU does not wait for them to arrive there."""
    there = values.to(x.device, non_blocking=True)
    return there.reshape(there.shape + (1,) * (x.ndim - there.ndim)) if there.ndim else there
