"""Sample grids."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.utils import make_grid


def grid_of(images: Tensor, columns: int | None = None) -> Tensor:
    """(B, C, H, W) in [-1, 1] -> one (3, H', W') picture in [0, 1], on a near-square grid unless told the columns.

    Pictures of 1 channel are shown grey, those of more than 3 by their first three.
    """
    shown = images.float().cpu().clamp(-1, 1) * 0.5 + 0.5
    if shown.shape[1] not in (1, 3):
        shown = shown[:, :3] if shown.shape[1] > 3 else torch.cat([shown, torch.zeros_like(shown[:, :1])], dim=1)
    return make_grid(shown, nrow=columns or math.ceil(math.sqrt(len(shown))), padding=2, pad_value=1.0)
