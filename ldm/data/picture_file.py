"""A picture file of any allowed format, decoded as it is stored: bounded before it is unpacked, upright, with its profile beside it."""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from ldm.core.errors import UserError
from ldm.data.formats import HEAD, format_of
from ldm.data.metadata import bare, orientation_of
from ldm.data.profiles import PROFILE

MAX_FILE = 2**30  # bytes of a file; MAX_PIXELS of 16 bits and 4 channels, not compressed, have fewer
MAX_PIXELS = 105_000_000  # the largest cameras' 102 million fit; more is a mistake or an attack
MAX_MEMORY = 1_300_000_000  # bytes that a decoder may take for one picture
MAX_PAGES = 10_000
MAX_SCANS = 20 * MAX_PIXELS  # pixels times scans of a progressive JPEG, each of which goes over all pixels; cameras and websites write 10
BYTES_A_PIXEL = {"WEBP": 20, "AVIF": 20, "HEIF": 20, "JPEG2000": 28}  # what a decoder takes at its peak, as measured; the others take 4
MAX_TILES = 4096  # of JPEG 2000: of the smallest usual size, 256 x 256, more than MAX_PIXELS has
READABLE = "JPEG, PNG, WebP, GIF, TIFF, BMP, PPM, AVIF, JPEG 2000, TGA and HEIC are"
STORED_LEVELS = "levels"  # image.info's key: which numbers are black and white, where the file says so and they are not those of the mode
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation of EXIF."""
SIDEWAYS = (5, 6, 7, 8)  # of them, those that exchange height and width

NEW_SUBFILE_TYPE, BITS, PHOTOMETRIC, TILE_WIDTH, TILE_HEIGHT, SUB_PICTURES = 254, 258, 262, 322, 323, 330  # tags of TIFF
IS_NO_PAGE = 0b101  # of NEW_SUBFILE_TYPE: a smaller copy of another page, or its transparency


class Stored(NamedTuple):
    """A picture as its file has it, upright.

    Attributes:
        image: in Pillow's mode for what is stored. Its info has at most PROFILE, STORED_LEVELS and Pillow's "transparency".
        format: of `formats.FORMATS`.
    """

    image: Image.Image
    format: str


def decode_stored(content: bytes, name: str, *, suffix: str = "", page: int = 0, most: int = MAX_PIXELS) -> Stored:
    """A page of a picture file.

    Args:
        content: the file's bytes.
        name: of it, for messages.
        suffix: of its name; it decides for TGA only, which has no signature.
        page: from 0; see `count_pages`.
        most: pixels; a picture with more is refused before it is unpacked.

    Raises:
        UserError: not of an allowed format, damaged, too large, or without such a page.
    """
    kind = _kind_of(content, name, suffix)
    with decoding(name):
        file = bare(content, kind)
        if file.is_hdr:
            raise UserError(f"{name}: is HDR (PQ or HLG), whose levels are not those of a screen: convert it to sRGB first")
        image = _opened(file.content, name, kind)
        frame = next(islice(_frames(image), page, None), None)
        if frame is None:
            lack = f"has no page {page}" if page else "holds only previews, as camera raw files do; convert it first"
            raise UserError(f"{name}: {lack}")
        if frame:
            image.seek(frame)
        _check_bounds(image, name, kind, file.content, most)
        image.load()
        found = image.info if kind != "TIFF" else {PROFILE: image.info.get(PROFILE)}  # a TIFF is turned as it is decoded
        info = {
            "transparency": image.info.get("transparency"),
            PROFILE: found.get(PROFILE) if file.profile is None else file.profile,
            STORED_LEVELS: _levels_of(image),
        }
        turn = UPRIGHT.get(orientation_of(file.exif or found.get("exif"), file.xmp or found.get("xmp")))
        if turn is not None:
            image = image.transpose(turn)
        elif kind in BYTES_A_PIXEL:
            image = image.copy()  # its decoder, which goes with the original, holds several times the picture
        image.info = {key: value for key, value in info.items() if value is not None}
        return Stored(image, kind)


def stored_size(content: bytes, name: str, *, suffix: str = "") -> tuple[int, int]:
    """(height, width), upright, of the page that `decode_stored` gives; nothing is decoded.

    Raises:
        UserError: not of an allowed format, or its header is damaged.
    """
    kind = _kind_of(content, name, suffix)
    with decoding(name):
        file = bare(content, kind)
        image = _opened(file.content, name, kind)
        frame = next(_frames(image), 0)
        if frame:
            image.seek(frame)
        found = image.info if kind != "TIFF" else {}  # a TIFF's own size is upright already
        is_turned = orientation_of(file.exif or found.get("exif"), file.xmp or found.get("xmp")) in SIDEWAYS
        return (image.width, image.height) if is_turned else (image.height, image.width)


def count_pages(content: bytes, name: str, *, suffix: str = "") -> int:
    """Frames of an animation, or full-size pages of a TIFF; 1 for most files. None is decoded.

    What phones hide behind a JPEG (a depth map, the other eye) is no page, nor are a TIFF's smaller copies of a page.

    Raises:
        UserError: not of an allowed format, damaged, or more than MAX_PAGES.
    """
    kind = _kind_of(content, name, suffix)
    with decoding(name):
        count = sum(1 for _ in islice(_frames(_opened(bare(content, kind).content, name, kind)), MAX_PAGES + 1))
        if count > MAX_PAGES:
            raise UserError(f"{name}: has more than {MAX_PAGES} pages; split it")
        return count


@contextmanager
def decoding(name: str, fault: str = "damaged picture") -> Iterator[None]:
    """Whatever a decoder raises on hostile bytes becomes one error of this file; its warnings about what it finds odd are passed over.

    Raises:
        UserError: the file cannot be decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UserError:
            raise
        except Image.DecompressionBombError:
            raise UserError(f"{name}: has more than {MAX_PIXELS / 1e6:.0f} million pixels; scale it down") from None
        except MemoryError:
            raise UserError(f"{name}: there is not enough memory to decode it") from None
        except Exception as error:  # decoders raise anything: struct.error, AssertionError, KeyError, zlib.error, ...
            reason = " ".join(str(error).split()).encode("utf-8", "replace").decode()
            raise UserError(f"{name}: {fault} ({reason or type(error).__name__})") from None


def _kind_of(content: bytes, name: str, suffix: str) -> str:
    kind = format_of(content[:HEAD], suffix)
    if kind is None:
        raise UserError(f"{name}: not a picture that can be read ({READABLE})" if content else f"{name}: an empty file, not a picture")
    if kind == "NPY":
        raise UserError(f"{name}: an array where a picture file is needed; a data set's pictures may be .npy, nothing else")
    if kind == "HEIF":
        _register_heif(name)
    if kind == "AVIF" and ".avif" not in Image.registered_extensions():
        raise UserError(f"{name}: AVIF needs Pillow 11.3 or newer: pip install --upgrade pillow")
    return kind


def _register_heif(name: str) -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise UserError(f"{name}: HEIC needs a plug-in: pip install pillow-heif") from None
    register_heif_opener()


def _opened(content: bytes, name: str, kind: str) -> Image.Image:
    """The picture, of which only the header was read."""
    try:
        return Image.open(io.BytesIO(content), formats=[kind])
    except UnidentifiedImageError:
        raise UserError(f"{name}: damaged picture, or a kind of {kind} that cannot be read; save it anew") from None


def _frames(image: Image.Image) -> Iterator[int]:
    """Numbers of a picture's pages among its frames, the first without looking further. A TIFF stands at each of them."""
    if image.format != "TIFF":
        yield 0
        yield from range(1, getattr(image, "n_frames", 1))
        return
    frame, found = 0, False
    while True:
        try:
            image.seek(frame)
        except EOFError:
            break
        tags = _tags(image)
        if not tags.get(NEW_SUBFILE_TYPE, 0) & IS_NO_PAGE:
            found = True
            yield frame
        frame += 1
    image.seek(0)
    if not found and frame == 1 and SUB_PICTURES not in _tags(image):  # then it is the picture, whatever its tag says
        yield 0


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Of a TIFF; other pictures have none."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return tags


def _check_bounds(image: Image.Image, name: str, kind: str, content: bytes, most: int) -> None:
    """Refuses what would take too much memory or time to decode, by what the header says."""
    pixels = image.width * image.height
    size = f"{name}: {image.width}x{image.height}"
    tags = _tags(image)
    tile = int(tags.get(TILE_WIDTH, 1)) * int(tags.get(TILE_HEIGHT, 1))
    if max(pixels, tile) > most:
        raise UserError(f"{size} has more than {most / 1e6:.0f} million pixels; scale it down")
    if kind == "JPEG2000":
        _check_codestream(content, name)
    cost = BYTES_A_PIXEL.get(kind, 4)
    if image.info.get("progressive"):
        cost += 2 * len(image.getbands())  # all coefficients are kept
        scans = content.count(b"\xff\xda")
        if pixels * scans > MAX_SCANS:
            raise UserError(f"{size} as a JPEG of {scans} scans takes too long to decode; save it anew")
    if pixels * cost > MAX_MEMORY:
        raise UserError(
            f"{size} as {kind} takes {pixels * cost / 1e9:.1f} GB to decode, more than {MAX_MEMORY / 1e9:.1f} GB; "
            "scale it down, or save it as JPEG or PNG"
        )


def _check_codestream(content: bytes, name: str) -> None:
    """Refuses a JPEG 2000 file whose own header says more than the box around it, or that has far more tiles than it needs.

    The decoder prepares every channel of every tile before it looks at what Pillow checks.
    """
    start = 0 if content.startswith(b"\xff\x4f") else _start_of_box(content, b"jp2c")
    right, bottom, left, top, tile_width, tile_height, tiles_left, tiles_top, channels = struct.unpack_from(">8IH", content, start + 8)
    pixels = max(0, right - left) * max(0, bottom - top)
    tiles = math.ceil((right - tiles_left) / tile_width) * math.ceil((bottom - tiles_top) / tile_height)
    if pixels * BYTES_A_PIXEL["JPEG2000"] > MAX_MEMORY or tiles > MAX_TILES or channels > 4:
        raise UserError(
            f"{name}: {pixels / 1e6:.0f} million pixels in {tiles} tiles of {channels} channels take too much to decode; save it anew"
        )


def _start_of_box(content: bytes, wanted: bytes) -> int:
    start = 0
    while True:
        size, kind = struct.unpack_from(">I4s", content, start)
        head = 16 if size == 1 else 8
        if kind == wanted:
            return start + head
        start += max(struct.unpack_from(">Q", content, start + 8)[0] if size == 1 else size, head)


def _levels_of(image: Image.Image) -> tuple[float, float] | None:
    """Which numbers are black and white, see STORED_LEVELS."""
    if image.mode == "I" and image.format == "PPM":
        return 0, 65535  # as Pillow scales any depth above 8 bits
    if image.mode.startswith("I;16") and image.format == "TIFF":
        bits = _tags(image).get(BITS, (16,))
        white = 2 ** (bits[0] if isinstance(bits, tuple) else 16) - 1
        return (white, 0) if _tags(image).get(PHOTOMETRIC) == 0 else (0, white)
    return None
