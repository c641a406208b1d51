"""Between a user's picture of any size and the window that the model paints. (R, S) are the window's sides in the picture's pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.core.errors import UserError, described
from ldm.data.images import eight_bit, image_tensor, object_in
from ldm.data.profiles import DAMAGED, PROFILE, can_keep_profile, in_profile_of, in_srgb, name_of

CONTEXT = 2.0  # sides of the window in units of the hole's, at least, where the picture is large enough
SEAM = 0.03  # width of the seam's blending, in units of the window's longer side
BLEND_SIDE = 256  # the seam's correction is smooth, so a larger window's is computed at this size
FILL_WIDTH = 1 / 8  # how far the hole's filling looks, in units of the window's longer side
WHITE = (255, 255, 255)


def check_image(image: object, what: str) -> None:
    """Refuses, by UserError, what is no PIL image."""
    if not isinstance(image, Image.Image):
        raise UserError(f"{what} must be a PIL image, as of PIL.Image.open(PATH), got {described(image)}")


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, C, H, W) in [-1, 1] to pictures of 8 bits, grey or of the first three channels, a third black; values beyond are clipped."""
    shown = images[:, :3]
    shown = torch.cat([shown, torch.full_like(shown[:, :1], -1)], dim=1) if shown.shape[1] == 2 else shown
    levels = ((shown.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in levels]


def as_tensor(image: Image.Image, channels: int) -> Tensor:
    """A picture as (1, C, H, W) float32 in [-1, 1]: grey or RGB, as it looks on white.

    Raises:
        UserError: channels is neither 1 nor 3.
    """
    return image_tensor(image, channels, WHITE, "the picture")[None]


def ordinary(image: Image.Image) -> Image.Image:
    """The picture in mode L, LA, RGB or RGBA; itself if it is in one of these. Its colour profile stays beside it.

    It is brought to sRGB only where its profile cannot say which of its own numbers a painted colour has.

    Raises:
        UserError: floats or signed numbers beyond 0 to 1.
    """
    image = eight_bit(image, "the picture")
    return image if can_keep_profile(image) else in_srgb(image)


def hole_of(mask: Image.Image) -> np.ndarray:
    """(H, W) bool: what is to be painted, where the mask has its object."""
    return object_in(mask)


@dataclass(frozen=True)
class Window:
    """A rectangle of a picture, which may reach over its edges; in pixels."""

    top: int
    left: int
    height: int
    width: int

    @staticmethod
    def around(hole: np.ndarray, smallest: tuple[int, int]) -> Window:
        """The window to paint for a hole, (H, W) bool with at least one pixel: centred on it, with context, within the picture if it fits.

        Args:
            hole: to be painted.
            smallest: (height, width) of the window, or as many times of both. A picture that the window covers on one side but not on the
                other is reached over on the shorter side.
        """
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        wanted = max(1.0, CONTEXT * max((bottom - top) / smallest[0], (right - left) / smallest[1]))
        times = min(wanted, max(hole.shape[0] / smallest[0], hole.shape[1] / smallest[1]))
        height, width = (max(1, round(times * side)) for side in smallest)
        return Window(
            _placed((top + bottom) // 2, height, hole.shape[0]), _placed((left + right) // 2, width, hole.shape[1]), height, width
        )

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, ...) -> (R, S, ...); beyond the picture its edge pixels are repeated."""
        height, width = pixels.shape[:2]
        rows = np.arange(self.top, self.top + self.height).clip(0, height - 1)
        columns = np.arange(self.left, self.left + self.width).clip(0, width - 1)
        part: np.ndarray = pixels[rows[:, None], columns]
        return part


def _placed(centre: int, side: int, length: int) -> int:
    """First pixel of an interval of `side` about a centre, kept within `length`; about the middle if it is longer."""
    if side >= length:
        return (length - side) // 2
    return min(max(centre - side // 2, 0), length - side)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), antialiased."""
    return image if image.shape[2:] == size else F.interpolate(image, size=size, mode="bilinear", antialias=True)


def resized_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 1, H, W) of {0, 1} -> (B, 1, *size): painted where any pixel is."""
    if mask.shape[-1] < size[-1]:
        return F.interpolate(mask, size=size, mode="nearest-exact")
    return F.adaptive_max_pool2d(mask, size)


def known_at(known: Tensor, hole: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A window at the model's size, without what lies in its hole: that must not show in the result.

    Known pixels are means of known pixels only; the hole is filled smoothly from its surroundings, or with grey if there are none.

    Args:
        known: (1, C, R, S) in [-1, 1]; anything in the hole.
        hole: (1, 1, R, S) of {0, 1}, 1 = to be painted.
        size: the model's, (height, width).

    Returns:
        The window (1, C, *size) and its hole (1, 1, *size).
    """
    share = resized(1 - hole, size)
    small = resized(known * (1 - hole), size) / share.clamp_min(1e-6)
    small_hole = resized_mask(hole, size)
    outside = 1 - small_hole
    width = FILL_WIDTH * max(size)
    # The mean of all known pixels steps in where the blur reaches none.
    mean = (small * outside).sum((2, 3), keepdim=True) / outside.sum().clamp_min(1)
    filling = (_blurred(small * outside, width) + 1e-3 * mean) / (_blurred(outside, width) + 1e-3)
    return torch.where(small_hole > 0, filling, small), small_hole


def blended(known: Tensor, painted: Tensor, hole: Tensor) -> Tensor:
    """The painted window, fitted to its surroundings along the seam.

    The difference between picture and painting just outside the hole is continued into it, fading out; what is known stays as it is.

    Args:
        known: (1, C, R, S), the picture, in [-1, 1].
        painted: (1, C, R, S), the model's, both over the whole window.
        hole: (1, 1, R, S) of {0, 1}, 1 = painted.
    """
    size = hole.shape[2], hole.shape[3]
    times = min(1.0, BLEND_SIDE / max(size))
    small = max(1, round(times * size[0])), max(1, round(times * size[1]))
    width = max(1.0, SEAM * max(small))
    outside = 1 - hole
    share = _blurred(resized(outside, small), width)
    difference = _blurred(resized((known - painted) * outside, small), width) / share.clamp_min(1e-4)
    correction = resized((2 * share).clamp(max=1) * difference, size)
    return torch.where(hole > 0, painted + correction, known)


def _blurred(image: Tensor, width: float) -> Tensor:
    """Gaussian blur of (B, C, H, W) by a standard deviation in pixels, one side after the other; cut off where the picture is too small."""
    from torchvision.transforms.v2.functional import gaussian_blur  # torchvision takes a second to load, which most pictures never need

    reach = min(int(3 * width), min(image.shape[2:]) - 1)  # the mirrored border must fit
    kernel, sigma = 2 * reach + 1, [width, width]
    blurred: Tensor = gaussian_blur(gaussian_blur(image, [kernel, 1], sigma), [1, kernel], sigma)
    return blurred


def pasted(image: Image.Image, painting: Tensor, window: Window, hole: np.ndarray) -> Image.Image:
    """The user's picture with a painting of the window, (C, R, S) in [-1, 1], where hole, (H, W) bool, is True.

    Every other pixel keeps its bytes and alpha, and the whole its colour profile; what is painted is opaque. The picture is `ordinary`.
    """
    pixels = np.array(image)
    top, left = max(window.top, 0), max(window.left, 0)
    painted = in_profile_of(to_pil(painting[None])[0].convert(image.mode), image)
    levels = np.array(painted)[top - window.top :, left - window.left :]
    region = pixels[top : window.top + window.height, left : window.left + window.width]  # a view, cut at the picture's edges
    inside = hole[top : top + region.shape[0], left : left + region.shape[1]]
    region[inside] = levels[: region.shape[0], : region.shape[1]][inside]
    result = Image.fromarray(pixels)
    if name_of(image) not in ("", DAMAGED):
        result.info[PROFILE] = image.info[PROFILE]
    return result
