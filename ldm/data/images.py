"""Picture files of every kind that people have, to tensors: grey, RGB, with alpha, 16-bit, float, CMYK, palette, EXIF-rotated, arrays."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.reading import read_bytes
from ldm.data.formats import HEAD, format_of
from ldm.data.picture_file import (
    BITS,
    MAX_FILE,
    MAX_MEMORY,
    MAX_PIXELS,
    PHOTOMETRIC,
    STORED_LEVELS,
    decode_stored,
    decoding,
    stored_size,
)
from ldm.data.profiles import PROFILE, in_srgb, name_of

Levels = tuple[float, float]
"""The numbers that are black and white."""

MAX_NUMBERS = MAX_MEMORY // 4  # in an array, of which each becomes a float of 4 bytes
LARGEST = float(np.finfo(np.float32).max)
HALF_A_LEVEL = 0.5 / 255  # how far beyond 0 ... 1 a float may be that is shown as black or white
STRIP = 2**20  # pixels that are converted at once, so that a large picture is never whole in more bytes than it keeps
LOSSY = ("JPEG", "AVIF", "HEIF")  # formats that keep no exact numbers
BRIGHT = 128  # levels of a mask from here on are object
UNDECIDED = 0.05  # share of a mask's pixels that may be neither dark nor bright before it is doubted; JPEG and smooth edges have some


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """What a picture file is, as it is stored.

    Attributes:
        format: of `formats.FORMATS`.
        mode: Pillow's: L, RGB, I;16, F, CMYK, P, ...
        size: (width, height), upright.
        has_alpha: whether any of it can be transparent.
        profile: name of its colour profile; "" = none, "sRGB" if it changes nothing, "damaged" if it is ignored.
        span: smallest and largest number in it; None for pictures of 8 bits.
    """

    format: str
    mode: str
    size: tuple[int, int]
    has_alpha: bool
    profile: str
    span: Levels | None


def open_image(path: Path) -> Image.Image:
    """A picture from a file, upright, in mode L, LA, RGB or RGBA, 8 bits a channel; its colour profile stays beside it, in its info.

    Raises:
        UserError: no such file, not a regular one, not a picture, damaged, or too large.
    """
    return _decoded(read_bytes(path, MAX_FILE), str(path), Path(path).suffix, 0, None)[0]


def open_map(path: Path) -> Tensor:
    """Class indices (H, W) int64 from a grey (8- or 16-bit) or palette picture.

    Raises:
        UserError: as `open_image`; a colour picture.
    """
    return decode_map(read_bytes(path, MAX_FILE), str(path), suffix=path.suffix).long()


def size_of(content: bytes, name: str, *, suffix: str = "") -> tuple[int, int]:
    """(height, width), upright, of a data set's picture: of a picture file or a `.npy`, by its header.

    Raises:
        UserError: not a picture, or its header is damaged.
    """
    if format_of(content[:HEAD], suffix) == "NPY":
        height, width, *_ = (*_array(content, name).shape, 1, 1)
        return height, width
    return stored_size(content, name, suffix=suffix)


def decode_image(content: bytes, name: str, *, suffix: str = "", page: int = 0, levels: Levels | None = None) -> Image.Image:
    """A picture of a file's bytes: upright, in sRGB, in mode L, LA, RGB or RGBA, 8 bits a channel.

    Args:
        content: of the file.
        name: of it, for messages.
        suffix: of its name; needed for TGA only.
        page: of an animation or a TIFF of several pages, see `count_pages`.
        levels: which numbers are black and white in pictures of more than 8 bits a channel; None = 0 and the largest possible, for floats
            and signed numbers 0 and 1.

    Raises:
        UserError: not a picture, damaged, or too large; floats or signed numbers beyond the levels if none are given, or NaN.
    """
    return examine(content, name, suffix=suffix, page=page, levels=levels)[0]


def examine(
    content: bytes, name: str, *, suffix: str = "", page: int = 0, levels: Levels | None = None
) -> tuple[Image.Image, PictureFacts]:
    """`decode_image`, and what the file is."""
    image, facts = _decoded(content, name, suffix, page, levels)
    image = in_srgb(image)
    image.info = {}
    return image, facts


def _decoded(content: bytes, name: str, suffix: str, page: int, levels: Levels | None) -> tuple[Image.Image, PictureFacts]:
    stored = decode_stored(content, name, suffix=suffix, page=page)
    with decoding(name):
        image = eight_bit(stored.image, name, levels)
        facts = PictureFacts(
            format=stored.format,
            mode=stored.image.mode,
            size=image.size,
            has_alpha=image.has_transparency_data,
            profile=name_of(stored.image if stored.image.mode == "CMYK" else image),
            span=_span(stored.image) if _is_deep(stored.image) else None,
        )
        return image, facts


def eight_bit(image: Image.Image, name: str, levels: Levels | None = None) -> Image.Image:
    """Any picture in mode L, LA, RGB or RGBA; itself if it is in one of these. CMYK follows its profile, the others keep theirs.

    Raises:
        UserError: floats or signed numbers beyond 0 ... 1 without levels, or NaN.
    """
    if _is_deep(image):
        return _scaled(image, name, levels)
    if image.mode == "CMYK":
        image = in_srgb(image)
    is_transparent = image.has_transparency_data
    if image.mode in ("1", "L"):
        return image if image.mode == "L" and not is_transparent else image.convert("LA" if is_transparent else "L")
    if image.mode in ("LA", "RGB", "RGBA") and "transparency" not in image.info:
        return image
    converted = image.convert("RGBA" if is_transparent else "RGB")
    if image.mode in ("CMYK", "LAB"):
        converted.info.pop(PROFILE, None)  # it is of the numbers before
    return converted


def decode_deep(content: bytes, name: str, *, suffix: str = "", levels: Levels | None = None) -> Tensor:
    """(1, H, W) float32 in [-1, 1] of a grey picture file, all of whose 16 bits, or 8, are kept. A colour profile changes nothing.

    Args:
        content, name, suffix, levels: see `decode_image`.

    Raises:
        UserError: as `decode_image`; a colour picture, or a transparent one, of which Pillow decodes 8 bits.
    """
    image = decode_stored(content, name, suffix=suffix).image
    with decoding(name):
        if not (_is_deep(image) or image.mode in ("1", "L")) or image.has_transparency_data:
            what = "has transparency" if image.has_transparency_data else f"is {image.mode}"
            raise UserError(f"{name}: {what}; data.depth=16 takes grey picture files; give others as .npy arrays, or set data.depth=8")
        black, white = _ends(image, name, levels) if _is_deep(image) else (0, 255)
        image = image.convert("L") if image.mode == "1" else image
        values = np.empty((1, image.height, image.width), dtype=np.float32)
        for rows, strip in _strips(image):
            values[0, rows] = ((np.asarray(strip, dtype=np.float64) - black) * (2 / (white - black)) - 1).clip(-1, 1)
        return torch.from_numpy(values)


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Some rows of a picture at a time."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _span(image: Image.Image) -> Levels:
    """Smallest and largest number in a deep picture; NaN where it has one."""
    ends = np.array([(strip.min(), strip.max()) for strip in (np.asarray(strip) for _, strip in _strips(image))], dtype=np.float64)
    return float(ends[:, 0].min()), float(ends[:, 1].max())


def _ends(image: Image.Image, name: str, levels: Levels | None) -> Levels:
    """The numbers that are black and white in a deep picture.

    Raises:
        UserError: floats or signed numbers beyond 0 ... 1 without levels, or NaN.
    """
    has_own = image.mode.startswith("I;16") or STORED_LEVELS in image.info
    least, most = _span(image)
    if not (math.isfinite(least) and math.isfinite(most)):
        raise UserError(f"{name}: has NaN or infinity among its levels; fill them, or leave the picture out")
    if levels is None and not has_own and (least < -HALF_A_LEVEL or most > 1 + HALF_A_LEVEL):
        raise UserError(
            f"{name}: its levels go from {least:g} to {most:g}; floats and signed numbers must lie between 0 and 1, "
            f"or data.levels must say which are black and white, as in data.levels=[{least:g}, {most:g}]"
        )
    ends: Levels = levels or image.info.get(STORED_LEVELS, (0, 65535) if has_own else (0, 1))
    return ends


def _scaled(image: Image.Image, name: str, levels: Levels | None) -> Image.Image:
    """A deep picture in mode L, or LA if one of its levels is transparent."""
    black, white = _ends(image, name, levels)
    shown = np.empty((image.height, image.width), dtype=np.uint8)
    for rows, strip in _strips(image):
        shown[rows] = np.rint(((np.asarray(strip, dtype=np.float64) - black) * (255 / (white - black))).clip(0, 255))
    result = Image.fromarray(shown)
    if "transparency" in image.info:
        opaque = np.concatenate([np.asarray(strip) != image.info["transparency"] for _, strip in _strips(image)])
        result.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    if PROFILE in image.info:
        result.info[PROFILE] = image.info[PROFILE]
    return result


def decode_map(content: bytes, name: str, *, suffix: str = "", most: int = MAX_PIXELS) -> Tensor:
    """Class indices (H, W) of a file's bytes, in the depth that they are stored in: uint8, or int32 if the picture has more than 8 bits.

    Raises:
        UserError: as `decode_image`; a colour picture; a format that changes numbers.
    """
    image, kind = decode_stored(content, name, suffix=suffix, most=most)
    if kind in LOSSY:
        raise UserError(f"{name}: {kind} changes class indices; store the map as PNG, made of what it was before")
    if kind in ("PPM", "TIFF") and _scales_numbers(content, kind):
        raise UserError(f"{name}: Pillow scales or inverts the numbers of such a {kind}; store the map as PNG")
    if image.mode not in ("L", "P", "1", "I") and not image.mode.startswith("I;16"):
        raise UserError(f"{name}: a map must be a grey or palette picture whose pixels are class indices, this one is {image.mode}")
    classes = np.asarray(image).astype(np.int32 if _is_deep(image) else np.uint8)
    if kind == "PNG" and image.mode == "L":  # Pillow spreads greys of 2 and 4 bits over 0 ... 255
        classes = classes // (255 // (2 ** content[24] - 1))
    return torch.from_numpy(classes)


def _scales_numbers(content: bytes, kind: str) -> bool:
    """Whether numbers are decoded as others: of a bitmap, a PGM of another largest number, a TIFF of few bits or where white is 0."""
    if kind == "PPM":
        header = re.match(rb"P[25]\s+(?:#[^\n]*\n\s*)*\d+\s+(?:#[^\n]*\n\s*)*\d+\s+(?:#[^\n]*\n\s*)*(\d+)", content)
        return header is None or int(header[1]) not in (255, 65535)
    with Image.open(io.BytesIO(content), formats=["TIFF"]) as image:
        tags = image.tag_v2  # type: ignore[attr-defined]
        return bool(tags.get(PHOTOMETRIC) == 0 or (tags.get(PHOTOMETRIC) == 1 and 1 < tags.get(BITS, (1,))[0] < 8))


def decode_mask(content: bytes, name: str, *, suffix: str = "") -> Tensor:
    """(1, H, W) float32 of {0, 1}: 1 where the mask has its object, see `object_in`."""
    return torch.from_numpy(object_in(decode_image(content, name, suffix=suffix)).astype(np.float32))[None]


def object_in(mask: Image.Image) -> np.ndarray:
    """(H, W) bool: where a mask is bright and opaque, so that object and paint may be white on transparent or white on black."""
    return _mask_levels(mask) >= BRIGHT


def doubt_about(mask: Image.Image) -> str:
    """Why a mask may not mean what `object_in` reads in it, as the end of a sentence about it; empty if there is no doubt."""
    counts = np.array(Image.fromarray(_mask_levels(mask)).histogram())
    largest, undecided = int(counts.nonzero()[0].max()), counts[BRIGHT // 2 : BRIGHT * 3 // 2].sum() / counts.sum()
    if 0 < largest < BRIGHT:
        return f"is nowhere bright (its largest level is {largest}): only {BRIGHT} and above is object"
    if undecided > UNDECIDED:
        return f"has {np.count_nonzero(counts)} grey levels, {undecided:.0%} of it neither dark nor bright: {BRIGHT} and above is object"
    return ""


def _mask_levels(mask: Image.Image) -> np.ndarray:
    """(H, W) uint8: how bright it is on black."""
    return _on_ground(eight_bit(mask, "the mask"), (0, 0, 0), "L")


def _on_ground(image: Image.Image, ground: tuple[int, int, int], mode: Literal["L", "RGB"]) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 of a picture in sRGB or its profile, in mode L, LA, RGB or RGBA, laid on a colour."""
    shown = np.empty((image.height, image.width) if mode == "L" else (image.height, image.width, 3), dtype=np.uint8)
    for rows, strip in _strips(image):
        strip = in_srgb(strip)
        if strip.mode in ("LA", "RGBA"):
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, (*ground, 255)), strip.convert("RGBA"))
        shown[rows] = np.asarray(strip.convert(mode))
    return shown


def decode_array(content: bytes, name: str, *, levels: Levels | None = None) -> Tensor:
    """(C, H, W) float32 in [-1, 1] of a .npy array (H, W, C) or (H, W).

    Args:
        content: of the file.
        name: of it, for messages.
        levels: which numbers are black and white in arrays of more than 8 bits; None = 0 and the largest possible, for floats -1 and 1.

    Raises:
        UserError: not such an array; floats or signed numbers beyond the levels if none are given, or NaN. Pickled objects are refused.
    """
    array = _array(content, name)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.dtype.kind not in "uif" or not 0 < array.size <= MAX_NUMBERS:
        raise UserError(
            f"{name}: an array must be (H, W, C) of numbers, at most {MAX_NUMBERS / 1e6:.0f} million, got {array.shape} of {array.dtype}"
        )
    own = (0, np.iinfo(array.dtype).max) if array.dtype.kind == "u" else None
    least, most = float(array.min()), float(array.max())
    if not max(abs(least), abs(most)) <= LARGEST:
        raise UserError(f"{name}: has NaN or infinity among its numbers; fill them, or leave it out")
    if own is None and levels is None and not -1 <= least <= most <= 1:
        raise UserError(
            f"{name}: its numbers go from {least:g} to {most:g}; an array of floats or signed numbers must lie in [-1, 1], "
            f"or data.levels must say which are black and white, as in data.levels=[{least:g}, {most:g}]"
        )
    black, white = (levels if array.dtype != np.uint8 else None) or own or (-1, 1)
    values = torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)
    if (black, white) != (-1, 1):
        values = values.sub_(black).mul_(2 / (white - black)).sub_(1).clamp_(-1, 1)
    return values


def _array(content: bytes, name: str) -> np.ndarray:
    """The array in a .npy file, whose header is believed only where the bytes behind it are as many as it says."""
    file = io.BytesIO(content)
    with decoding(name, "not a plain .npy array"):  # a damaged header is parsed as Python
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        there, needed = len(content) - file.tell(), math.prod(shape) * dtype.itemsize
        if there != needed:
            raise ValueError(f"{there} bytes where its header has {needed}")
        return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C")


def image_levels(image: Image.Image, channels: int, background: tuple[int, int, int], name: str) -> Tensor:
    """(C, H, W) uint8, in sRGB; transparency is laid on the background first.

    Raises:
        UserError: channels is neither 1 nor 3, which picture files cannot give.
    """
    if channels not in (1, 3):
        raise UserError(f"{name}: data.channels is {channels}, but picture files give 1 or 3; give .npy arrays of (H, W, {channels})")
    levels = torch.from_numpy(_on_ground(eight_bit(image, name), background, "L" if channels == 1 else "RGB"))
    return levels.reshape(*levels.shape[:2], channels).permute(2, 0, 1)


def image_tensor(image: Image.Image, channels: int, background: tuple[int, int, int], name: str) -> Tensor:
    """(C, H, W) float32 in [-1, 1], of `image_levels`."""
    return image_levels(image, channels, background, name).float().div_(127.5).sub_(1)
