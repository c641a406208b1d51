"""Colour profiles: what the numbers of a picture mean.

The network sees sRGB. A picture whose pixels are kept has its profile kept beside them.
"""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

PROFILE = "icc_profile"  # where Pillow keeps a profile: image.info[PROFILE]
DAMAGED, SRGB_NAME = "damaged", "sRGB"
SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}  # a profile's colour space, by the mode that it is for
D50 = (0.9642, 1.0, 0.8249)  # XYZ of the white that profiles are related to
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # x and y of white, red, green and blue
DISPLAY_P3 = (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
BT_2020 = (0.3127, 0.3290, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046)
ADOBE_RGB = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
ADOBE_GAMMA = 563 / 256


class Profile(NamedTuple):
    """A profile for pictures of one mode.

    Attributes:
        name: its own; "sRGB" if it changes nothing; "damaged" if it cannot be read, or is for another mode: then it is ignored.
        to_srgb: None = nothing to do.
        from_srgb: likewise, back; also None where the profile has no way back.
    """

    name: str
    to_srgb: ImageCms.ImageCmsTransform | None = None
    from_srgb: ImageCms.ImageCmsTransform | None = None


def name_of(image: Image.Image) -> str:
    """The name of the picture's profile, see `Profile`; empty if it has none."""
    return _profile_of(image).name if image.info.get(PROFILE) is not None else ""


def in_srgb(image: Image.Image) -> Image.Image:
    """The picture in sRGB: itself if its profile is that, or none, or damaged (which `name_of` says), as browsers do it.

    One in CMYK becomes RGB; transparency stays; a profile that was followed is gone.
    """
    transform = _profile_of(image).to_srgb
    return image if transform is None else _converted(image, transform)


def in_profile_of(image: Image.Image, model: Image.Image) -> Image.Image:
    """A picture in sRGB, with its numbers changed to mean the same in the profile of another picture of its mode."""
    transform = _profile_of(model).from_srgb
    return image if transform is None else _converted(image, transform)


def can_keep_profile(image: Image.Image) -> bool:
    """Whether the picture can stay in its profile while parts of it are painted in sRGB."""
    profile = _profile_of(image)
    return profile.to_srgb is None or profile.from_srgb is not None


def matrix_profile(name: str, chromaticities: tuple[float, ...], gamma: float | None) -> bytes:
    """The ICC profile (version 2) of an RGB space.

    Args:
        name: of it, for people.
        chromaticities: x and y of white, red, green and blue, as PNG's cHRM has them.
        gamma: exponent from numbers to light, about 2.2; None = the curve of sRGB.

    Raises:
        ValueError: no such space.

    Source: ICC.1:2001-04, 6.3.1.2; Lindbloom, "RGB/XYZ Matrices" and "Chromatic Adaptation".
    """
    xy = np.array(chromaticities, dtype=np.float64).reshape(4, 2)
    if not (xy[:, 1] > 1e-6).all() or not (gamma is None or 0.1 <= gamma <= 10):
        raise ValueError("not chromaticities and a gamma")
    white, *primaries = np.stack([xy[:, 0] / xy[:, 1], np.ones(4), (1 - xy.sum(1)) / xy[:, 1]], axis=1)
    try:
        to_xyz = np.stack(primaries, axis=1) * np.linalg.solve(np.stack(primaries, axis=1), white)
    except np.linalg.LinAlgError:
        raise ValueError("the primaries lie on a line") from None
    gain = np.diag(BRADFORD @ D50 / (BRADFORD @ white))
    adapted = np.linalg.inv(BRADFORD) @ gain @ BRADFORD @ to_xyz
    if not (np.abs(adapted) < 16).all():
        raise ValueError("not chromaticities")

    def xyz(value: np.ndarray | tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(part * 65536) for part in value))

    points = [round(gamma * 256)] if gamma is not None else [round(_light(step / 1023) * 65535) for step in range(1024)]
    curve = b"curv\0\0\0\0" + struct.pack(f">I{len(points)}H", len(points), *points)
    description = b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name.encode("ascii") + bytes(79)
    tags = {b"desc": description, b"wtpt": xyz(D50)}
    tags |= {letter + b"XYZ": xyz(adapted[:, column]) for column, letter in enumerate((b"r", b"g", b"b"))}
    tags |= {letter + b"TRC": curve for letter in (b"r", b"g", b"b")}
    table, data, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(content))
        data += content.ljust(-(-len(content) // 4) * 4, b"\0")
    size, version = start + len(data), 0x02100000
    head = struct.pack(">I4xI4s4s4s12x4s28x12s48x", size, version, b"mntr", b"RGB ", b"XYZ ", b"acsp", xyz(D50)[8:])
    return head + table + data


def _light(number: float) -> float:
    """From sRGB's numbers to light, both from 0 to 1 (IEC 61966-2-1)."""
    return number / 12.92 if number <= 0.04045 else ((number + 0.055) / 1.055) ** 2.4


def _profile_of(image: Image.Image) -> Profile:
    content = image.info.get(PROFILE)
    mode = image.mode.removesuffix("A")
    if content is None or mode not in SPACES:
        return Profile("")
    return _read(content, mode) if isinstance(content, bytes) else Profile(DAMAGED)


@lru_cache(maxsize=32)
def _read(content: bytes, mode: str) -> Profile:
    """A profile, for pictures of mode L, RGB or CMYK; perceptual intent."""
    # Of a grey profile the library makes a coarse table, up to 10 levels off in the dark, unless it is told not to.
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(content))
        if source.profile.xcolor_space != SPACES[mode]:
            return Profile(DAMAGED)
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        to_srgb = ImageCms.buildTransform(source, srgb, mode, "RGB", flags=flags)
        name = " ".join((source.profile.profile_description or "without a name").split())
    except Exception:  # whatever the library raises on hostile bytes: such a profile says nothing
        return Profile(DAMAGED)
    if mode != "CMYK" and _changes_nothing(to_srgb, mode):
        return Profile(SRGB_NAME)
    try:
        back = None if mode == "CMYK" else ImageCms.buildTransform(srgb, source, "RGB", mode, flags=flags)
    except ImageCms.PyCMSError:  # a scanner's profile may have one direction only
        back = None
    return Profile(name, to_srgb, back)


def _changes_nothing(to_srgb: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform moves no level of a grid by more than one: sRGB has many profiles, none of which is worth a rounding."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, len(steps), 3)
    image = Image.fromarray(grid) if mode == "RGB" else Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    moved, before = (np.asarray(colours, dtype=np.int16) for colours in (to_srgb.apply(image), image.convert("RGB")))
    return bool((np.abs(moved - before) <= 1).all())


def _converted(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """The colours transformed, in the picture's mode (CMYK becomes RGB); transparency as it is; without a profile."""
    alpha = image.getchannel("A") if image.mode.endswith("A") else None
    mode = image.mode.removesuffix("A")
    colours = image if alpha is None else image.convert(mode)
    colours = transform.apply(colours.convert(transform.input_mode))
    if mode == "L":
        colours = colours.convert("L")
    if alpha is not None:
        colours.putalpha(alpha)
    colours.info.pop(PROFILE, None)  # the transform leaves its output's there
    return colours
