"""Between a user's picture of any size and the square that the model paints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur, pil_to_tensor, resize, to_pil_image

CONTEXT = 2.0  # side of the square in units of the hole's longer side, where the picture is large enough
SEAM = 0.03  # width of the seam's blending, in units of the square's side


def as_pictures(images: Tensor) -> list[Image.Image]:
    """(B, C, H, W) in [-1, 1] to pictures of 8 bits; values beyond are clipped. C is 1 (grey) or at least 3 (the first three are shown)."""
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [to_pil_image(image[:3] if len(image) > 3 else image) for image in levels]


def as_tensor(picture: Image.Image, channels: int) -> Tensor:
    """A picture as (1, C, H, W) float32 in [-1, 1]: RGB, or grey for one channel."""
    return pil_to_tensor(picture.convert("L" if channels == 1 else "RGB"))[None].float() / 127.5 - 1


@dataclass(frozen=True)
class Square:
    """A square region of a picture, which may reach over its edges; in pixels."""

    top: int
    left: int
    side: int

    @staticmethod
    def around(hole: Tensor, smallest: int) -> Square:
        """The square to paint for a hole, (H, W) bool with at least one pixel: centred on it, with context, within the picture if it fits.

        A picture that the square covers on one side but not on the other is reached over on the shorter side.
        """
        height, width = hole.shape
        rows, columns = hole.any(1).nonzero()[:, 0], hole.any(0).nonzero()[:, 0]
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        wanted = max(round(CONTEXT * max(bottom - top, right - left)), smallest)
        side = min(wanted, max(height, width))
        return Square(_placed((top + bottom) // 2, side, height), _placed((left + right) // 2, side, width), side)

    def cut(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, side, side); beyond the picture its edge pixels are repeated."""
        height, width = image.shape[2:]
        rows = torch.arange(self.top, self.top + self.side).clamp(0, height - 1)
        columns = torch.arange(self.left, self.left + self.side).clamp(0, width - 1)
        return image[:, :, rows][:, :, :, columns]

    def put(self, image: Tensor, patch: Tensor) -> Tensor:
        """The picture with (B, C, side, side) in the square's place, as far as it lies within."""
        height, width = image.shape[2:]
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + self.side, height), min(self.left + self.side, width)
        whole = image.clone()
        whole[:, :, top:bottom, left:right] = patch[:, :, top - self.top : bottom - self.top, left - self.left : right - self.left]
        return whole


def _placed(centre: int, side: int, length: int) -> int:
    """First pixel of an interval of `side` about a centre, kept within `length`; about the middle if it is longer."""
    if side >= length:
        return (length - side) // 2
    return min(max(centre - side // 2, 0), length - side)


def resized(image: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side), antialiased."""
    return image if image.shape[-1] == side == image.shape[-2] else resize(image, [side, side], antialias=True)


def resized_mask(mask: Tensor, side: int) -> Tensor:
    """(B, 1, H, W) of {0, 1} -> (B, 1, side, side): painted where any pixel is."""
    if mask.shape[-1] < side:
        return F.interpolate(mask, size=(side, side), mode="nearest-exact")
    return F.adaptive_max_pool2d(mask, side)


def blended(known: Tensor, painted: Tensor, hole: Tensor) -> Tensor:
    """The painted square, fitted to its surroundings along the seam.

    The difference between picture and painting just outside the hole is continued into it, fading out; what is known stays as it is.

    Args:
        known: (1, C, S, S), the picture, in [-1, 1].
        painted: (1, C, S, S), the model's, both over the whole square.
        hole: (1, 1, S, S), 1 = painted.
    """
    if not (hole < 1).any():
        return painted
    width = max(1.0, SEAM * hole.shape[-1])
    kernel = 2 * int(3 * width) + 1
    if kernel // 2 >= hole.shape[-1]:  # the blur's mirrored border must fit
        return torch.where(hole > 0, painted, known)
    outside = 1 - hole
    share = gaussian_blur(outside, [kernel, kernel], [width, width])
    difference = gaussian_blur((known - painted) * outside, [kernel, kernel], [width, width]) / share.clamp_min(1e-4)
    return torch.where(hole > 0, painted + (2 * share).clamp(max=1) * difference, known)


def pasted(picture: Image.Image, painting: Tensor, hole: np.ndarray) -> Image.Image:
    """The user's picture with (C, H, W) in [-1, 1] where hole, (H, W) bool, is True; every other pixel keeps its bytes and alpha."""
    mode = picture.mode if picture.mode in ("L", "RGB", "LA", "RGBA") else "RGB"
    pixels = np.array(picture.convert(mode))
    levels = np.array(as_pictures(painting[None])[0].convert(mode))
    pixels[hole] = levels[hole]
    return Image.fromarray(pixels, mode)
