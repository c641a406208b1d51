"""Mangled picture files of every format: decoded, or refused."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
from mangle import mangled
from PIL import Image
from trial import Trial

from ldm.data.images import decode_array, decode_image, decode_mask, image_tensor


def pictures(number: int) -> list[Trial]:
    """Mangled files of every format, decoded."""
    seeds = list(_sound_pictures().items())
    return [_picture(*seeds[seed % len(seeds)], seed) for seed in range(number)]


def _sound_pictures() -> dict[str, bytes]:
    rows, columns = np.mgrid[:24, :32]
    colours = np.stack([rows * 8, columns * 7, (rows + columns) * 4], -1).astype(np.uint8)
    picture, grey = Image.fromarray(colours), Image.fromarray(colours[..., 0])
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "jpg": (picture, "JPEG", {"exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"}),
        "progressive.jpg": (picture, "JPEG", {"progressive": True}),
        "cmyk.jpg": (picture.convert("CMYK"), "JPEG", {}),
        "png": (picture, "PNG", {}),
        "palette.png": (picture.quantize(16), "PNG", {"transparency": 3}),
        "deep.png": (Image.fromarray(colours[..., 0].astype(np.uint16) * 257), "PNG", {}),
        "apng": (picture, "PNG", {"save_all": True, "append_images": [picture.rotate(90)]}),
        "webp": (picture, "WEBP", {}),
        "lossless.webp": (picture.convert("RGBA"), "WEBP", {"lossless": True}),
        "gif": (picture, "GIF", {"save_all": True, "append_images": [picture.rotate(90)]}),
        "tif": (picture, "TIFF", {}),
        "lzw.tif": (picture, "TIFF", {"compression": "tiff_lzw"}),
        "float.tif": (Image.fromarray(colours[..., 0].astype(np.float32) / 255), "TIFF", {}),
        "bmp": (picture, "BMP", {}),
        "ppm": (picture, "PPM", {}),
        "pgm": (grey, "PPM", {}),
        "jp2": (picture, "JPEG2000", {}),
        "tga": (picture, "TGA", {}),
    }  # fmt: skip
    if "AVIF" in Image.SAVE or _can("AVIF"):
        kinds["avif"] = (picture, "AVIF", {})
    found = {}
    for name, (image, kind, options) in kinds.items():
        content = io.BytesIO()
        image.save(content, kind, **options)
        found[name] = content.getvalue()
    stored = io.BytesIO()
    np.save(stored, colours)
    return found | {"npy": stored.getvalue()}


def _can(kind: str) -> bool:
    Image.init()
    return kind in Image.SAVE


def _picture(name: str, sound: bytes, seed: int) -> Trial:
    def check() -> str:
        draw = random.Random(seed)
        content = sound
        for _ in range(draw.choice((1, 1, 2, 8))):
            content = mangled(content, draw) if content else content
        suffix = name.rpartition(".")[2]
        if suffix == "npy":
            image = decode_array(content, name)
        elif draw.random() < 0.2:
            image = decode_mask(content, name)
        else:
            image = image_tensor(decode_image(content, name, suffix=suffix), 3, (255, 255, 255), name)
        return "right" if image.isfinite().all() and image.abs().max() <= 1 else "comes in broken"

    return Trial(f"{name} {seed}", check)
