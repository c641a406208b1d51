"""Images too large for memory: a network runs on overlapping tiles, which are blended linearly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.first_stage.posterior import full_precision


def in_tiles(x: Tensor, run: Callable[[Tensor], Tensor], *, tile: int, overlap: int, before: int, after: int) -> Tensor:
    """`run` applied to x tile by tile.

    The result is only near that for the whole image where a network's output depends on far pixels (attention, GroupNorm).

    Args:
        x: (B, C, before H, before W).
        run: (B, C, before h, before w) to (B, D, after h, after w), for any h, w up to tile.
        tile: side of a tile, in units of H and W.
        overlap: of neighbouring tiles, in the same unit; 0 <= overlap < tile.
        before: side of a unit in x.
        after: side of a unit in the result.

    Returns:
        (B, D, after H, after W), float32 or wider.
    """
    height, width = x.shape[2] // before, x.shape[3] // before
    total, weights = None, torch.zeros(after * height, after * width, device=x.device)
    for top, bottom in _spans(height, tile, overlap):
        for left, right in _spans(width, tile, overlap):
            part = full_precision(run(x[:, :, before * top : before * bottom, before * left : before * right]))
            if total is None:
                total = part.new_zeros(*part.shape[:2], after * height, after * width)
            rows = _ramp(after * top, after * bottom, after * height, after * overlap, x.device)
            columns = _ramp(after * left, after * right, after * width, after * overlap, x.device)
            weight = rows[:, None] * columns[None, :]
            place = (slice(after * top, after * bottom), slice(after * left, after * right))
            total[:, :, *place] += weight * part
            weights[place] += weight
    assert total is not None
    return total / weights


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Starts and ends that cover a length; all of one size, the last moved back to end at the end."""
    if length <= tile:
        return [(0, length)]
    starts = [*range(0, length - tile, tile - overlap), length - tile]
    return [(start, start + tile) for start in starts]


def _ramp(start: int, end: int, length: int, overlap: int, device: torch.device) -> Tensor:
    """(end - start,) weights: 1 inside and at the image's border, falling linearly over the overlap towards a neighbour; never 0."""
    at = torch.arange(start, end, device=device) + 0.5
    rising = (at - start) / overlap if start > 0 and overlap else torch.ones_like(at)
    falling = (end - at) / overlap if end < length and overlap else torch.ones_like(at)
    return torch.minimum(rising, falling).clamp(max=1)
