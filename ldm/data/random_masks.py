"""Random holes for inpainting training: boxes, brush strokes, and the object's own silhouette."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

BOXES, STROKES, SILHOUETTE = 0.4, 0.4, 0.2  # shares; pictures without a silhouette get boxes or strokes
LARGEST_BOX = 0.7  # of a side; of a rectangle, its sides' geometric mean counts as its side below
MOST_STROKES = 4
STROKE_WIDTH = (0.06, 0.22)  # of a side
GROWTH = 0.08  # most that a silhouette is grown by, of a side


def random_mask(size: tuple[int, int], silhouette: Tensor | None, generator: torch.Generator) -> Tensor:
    """One mask (1, H, W) float32 of {0, 1}, 1 = to be painted, never empty.

    Args:
        size: (H, W) of the picture.
        silhouette: (1, H, W), 1 = object; None = the picture has none.
        generator: on the CPU.
    """
    kind = torch.rand((), generator=generator).item()
    if silhouette is not None and silhouette.any() and kind < SILHOUETTE:
        return _grown(silhouette, generator)
    canvas = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    if torch.rand((), generator=generator).item() < BOXES / (BOXES + STROKES):
        _boxes(draw, size, generator)
    else:
        _strokes(draw, size, generator)
    return torch.from_numpy(np.array(canvas, dtype=np.float32))[None].clamp(max=1)


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _boxes(draw: ImageDraw.ImageDraw, size: tuple[int, int], generator: torch.Generator) -> None:
    for _ in range(int(_between(1, 4, generator))):
        width, height = (max(1, round(side * _between(0.15, LARGEST_BOX, generator))) for side in reversed(size))
        left, top = round(_between(0, size[1] - width, generator)), round(_between(0, size[0] - height, generator))
        draw.rectangle((left, top, left + width - 1, top + height - 1), fill=1)


def _strokes(draw: ImageDraw.ImageDraw, size: tuple[int, int], generator: torch.Generator) -> None:
    """Each a walk of a round brush that turns a little at every step."""
    side = math.sqrt(size[0] * size[1])
    for _ in range(int(_between(1, MOST_STROKES + 1, generator))):
        x, y = (_between(0, length, generator) for length in reversed(size))
        angle = _between(0, 2 * math.pi, generator)
        radius = 0.5 * side * _between(*STROKE_WIDTH, generator)
        for _ in range(int(_between(2, 7, generator))):
            angle += _between(-1.0, 1.0, generator)
            length = side * _between(0.08, 0.3, generator)
            new_x, new_y = min(max(x + length * math.cos(angle), 0), size[1]), min(max(y + length * math.sin(angle), 0), size[0])
            draw.line((x, y, new_x, new_y), fill=1, width=max(1, round(2 * radius)))
            x, y = new_x, new_y
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)


def _grown(silhouette: Tensor, generator: torch.Generator) -> Tensor:
    """The object, or half of the time everything but it."""
    radius = round(math.sqrt(silhouette[0].numel()) * _between(0, GROWTH, generator))
    grown = F.max_pool2d(silhouette[None].float(), 2 * radius + 1, stride=1, padding=radius)[0]
    inverted = 1 - grown
    return inverted if inverted.any() and torch.rand((), generator=generator).item() < 0.5 else grown
