"""Layout maps: a drawing in sixteen named colours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
COLOURS = {
    "black": (35, 33, 38),
    "grey": (120, 116, 128),
    "light grey": (198, 195, 203),
    "white": (250, 250, 250),
    "red": (248, 49, 47),
    "dark red": (150, 30, 45),
    "orange": (255, 130, 45),
    "yellow": (255, 190, 50),
    "tan": (215, 165, 125),
    "brown": (120, 70, 50),
    "green": (0, 166, 90),
    "light green": (135, 215, 70),
    "light blue": (130, 205, 245),
    "blue": (0, 116, 214),
    "purple": (135, 85, 200),
    "pink": (250, 135, 180),
}
"""sRGB of each; class 0 of a map is the background, then come these."""
MAP_NAMES = ("background", *COLOURS)


def to_lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 3) sRGB of 0..255 to CIE Lab (D65)."""
    c = rgb / 255.0
    c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = c @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]]) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def distance(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P, K) squared distances of (P, 3) and (K, 3)."""
    return np.asarray((points**2).sum(1)[:, None] - 2 * points @ centres.T + (centres**2).sum(1))


def majority(classes: NDArray[np.integer], cell: int) -> Pixels:
    """(cell H, cell W) class numbers to (H, W): of each cell the most frequent class, the first of several."""
    height, width = (side // cell for side in classes.shape)
    place = np.arange(height * width).reshape(height, width).repeat(cell, 0).repeat(cell, 1)
    counts = np.bincount((place * len(MAP_NAMES) + classes).ravel(), minlength=height * width * len(MAP_NAMES))
    return np.asarray(counts.reshape(height, width, len(MAP_NAMES)).argmax(-1), dtype=np.uint8)


def nearest_colours() -> Pixels:
    """(32, 32, 32) the class of each colour whose levels, red, green and blue, are cut to five bits."""
    levels = np.arange(4, 256, 8, dtype=np.float64)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    centres = to_lab(np.array(list(COLOURS.values()), dtype=np.float64))
    return np.asarray(distance(to_lab(colours), centres).argmin(1) + 1, dtype=np.uint8).reshape(32, 32, 32)


def layout_of(drawing: Pixels, cell: int, nearest: Pixels) -> Pixels:
    """The map (H, W) of an RGBA drawing (cell H, cell W, 4); `nearest` is that of `nearest_colours`."""
    red, green, blue = (drawing[..., channel] >> 3 for channel in range(3))
    return majority(np.where(drawing[..., 3] > 127, nearest[red, green, blue], 0), cell)
