"""One undecoded picture with all that belongs to it: what sources give and what shards hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm.core.errors import UserError
from ldm.data.formats import IMAGE_SUFFIXES
from ldm.data.text import decode_text, is_text, lines_of

Box = tuple[int, float, float, float, float]
"""An object's class index, then left, top, right and bottom as shares of the picture, from 0 to 1."""

TEXTS = ("txt", "text.txt", "caption.txt", "captions.txt", "caption", "text")
JSONS, NUMBERS = ("json", "json.json"), ("cls", "label.cls", "label.txt", "label")
OWN_KEYS = ("caption", "captions", "text", "label", "boxes", "file", "file_name")  # of a record's JSON and of a table: no attributes


@dataclass(frozen=True, kw_only=True)
class Record:
    """Bytes as they lie on the disk.

    Attributes:
        key: unique in its data set; in shards [A-Za-z0-9_-] only.
        place: the file it came from, for people; "" = nothing better than the key.
        suffix: of the image, one of IMAGE_SUFFIXES.
        image: an image file's bytes (npy: an array (H, W, C), never pickled).
        captions: all known; empty = none.
        label: a name or a number; None = none.
        mask: an image file's bytes, object = bright; None = none.
        map: an image file's bytes, grey or palette, pixel = class index; None = none.
        boxes: of the objects in it.
        attributes: anything else that is known of it: texts, numbers, booleans, or lists of these.
    """

    key: str
    place: str = ""
    suffix: str
    image: bytes
    captions: tuple[str, ...] = ()
    label: str | int | None = None
    mask: bytes | None = None
    map: bytes | None = None
    boxes: tuple[Box, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.place or self.key

    def members(self) -> dict[str, bytes]:
        """What a shard holds of it: suffix -> bytes."""
        meta: dict[str, object] = {"caption": self.captions[0] if self.captions else "", "captions": list(self.captions)}
        if self.label is not None:
            meta["label"] = self.label
        if self.boxes:
            meta["boxes"] = [list(box) for box in self.boxes]
        if self.place:
            meta["file"] = self.place
        meta |= self.attributes
        parts = {self.suffix: self.image, "json": json.dumps(meta, ensure_ascii=False).encode()}
        if self.mask is not None:
            parts["mask.png"] = self.mask
        if self.map is not None:
            parts["map.png"] = self.map
        return parts

    @staticmethod
    def of(key: str, members: dict[str, bytes]) -> Record:
        """The inverse of `members`; also reads foreign shards: `.txt` captions, `.cls` labels, JSON with keys of its own.

        Raises:
            UserError: no image, several, or a text that cannot be read.
        """
        lowered = {suffix.lower(): content for suffix, content in members.items()}
        masks, maps = _of_role("mask", lowered), _of_role("map", lowered)
        images = [suffix for suffix in lowered if suffix.rpartition(".")[2] in IMAGE_SUFFIXES and suffix not in masks + maps]
        if len(images) != 1:
            held = "no picture" if not images else f"{len(images)} pictures"
            raise UserError(f"{key}: its record holds {held} (members: {', '.join(sorted(members)) or 'none'})")
        try:
            captions, label, meta = _texts_of(lowered, key)
            boxes = boxes_of(meta["boxes"]) if _are_ours(meta.get("boxes")) else ()
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"{key}: its text cannot be read: {str(error)[:200] or type(error).__name__}") from None
        return Record(
            key=key,
            place=str(meta["file"]) if isinstance(meta.get("file"), str) else "",
            suffix=images[0].rpartition(".")[2],
            image=lowered[images[0]],
            captions=captions,
            label=label,
            mask=lowered[masks[0]] if masks else None,
            map=lowered[maps[0]] if maps else None,
            boxes=boxes,
            attributes=attributes_of(meta),
        )


def is_read(suffix: str) -> bool:
    """Whether a member of this suffix is of use to a record."""
    lowered = suffix.lower()
    return lowered in (*TEXTS, *JSONS, *NUMBERS) or lowered.rpartition(".")[2] in IMAGE_SUFFIXES


def _of_role(role: str, members: Mapping[str, bytes]) -> list[str]:
    """Suffixes such as `mask.png`."""
    return [suffix for suffix in members if suffix.startswith(f"{role}.") and suffix.rpartition(".")[2] in IMAGE_SUFFIXES]


def captions_in(members: Mapping[str, bytes]) -> tuple[str, ...]:
    """The captions in a record's members; none also where they cannot be read, which is counted when the record is."""
    try:
        return _texts_of(members, "")[0]
    except (UserError, ValueError, TypeError, OverflowError, RecursionError):
        return ()


def _texts_of(members: Mapping[str, bytes], key: str) -> tuple[tuple[str, ...], str | int | None, dict[str, Any]]:
    """Captions, label and the JSON.

    Raises:
        UserError, ValueError, OverflowError, RecursionError: one that cannot be read.
    """
    meta = _json(next((members[suffix] for suffix in JSONS if suffix in members), b"{}"))
    captions, label = _meta(meta)
    text = next((members[suffix] for suffix in TEXTS if suffix in members), None)
    if not captions and text is not None:
        captions = lines_of(decode_text(text, f"{key}: its text"))
    number = next((members[suffix] for suffix in NUMBERS if suffix in members), None)
    if label is None and number is not None:
        label = int(decode_text(number, f"{key}: its label"))
        check_label(label)
    return captions, label, meta


def _json(content: bytes) -> dict[str, Any]:
    """An object.

    Raises:
        ValueError, RecursionError: not one.
    """
    meta = json.loads(content)
    if not isinstance(meta, dict):
        raise ValueError("the JSON is not an object")
    return meta


def attributes_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a JSON object, or of a table's row, are attributes: plain values and lists of them, under names without another meaning."""
    return {key: value for key, value in row.items() if key not in OWN_KEYS and _is_attribute(value)}


def _is_attribute(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return all(isinstance(item, str | int) or (isinstance(item, float) and math.isfinite(item)) for item in items)


def attributes_in(content: bytes) -> dict[str, Any]:
    """The attributes in a record's JSON; none also where that cannot be read, which is counted when the record is."""
    try:
        return attributes_of(_json(content))
    except (ValueError, RecursionError):
        return {}


def label_in(members: Mapping[str, bytes]) -> str | int | None:
    """The label in a record's members; None also where they cannot be read, which is counted when the record is."""
    try:
        return _texts_of(members, "")[1]
    except (UserError, ValueError, TypeError, OverflowError, RecursionError):
        return None


def _meta(meta: Mapping[str, Any]) -> tuple[tuple[str, ...], str | int | None]:
    """Captions and label; a label of another form than a text or an integer is somebody else's, and none here."""
    captions: list[Any] = []
    for found in (meta.get("captions"), meta.get("caption")) if meta.get("captions") or meta.get("caption") else (meta.get("text"),):
        if not isinstance(found, str | list | None):
            raise ValueError("captions must be a text or a list of texts")
        captions += [found] if isinstance(found, str) else found or []
    label = meta.get("label")
    if not all(isinstance(c, str) for c in captions):
        raise ValueError("captions must be a text or a list of texts")
    captions = list(dict.fromkeys(captions))
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, str | int):
        label = None
    if isinstance(label, int):
        check_label(label)
    if not all(map(is_text, (*captions, str(label)))):
        raise ValueError("half of a character (a lone surrogate)")
    return _only_text(captions), label


def check_label(label: int) -> None:
    """Refuses a number that is no class.

    Raises:
        ValueError: it is negative, or has more digits than a class number can have.
    """
    if not 0 <= label < 1 << 31:
        raise ValueError(f"label {label} is no class number, from 0 up")


def _are_ours(boxes: object) -> bool:
    """Whether a record's boxes are lists, as ours; detection sets have others under that name."""
    return isinstance(boxes, list) and all(isinstance(box, list) for box in boxes)


def boxes_of(content: object) -> tuple[Box, ...]:
    """Boxes as JSON has them: a list of [class, left, top, right, bottom].

    Raises:
        ValueError: not that, or a box that is none.
    """
    if not isinstance(content, list | tuple):
        raise ValueError("boxes must be a list of [class, left, top, right, bottom]")
    found = []
    for box in content:
        if not isinstance(box, list | tuple) or len(box) != 5:
            raise ValueError("boxes must be a list of [class, left, top, right, bottom]")
        if isinstance(box[0], str):
            raise ValueError(f"the class of a box must be a number, from 0, got {box[0]!r:.60}")
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in box):
            raise ValueError("boxes must be a list of [class, left, top, right, bottom]")
        index, left, top, right, bottom = box
        if not 0 <= index < 1 << 31 or index != int(index) or not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"box {box} must have a class index, then left < right and top < bottom as shares from 0 to 1")
        found.append((int(index), float(left), float(top), float(right), float(bottom)))
    return tuple(found)


def _only_text(captions: list[str]) -> tuple[str, ...]:
    return tuple(c.strip() for c in captions if c.strip())
