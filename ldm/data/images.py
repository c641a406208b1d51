"""Image files of every kind that people have, to tensors: grey, RGB, with alpha, 16-bit, CMYK, palette, EXIF-rotated, arrays."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ldm.core.errors import UserError

MAX_PIXELS = 100_000_000  # 10,000 x 10,000; more is a mistake or an attack


def open_image(path: Path) -> Image.Image:
    """A picture from a file, upright, in mode L, LA, RGB or RGBA, 8 bits a channel.

    Raises:
        UserError: no such file, not a picture, damaged, or larger than MAX_PIXELS.
    """
    return decode_image(_bytes_of(path), str(path))


def open_map(path: Path) -> Tensor:
    """Class indices (H, W) int64 from a grey (8- or 16-bit) or palette picture.

    Raises:
        UserError: as `open_image`; a colour picture.
    """
    return decode_map(_bytes_of(path), str(path))


def _bytes_of(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _decoded(content: bytes, name: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked here, with a limit of our own
        try:
            image = Image.open(io.BytesIO(content))
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{name}: {image.width}x{image.height} has more than {MAX_PIXELS / 1e6:.0f} million pixels; scale it down")
            image.load()
            return image
        except Image.DecompressionBombError:
            raise UserError(f"{name}: has more than {MAX_PIXELS / 1e6:.0f} million pixels; scale it down") from None
        except UnidentifiedImageError:
            raise UserError(f"{name}: not a picture that can be read (PNG, JPEG, WebP, TIFF, BMP, GIF, PPM are)") from None
        except (OSError, SyntaxError, ValueError, IndexError, EOFError, struct.error) as error:
            raise UserError(f"{name}: damaged picture ({' '.join(str(error).split()) or type(error).__name__})") from None


def decode_image(content: bytes, name: str) -> Image.Image:
    """`open_image` of a file's bytes."""
    image = _decoded(content, name)
    try:
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError, struct.error):
        pass  # damaged EXIF on a sound picture: shown as it lies
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):  # 16 bits; "I" is how PIL opens some of them
        levels = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8), "L")
    if image.mode == "F":
        return Image.fromarray((np.asarray(image).clip(0, 1) * 255).round().astype(np.uint8), "L")
    if image.mode == "P" or "transparency" in image.info:
        return image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return image
    return image.convert("RGBA" if image.mode in ("PA", "La", "RGBa") else "RGB")


def decode_map(content: bytes, name: str) -> Tensor:
    """`open_map` of a file's bytes."""
    image = _decoded(content, name)
    if image.mode not in ("L", "P", "1", "I;16", "I;16B", "I"):
        raise UserError(f"{name}: a map must be a grey or palette picture whose pixels are class indices, this one is {image.mode}")
    return torch.from_numpy(np.asarray(image).astype(np.int64))


def decode_mask(content: bytes, name: str) -> Tensor:
    """(1, H, W) float32 of {0, 1}: 1 where a picture is bright (128 and above)."""
    return torch.from_numpy((np.asarray(decode_image(content, name).convert("L")) >= 128).astype(np.float32))[None]


def decode_array(content: bytes, name: str) -> Tensor:
    """(C, H, W) float32 in [-1, 1] of a .npy array (H, W, C) or (H, W): 8 or 16 bits unsigned, or floats already in [-1, 1].

    Raises:
        UserError: not such an array. Pickled objects are refused.
    """
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{name}: not a plain .npy array ({error})") from None
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.dtype.kind not in "uf" or array.size > MAX_PIXELS * 4:
        raise UserError(f"{name}: an array must be (H, W, C) of uint8, uint16 or float, got {array.shape} of {array.dtype}")
    values = torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)
    if array.dtype.kind == "u":
        return values * (2 / np.iinfo(array.dtype).max) - 1
    if not bool(torch.isfinite(values).all()) or values.abs().max() > 1:
        raise UserError(f"{name}: an array of floats must lie in [-1, 1]")
    return values


def image_tensor(image: Image.Image, channels: int, background: tuple[int, int, int], name: str) -> Tensor:
    """(C, H, W) float32 in [-1, 1]; transparency is laid on the background first.

    Raises:
        UserError: channels is neither 1 nor 3, which picture files cannot give.
    """
    if channels not in (1, 3):
        raise UserError(f"{name}: data.channels is {channels}, but picture files give 1 or 3; give .npy arrays of (H, W, {channels})")
    if image.mode in ("LA", "RGBA"):
        ground = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    levels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(levels).reshape(*levels.shape[:2], channels).permute(2, 0, 1).float() / 127.5 - 1


HEAD = 64


def format_of(head: bytes, suffix: str) -> str | None:
    """TODO replaced at merge."""
    signatures = {
        b"\x89PNG": "png",
        b"\xff\xd8\xff": "jpg",
        b"GIF8": "gif",
        b"BM": "bmp",
        b"\x93NUMPY": "npy",
        b"II*\0": "tif",
        b"MM\0*": "tif",
    }
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return next((kind for mark, kind in signatures.items() if head.startswith(mark)), None)
