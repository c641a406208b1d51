"""Sample grids."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.utils import make_grid

FRAME = 2  # pixels
RIGHT, WRONG = (0.0, 0.7, 0.2), (0.9, 0.1, 0.1)  # RGB in [0, 1]


def grid_of(images: Tensor, columns: int | None = None) -> Tensor:
    """(B, C, H, W) in [-1, 1] -> one (3, H', W') picture in [0, 1], on a near-square grid if `columns` is None.

    Pictures of 1 channel are shown grey, those of more than 3 by their first three.
    """
    grid: Tensor = make_grid(_shown(images), nrow=columns or math.ceil(math.sqrt(len(images))), padding=2, pad_value=1.0)
    return grid


def on_one_canvas(images: Sequence[Tensor]) -> Tensor:
    """(C, h, w) each, in [-1, 1] -> (B, C, H, W): each in the middle of white of the largest sides, where not all are of one size."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    canvas = torch.ones(len(images), images[0].shape[0], height, width, dtype=images[0].dtype, device=images[0].device)
    for place, image in zip(canvas, images, strict=True):
        top, left = (height - image.shape[1]) // 2, (width - image.shape[2]) // 2
        place[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return canvas


def framed(images: Tensor, is_right: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1] -> (B, 3, H + 2 FRAME, W + 2 FRAME), framed in the colour of a verdict (B,)."""
    colours = torch.where(is_right.cpu()[:, None], torch.tensor(RIGHT), torch.tensor(WRONG))
    height, width = images.shape[2:]
    made = colours[:, :, None, None].repeat(1, 1, height + 2 * FRAME, width + 2 * FRAME)
    made[:, :, FRAME:-FRAME, FRAME:-FRAME] = _shown(images)
    return made * 2 - 1


def as_rgb(images: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1] -> (B, 3, H, W) in [-1, 1] on the CPU, as `grid_of` shows them."""
    return (_shown(images) * 2 - 1).expand(-1, 3, -1, -1)


def _shown(images: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) in [0, 1]."""
    shown = images.float().cpu().clamp(-1, 1) * 0.5 + 0.5
    if shown.shape[1] in (1, 3):
        return shown
    return shown[:, :3] if shown.shape[1] > 3 else torch.cat([shown, torch.zeros_like(shown[:, :1])], dim=1)
