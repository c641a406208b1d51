"""Conditions as images, for the eye: maps in colours, boxes drawn."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable

import torch
from PIL import ImageColor
from torch import Tensor

GOLDEN = 0.618034  # of a turn: hues of neighbouring classes lie far apart
GROUNDS = ("background", "unknown", "void", "unlabeled", "unlabelled", "none", "other")


def map_images(maps: Tensor, classes: int) -> Tensor:
    """(B, H, W) class indices to (B, 3, H, W) in [-1, 1]: a colour a class; -1 and `classes`, unknown, are grey."""
    colours = torch.tensor([_colour(index) for index in range(classes)] + [(0.0, 0.0, 0.0)])
    known = maps.where((maps >= 0) & (maps < classes), classes)
    return colours[known.cpu()].permute(0, 3, 1, 2)


def class_colours(classes: int, names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """ "#rrggbb" of each class: that of its name where it is a colour's, near white for a background, else a hue of its own."""
    return tuple(_named_colour(names[i] if names else "") or _hex(_colour(i)) for i in range(classes))


def _named_colour(name: str) -> str:
    """Empty if the name is no colour's."""
    if name.lower() in GROUNDS:
        return "#f1efe9"
    word = name.lower().replace(" ", "").replace("-", "").replace("_", "")
    return "#{:02x}{:02x}{:02x}".format(*ImageColor.getrgb(word)) if word in ImageColor.colormap else ""


def _hex(colour: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round((level + 1) * 127.5):02x}" for level in colour)


def box_images(boxes: Tensor, side: int) -> Tensor:
    """(B, K, 5) boxes, see `ldm.data.record.Box`, to (B, 3, S, S) in [-1, 1]: outlines in their class's colour, the first on top."""
    line = max(1, side // 48)
    images = torch.ones(len(boxes), 3, side, side)
    for image, listed in zip(images, boxes.tolist(), strict=True):
        for index, *corners in reversed([box for box in listed if box[0] >= 0]):
            left, top, right, bottom = (round(share * (side - 1)) for share in corners)
            colour = torch.tensor(_colour(int(index)))[:, None, None]
            for rows, columns in _edges(left, top, right, bottom, line):
                image[:, rows, columns] = colour
    return images


def _edges(left: int, top: int, right: int, bottom: int, line: int) -> Iterable[tuple[slice, slice]]:
    wide, high = slice(left, right + 1), slice(top, bottom + 1)
    yield slice(top, top + line), wide
    yield slice(max(top, bottom - line + 1), bottom + 1), wide
    yield high, slice(left, left + line)
    yield high, slice(max(left, right - line + 1), right + 1)


def _colour(index: int) -> tuple[float, float, float]:
    """RGB in [-1, 1] of a class."""
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN % 1, (0.9, 0.55)[index // 8 % 2], (0.95, 0.7)[index % 2])
    return 2 * red - 1, 2 * green - 1, 2 * blue - 1
