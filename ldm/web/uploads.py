"""What browsers send: pictures, maps and boxes, bounded before they are decoded, kept under the hash of what they hold."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.core.errors import UserError
from ldm.core.files import write_file
from ldm.data.images import decode_map, eight_bit
from ldm.data.picture_file import decode_stored
from ldm.data.profiles import PROFILE
from ldm.data.record import boxes_of

MAX_UPLOAD = 32 << 20  # bytes of one
UPLOAD_SECONDS = 60.0
AT_ONCE = 4  # uploads that are read or decoded at the same time
MAX_PIXELS = 1 << 24  # of a picture: 16 million, 64 MB once decoded
MAX_MAP_SIDE = 4096
KEPT = 512 << 20  # bytes of all that are kept; then the oldest go
NAME = re.compile(r"[0-9a-f]{32}\.(png|json)")


class Uploads:
    """Files under names that tell their content; safe from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, name: str) -> Path:
        """
        Raises:
            UserError: there is none of that name.
        """
        if NAME.fullmatch(name) is None or not (path := self.folder / name).is_file():
            raise UserError("that upload is not here any more: send the file again")
        return path

    def add_picture(self, content: bytes) -> tuple[str, tuple[int, int]]:
        """A picture file of any format that the scripts read, as PNG of the same pixels; its name, and (width, height).

        Raises:
            UserError: no picture, damaged, or larger than MAX_PIXELS.
        """
        image = eight_bit(decode_stored(content, "the picture", most=MAX_PIXELS).image, "the picture")
        return self._add(_png(image), "png"), image.size

    def add_map(self, content: bytes, count: int) -> tuple[str, np.ndarray]:
        """A picture file whose pixels are class indices; its name and (H, W) uint16, `count` = unknown.

        Raises:
            UserError: no such picture; a class beyond `count`.
        """
        return self.add_indices(decode_map(content, "the map", most=MAX_PIXELS).numpy(), count)

    def add_indices(self, classes: np.ndarray, count: int) -> tuple[str, np.ndarray]:
        """(H, W) class indices as a grey PNG; see `add_map`.

        Raises:
            UserError: a side longer than MAX_MAP_SIDE, or a class beyond `count`.
        """
        if not 0 < min(classes.shape) or max(classes.shape) > MAX_MAP_SIDE:
            raise UserError(f"a map's sides must be from 1 to {MAX_MAP_SIDE} pixels, got {classes.shape[1]} x {classes.shape[0]}")
        least, most = int(classes.min()), int(classes.max())
        if least < 0 or most > count:
            raise UserError(f"the map has class {most if least >= 0 else least}; this model knows 0 to {count - 1} ({count} = unknown)")
        found = classes.astype(np.uint16)
        return self._add(_png(Image.fromarray(found.astype(np.uint8) if count < 256 else found)), "png"), found

    def add_mask(self, wanted: np.ndarray) -> str:
        """(H, W) of 0 = keep and 1 = paint, as a grey PNG of black and white; of any size up to MAX_PIXELS.

        Raises:
            UserError: other numbers.
        """
        if int(wanted.max()) > 1:
            raise UserError(f"a mask is of 0 (keep) and 1 (paint), got {int(wanted.max())}")
        return self._add(_png(Image.fromarray(wanted.astype(np.uint8) * 255)), "png")

    def add_boxes(self, boxes: object) -> str:
        """Boxes as a JSON file, see `BoxList`.

        Raises:
            UserError: they are none.
        """
        try:
            return self._add(json.dumps([list(box) for box in boxes_of(boxes)]).encode(), "json")
        except (ValueError, TypeError) as error:
            raise UserError(f"boxes: {error}") from error

    def keep(self, names: Iterable[str]) -> None:
        """Counts uploads as just used, so that others go first."""
        with self._lock:
            for name in names:
                if name in self._sizes:
                    self._sizes.move_to_end(name)

    def _add(self, content: bytes, suffix: str) -> str:
        name = f"{hashlib.sha256(content).hexdigest()[:32]}.{suffix}"
        with self._lock:
            if name not in self._sizes:
                write_file(self.folder / name, content)
            self._sizes[name] = len(content)
            self._sizes.move_to_end(name)
            while sum(self._sizes.values()) > KEPT and len(self._sizes) > 1:
                oldest, _ = self._sizes.popitem(last=False)
                (self.folder / oldest).unlink(missing_ok=True)
        return name


def map_of(content: bytes, width: int, height: int) -> np.ndarray:
    """(H, W) uint16 of the bytes of a painted map: little-endian, row by row.

    Raises:
        UserError: other bytes than these sides have.
    """
    if not 0 < width * height <= MAX_PIXELS or len(content) != 2 * width * height:
        raise UserError(f"{width} x {height} pixels have {2 * width * height} bytes, at most {2 * MAX_PIXELS}; got {len(content)}")
    return np.frombuffer(content, "<u2").reshape(height, width)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=image.info.get(PROFILE))
    return buffer.getvalue()
