"""Pictures, masks, maps and boxes brought to one size, and changed at random alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from ldm.data.config import Augment

UNKNOWN = -1  # a map's class where nothing is known
LONGEST = 32  # a side in units of the other one; of longer pictures only the middle is scaled, all of which but a square is cut off anyway


def fitted(image: Tensor, size: int) -> Tensor:
    """(C, H, W) -> (C, size, size): the shorter side scaled to size (antialiased), the centre square kept."""
    image = image[(..., *_middle(image.shape))]
    square: Tensor = V.center_crop(V.resize(image, _scaled(image.shape, size), antialias=True).clamp(-1, 1), [size, size])
    return square


def fitted_levels(levels: Tensor, size: int) -> Tensor:
    """(C, H, W) uint8 -> (C, size, size) float32 in [-1, 1], like `fitted`; one channel at a time, as floats are four times as large."""
    return torch.stack([fitted(channel[None].float().div_(127.5).sub_(1), size)[0] for channel in levels], dim=-1).permute(2, 0, 1)


def fitted_map(indices: Tensor, size: int) -> Tensor:
    """(H, W) whole numbers of any type -> (size, size) of it, like `fitted`, each pixel that of the nearest."""
    indices = indices[_middle(indices.shape)]
    rows, columns = (_nearest(*sides) for sides in zip(indices.shape, _scaled(indices.shape, size), strict=True))
    top, left = (round((len(places) - size) / 2) for places in (rows, columns))
    return indices[rows[top : top + size]][:, columns[left : left + size]]


def _nearest(length: int, scaled: int) -> Tensor:
    """(scaled,): which of `length` pixels in a row each of its pixels shows."""
    places: Tensor = F.interpolate(torch.arange(length, dtype=torch.float64)[None, None], size=scaled, mode="nearest-exact")
    return places[0, 0].long()


def fitted_boxes(boxes: Tensor, stored: Sequence[int], size: int) -> Tensor:
    """(K, 5) shares of a picture of stored (H, W) -> the same of the centre square, like `fitted`; those outside it are left out."""
    rows, columns = _middle(stored)
    middle = rows.stop - rows.start, columns.stop - columns.start
    height, width = _scaled(middle, size)
    of_whole = torch.tensor([stored[1] / middle[1] * width, stored[0] / middle[0] * height]).repeat(2) / size
    offset = torch.tensor([round((width - size) / 2), round((height - size) / 2)]).repeat(2) / size
    cut_off = torch.tensor([columns.start / middle[1] * width, rows.start / middle[0] * height]).repeat(2) / size
    return _seen(torch.cat([boxes[:, :1], boxes[:, 1:] * of_whole - offset - cut_off], dim=1))


def _seen(boxes: Tensor) -> Tensor:
    """The parts of the boxes that lie within the picture; boxes outside are left out."""
    clipped = torch.cat([boxes[:, :1], boxes[:, 1:].clamp(0, 1)], dim=1)
    return clipped[(clipped[:, 3:] > clipped[:, 1:3]).all(1)]


def _middle(shape: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of a picture that is at most LONGEST times as long as it is wide: all of most pictures."""
    most = LONGEST * min(shape[-2:])
    starts = [max(0, side - most) // 2 for side in shape[-2:]]
    return slice(starts[0], starts[0] + min(shape[-2], most)), slice(starts[1], starts[1] + min(shape[-1], most))


def _scaled(shape: Sequence[int], size: int) -> list[int]:
    height, width = shape[-2:]
    short = min(height, width)
    return [max(size, round(height * size / short)), max(size, round(width * size / short))]


def augmented(
    image: Tensor,
    mask: Tensor | None,
    indices: Tensor | None,
    boxes: Tensor | None,
    augment: Augment,
    ground: Tensor | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """A random change of a fitted picture, its mask (1, S, S), its map (S, S) and its boxes (K, 5).

    Args:
        image: (C, S, S) in [-1, 1].
        ground: colour (C, 1, 1) that comes into view around it, with mask 0 and map unknown; None = the picture is mirrored at its edges,
            with its mask and map.
        generator: all randomness.
    """

    def between(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    flip = between(0, 1) < augment.flip
    angle = between(-augment.rotate, augment.rotate)
    zoom = math.exp(between(*map(math.log, augment.zoom)))
    side = image.shape[-1]
    move = [round(side * between(-augment.shift, augment.shift)) for _ in range(2)]
    brightness, contrast, saturation = (1 + between(-most, most) for most in (augment.brightness, augment.contrast, augment.saturation))
    hue = between(-augment.hue, augment.hue)

    def moved(x: Tensor, interpolation: V.InterpolationMode, outside: Tensor) -> Tensor:
        x = x.flip(-1) if flip else x
        if angle == 0 and zoom == 1 and move == [0, 0]:
            return x
        if ground is None:
            border = side // 2
            wide = F.pad(x[None], [border] * 4, mode="reflect")[0]
            square: Tensor = V.center_crop(V.affine(wide, angle, move, zoom, [0.0, 0.0], interpolation), [side, side])
            return square
        # Zero comes into view from outside, so what should come is made zero: the edge blends exactly.
        inside: Tensor = V.affine(x - outside, angle, move, zoom, [0.0, 0.0], interpolation)
        return inside + outside

    nearest = V.InterpolationMode.NEAREST
    image = moved(image, V.InterpolationMode.BILINEAR, torch.zeros(1) if ground is None else ground)
    mask = None if mask is None else moved(mask, nearest, torch.tensor(0.0))
    indices = None if indices is None else moved(indices[None].float(), nearest, torch.tensor(float(UNKNOWN)))[0].long()

    boxes = None if boxes is None else _moved_boxes(boxes, flip, angle, zoom, [step / side for step in move])

    if len(image) == 3 and (brightness, contrast, saturation, hue) != (1, 1, 1, 0):
        shown = (image + 1) / 2
        shown = V.adjust_contrast(V.adjust_brightness(shown, brightness), contrast)
        image = V.adjust_hue(V.adjust_saturation(shown, saturation), hue) * 2 - 1
    return image, mask, indices, boxes


def _moved_boxes(boxes: Tensor, flip: bool, angle: float, zoom: float, move: list[float]) -> Tensor:
    """Boxes around boxes that were mirrored, turned clockwise by degrees about the centre, zoomed, and moved by shares of the side."""
    x, y = boxes[:, [1, 3, 3, 1]] - 0.5, boxes[:, [2, 2, 4, 4]] - 0.5  # (K, 4) corners
    x = -x if flip else x
    cos, sin = zoom * math.cos(math.radians(angle)), zoom * math.sin(math.radians(angle))
    x, y = cos * x - sin * y + 0.5 + move[0], sin * x + cos * y + 0.5 + move[1]
    return _seen(torch.stack([boxes[:, 0], x.amin(1), y.amin(1), x.amax(1), y.amax(1)], dim=1))
