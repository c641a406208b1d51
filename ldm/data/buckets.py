"""Images of several sizes in one run: each picture is brought to the size whose shape is nearest to its own.

Source: NovelAI, "NovelAI improvements on Stable Diffusion", 2022 (aspect-ratio bucketing); Podell et al. 2023 (SDXL), sec. 2.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ldm.core.errors import UserError
from ldm.core.settings import Size, height_width, in_pixels

PHOTOS = (0.5, 0.5625, 0.6667, 0.75, 1.0, 1.3333, 1.5, 1.7778, 2.0)
"""Width by height of usual pictures: 1:2, 9:16, 2:3, 3:4, 1:1 and the same across."""


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """
    Attributes:
        pixels: of an image, at most.
        step: what all sides are multiples of, in pixels.
        aspects: width by height, one for each bucket; those that come to one size are one bucket.
    """

    pixels: int
    step: int = 64
    aspects: tuple[float, ...] = PHOTOS

    def __post_init__(self) -> None:
        if self.step < 1 or self.pixels < 1:
            raise UserError(f"data.buckets.pixels and step must be at least 1, got {self.pixels} and {self.step}")
        if not self.aspects or not all(0 < aspect < math.inf for aspect in self.aspects):
            raise UserError(f"data.buckets.aspects must be positive numbers, width by height, as in [0.5, 1, 2], got {list(self.aspects)}")
        for aspect in self.aspects:
            if not self._candidates(aspect):
                least = self.step * max(self.step, round(self.step * max(aspect, 1 / aspect)))
                raise UserError(
                    f"data.buckets: no image of aspect {aspect:g} with sides that are multiples of {self.step} has {self.pixels} pixels or "
                    f"fewer: lower step, raise pixels (to about {least}), or leave that aspect out"
                )

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each bucket, the narrowest first."""
        found = {min(self._candidates(aspect))[1:] for aspect in self.aspects}
        return tuple(sorted(found, key=lambda size: (size[1] / size[0], size)))

    def _candidates(self, aspect: float) -> list[tuple[float, int, int]]:
        """(how far it is from the size that has all the pixels, in logarithms of the sides; height; width), of the sizes around that."""
        height, width = math.sqrt(self.pixels / aspect), math.sqrt(self.pixels * aspect)
        found = []
        for h in _around(height, self.step):
            for w in _around(width, self.step):
                if h * w <= self.pixels:
                    found.append((round(abs(math.log(h / height)) + abs(math.log(w / width)), 9), h, w))
        return found

    def nearest(self, pictures: np.ndarray) -> np.ndarray:
        """The bucket of each picture: the one with the nearest logarithm of the aspect; of two as near, the narrower.

        Exact comparisons of products, so that all machines agree.

        Args:
            pictures: (N, 2), height and width; (0, 0) = not known, which counts as a square.

        Returns:
            (N,) numbers in `sizes`, int16.
        """
        height, width = pictures.astype(np.float64).T
        known = (height > 0) & (width > 0)
        height, width = np.where(known, height, 1.0), np.where(known, width, 1.0)
        found = np.zeros(len(pictures), np.int16)
        sizes = self.sizes
        for (h, w), (next_h, next_w) in zip(sizes, sizes[1:], strict=False):  # beyond the geometric mean of two aspects
            found += width * width * (h * next_h) > height * height * (w * next_w)
        return found


def _around(side: float, step: int) -> list[int]:
    below = math.floor(side / step + 1e-9) * step
    return [length for length in (below, below + step) if length > 0]


def sizes_of(size: Size, buckets: Buckets | None) -> tuple[tuple[int, int], ...]:
    """(height, width) of all images that a model is trained on."""
    return (height_width(size),) if buckets is None else buckets.sizes


def sizes_in_words(size: Size, buckets: Buckets | None) -> str:
    """For people: 64x64, or with the buckets beside it."""
    beside = "" if buckets is None else f" (trained on {', '.join(map(in_pixels, buckets.sizes))})"
    return f"{in_pixels(size)}{beside}"
