"""Pictures, masks, maps and boxes brought to one size, and changed at random alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from ldm.data.config import Augment, Fit

UNKNOWN = -1  # a map's class where nothing is known
LONGEST = 32  # lengths of the part that is shown; of longer pictures only the middle is scaled, most of which is cut off anyway


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a stored picture comes to lie in an image of (height, width) pixels.

    Attributes:
        stored: (height, width) of the picture.
        kept: the rows and columns of it that are scaled: all, but of a very long picture only its middle.
        scaled: (height, width) that these are scaled to.
        corner: (row, column) of their first pixel in the image; what lies before 0 or beyond the image is cut off.
        size: (height, width) of the image.
    """

    stored: tuple[int, int]
    kept: tuple[slice, slice]
    scaled: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]

    @staticmethod
    def of(stored: Sequence[int], size: tuple[int, int], fit: Fit = "centre", generator: torch.Generator | None = None) -> Placement:
        """See `DataConfig.fit`.

        Args:
            stored: (height, width).
            size: of the image.
            fit: how it is brought to that size.
            generator: of the place for `random`.
        """
        height, width = stored
        if fit == "stretch":
            return Placement(stored=(height, width), kept=(slice(0, height), slice(0, width)), scaled=size, corner=(0, 0), size=size)
        is_whole = fit == "pad"
        kept = (slice(0, height), slice(0, width)) if is_whole else _middle((height, width), size)
        height, width = (part.stop - part.start for part in kept)
        tall, wide = size[0] * width, size[1] * height
        wanted, present = (size[0], height) if (tall <= wide if is_whole else tall >= wide) else (size[1], width)
        lengths = [round(length * wanted / present) for length in (height, width)]
        if is_whole:
            scaled = [min(side, max(1, length)) for side, length in zip(size, lengths, strict=True)]
        else:
            scaled = [max(side, length) for side, length in zip(size, lengths, strict=True)]
        spare = [length - side for length, side in zip(scaled, size, strict=True)]
        if fit == "random":
            corner = [-int((more + 1) * torch.rand((), generator=generator, dtype=torch.float64).item()) for more in spare]
        else:
            corner = [-round(more / 2) for more in spare]
        return Placement(stored=(stored[0], stored[1]), kept=kept, scaled=(scaled[0], scaled[1]), corner=(corner[0], corner[1]), size=size)

    @property
    def shown(self) -> tuple[slice, slice]:
        """The rows and columns of what was scaled that lie in the image."""
        rows, columns = (slice(max(0, -place), max(0, -place) + side) for place, side in zip(self.corner, self.size, strict=True))
        return rows, columns

    def lay(self, shown: Tensor, outside: Tensor | float) -> Tensor:
        """What is shown of a picture -> (..., *size), on the numbers of `outside`."""
        if shown.shape[-2:] == self.size:
            return shown
        canvas = shown.new_empty(*shown.shape[:-2], *self.size).copy_(torch.as_tensor(outside))
        top, left = (max(0, place) for place in self.corner)
        canvas[..., top : top + shown.shape[-2], left : left + shown.shape[-1]] = shown
        return canvas


def fitted(image: Tensor, place: Placement, outside: Tensor | float = 0.0) -> Tensor:
    """(C, H, W) in [-1, 1] -> (C, *place.size): scaled (antialiased) and laid on a colour, (C, 1, 1) or a number."""
    scaled: Tensor = V.resize(image[(..., *place.kept)], list(place.scaled), antialias=True).clamp(-1, 1)
    return place.lay(scaled[(..., *place.shown)], outside)


def fitted_levels(levels: Tensor, place: Placement, outside: Tensor) -> Tensor:
    """(C, H, W) uint8 -> (C, *place.size) float32 in [-1, 1], like `fitted`; one channel at a time, as floats are four times as large."""
    channels = zip(levels, outside, strict=True)
    return torch.stack([fitted(one[None].float().div_(127.5).sub_(1), place, ground)[0] for one, ground in channels], dim=-1).permute(
        2, 0, 1
    )


def fitted_map(indices: Tensor, place: Placement) -> Tensor:
    """(H, W) whole numbers of any type -> place.size int64, like `fitted`, each pixel that of the nearest; UNKNOWN outside."""
    indices = indices[place.kept]
    rows, columns = (_nearest(*sides) for sides in zip(indices.shape, place.scaled, strict=True))
    return place.lay(indices[rows[place.shown[0]]][:, columns[place.shown[1]]].long(), UNKNOWN)


def _nearest(length: int, scaled: int) -> Tensor:
    """(scaled,): which of `length` pixels in a row each of its pixels shows."""
    places: Tensor = F.interpolate(torch.arange(length, dtype=torch.float64)[None, None], size=scaled, mode="nearest-exact")
    return places[0, 0].long()


def fitted_boxes(boxes: Tensor, place: Placement) -> Tensor:
    """(K, 5) shares of the stored picture -> shares of the image, like `fitted`; those outside it are left out."""
    lengths = [part.stop - part.start for part in place.kept]

    def shares(of: Callable[[int], float]) -> Tensor:
        """Of the image's width and height, twice: for the left upper and the right lower corner."""
        return torch.tensor([of(axis) / place.size[axis] for axis in (1, 0)]).repeat(2)

    of_whole = shares(lambda axis: place.stored[axis] / lengths[axis] * place.scaled[axis])
    offset = shares(lambda axis: -place.corner[axis])
    cut_off = shares(lambda axis: place.kept[axis].start / lengths[axis] * place.scaled[axis])
    return _seen(torch.cat([boxes[:, :1], boxes[:, 1:] * of_whole - offset - cut_off], dim=1))


def _seen(boxes: Tensor) -> Tensor:
    """The parts of the boxes that lie within the picture; boxes outside are left out."""
    clipped = torch.cat([boxes[:, :1], boxes[:, 1:].clamp(0, 1)], dim=1)
    return clipped[(clipped[:, 3:] > clipped[:, 1:3]).all(1)]


def _middle(stored: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a picture that is at most LONGEST times as long as the part of it that is shown: all of most pictures."""
    most = [max(1, LONGEST * stored[1 - axis] * size[axis] // size[1 - axis]) for axis in (0, 1)]
    starts = [max(0, side - longest) // 2 for side, longest in zip(stored, most, strict=True)]
    rows, columns = (slice(start, start + min(*sides)) for start, *sides in zip(starts, stored, most, strict=True))
    return rows, columns


def augmented(
    image: Tensor,
    mask: Tensor | None,
    indices: Tensor | None,
    boxes: Tensor | None,
    augment: Augment,
    ground: Tensor | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """A random change of a fitted picture, its mask (1, H, W), its map (H, W) and its boxes (K, 5).

    Args:
        image: (C, H, W) in [-1, 1].
        ground: colour (C, 1, 1) that comes into view around it, with mask 0 and map unknown; None = the picture is mirrored at its edges,
            with its mask and map.
        generator: all randomness.
    """

    def between(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    flip = between(0, 1) < augment.flip
    angle = between(-augment.rotate, augment.rotate)
    zoom = math.exp(between(*map(math.log, augment.zoom)))
    height, width = image.shape[1:]
    move = [round(side * between(-augment.shift, augment.shift)) for side in (width, height)]
    brightness, contrast, saturation = (1 + between(-most, most) for most in (augment.brightness, augment.contrast, augment.saturation))
    hue = between(-augment.hue, augment.hue)

    def moved(x: Tensor, interpolation: V.InterpolationMode, outside: Tensor) -> Tensor:
        x = x.flip(-1) if flip else x
        if angle == 0 and zoom == 1 and move == [0, 0]:
            return x
        if ground is None:
            border = max(height, width) // 2
            wide = x[:, _mirrored(height, border)][:, :, _mirrored(width, border)]
            middle: Tensor = V.center_crop(V.affine(wide, angle, move, zoom, [0.0, 0.0], interpolation), [height, width])
            return middle
        # Zero comes into view from outside, so what should come is made zero: the edge blends exactly.
        inside: Tensor = V.affine(x - outside, angle, move, zoom, [0.0, 0.0], interpolation)
        return inside + outside

    nearest = V.InterpolationMode.NEAREST
    image = moved(image, V.InterpolationMode.BILINEAR, torch.zeros(1) if ground is None else ground)
    mask = None if mask is None else moved(mask, nearest, torch.tensor(0.0))
    indices = None if indices is None else moved(indices[None].float(), nearest, torch.tensor(float(UNKNOWN)))[0].long()

    boxes = None if boxes is None else _moved_boxes(boxes, flip, angle, zoom, (move[0] / width, move[1] / height), width / height)

    if len(image) == 3 and (brightness, contrast, saturation, hue) != (1, 1, 1, 0):
        shown = (image + 1) / 2
        shown = V.adjust_contrast(V.adjust_brightness(shown, brightness), contrast)
        image = V.adjust_hue(V.adjust_saturation(shown, saturation), hue) * 2 - 1
    return image, mask, indices, boxes


def _mirrored(length: int, border: int) -> Tensor:
    """(length + 2 border,): which of `length` pixels in a row each pixel shows, where they are mirrored at both ends as often as needed."""
    period = max(1, 2 * (length - 1))
    places = torch.arange(-border, length + border) % period
    return torch.where(places < length, places, period - places)


def _moved_boxes(boxes: Tensor, flip: bool, angle: float, zoom: float, move: tuple[float, float], aspect: float) -> Tensor:
    """Boxes around boxes that were mirrored, turned clockwise by degrees about the centre, zoomed, and moved by shares of the sides.

    aspect: the image's width by its height.
    """
    x, y = boxes[:, [1, 3, 3, 1]] - 0.5, boxes[:, [2, 2, 4, 4]] - 0.5  # (K, 4) corners
    x = -x if flip else x
    cos, sin = zoom * math.cos(math.radians(angle)), zoom * math.sin(math.radians(angle))
    x, y = cos * x - sin * y / aspect + 0.5 + move[0], sin * x * aspect + cos * y + 0.5 + move[1]
    return _seen(torch.stack([boxes[:, 0], x.amin(1), y.amin(1), x.amax(1), y.amax(1)], dim=1))
