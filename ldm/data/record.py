"""One undecoded picture with all that belongs to it: what sources give and what shards hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm.core.errors import UserError
from ldm.data.formats import IMAGE_SUFFIXES

Box = tuple[int, float, float, float, float]
"""An object's class index, then left, top, right and bottom as shares of the picture, from 0 to 1."""

OWN_KEYS = ("caption", "captions", "text", "label", "boxes", "file", "file_name")  # of a record's JSON and of a table: no attributes


@dataclass(frozen=True, kw_only=True)
class Record:
    """Bytes as they lie on the disk.

    Attributes:
        key: unique in its data set; in shards [A-Za-z0-9_-] only.
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
    suffix: str
    image: bytes
    captions: tuple[str, ...] = ()
    label: str | int | None = None
    mask: bytes | None = None
    map: bytes | None = None
    boxes: tuple[Box, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def members(self) -> dict[str, bytes]:
        """What a shard holds of it: suffix -> bytes."""
        meta: dict[str, object] = {"caption": self.captions[0] if self.captions else "", "captions": list(self.captions)}
        if self.label is not None:
            meta["label"] = self.label
        if self.boxes:
            meta["boxes"] = [list(box) for box in self.boxes]
        meta |= self.attributes
        parts = {self.suffix: self.image, "json": json.dumps(meta, ensure_ascii=False).encode()}
        if self.mask is not None:
            parts["mask.png"] = self.mask
        if self.map is not None:
            parts["map.png"] = self.map
        return parts

    @staticmethod
    def of(key: str, members: dict[str, bytes]) -> Record:
        """The inverse of `members`; also reads foreign shards: `.txt` captions, `.cls` labels.

        Raises:
            UserError: no image, or its JSON is not an object of the known form.
        """
        lowered = {suffix.lower(): content for suffix, content in members.items()}
        suffix = next((s for s in IMAGE_SUFFIXES if s in lowered), None)
        if suffix is None:
            raise UserError(f"record {key!r} holds no picture (members: {', '.join(sorted(members)) or 'none'})")
        try:
            meta = json.loads(lowered["json"]) if "json" in lowered else {}
            captions, label = _meta(meta)
            boxes = boxes_of(meta.get("boxes") or [])
            if not captions and "txt" in lowered:
                captions = _only_text([lowered["txt"].decode()])
            if label is None and "cls" in lowered:
                label = int(lowered["cls"])
        except (ValueError, RecursionError) as error:
            raise UserError(f"record {key!r}: its text cannot be read: {error}") from None
        return Record(
            key=key,
            suffix=suffix,
            image=lowered[suffix],
            captions=captions,
            label=label,
            mask=lowered.get("mask.png"),
            map=lowered.get("map.png"),
            boxes=boxes,
            attributes=attributes_of(meta),
        )


def attributes_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a JSON object, or of a table's row, are attributes: plain values and lists of them, under names without another meaning."""
    return {key: value for key, value in row.items() if key not in OWN_KEYS and _is_attribute(value)}


def _is_attribute(value: Any) -> bool:
    return isinstance(value, str | int | float) or (isinstance(value, list) and all(isinstance(item, str | int | float) for item in value))


def attributes_in(content: bytes) -> dict[str, Any]:
    """The attributes in a record's JSON; none also where that cannot be read, which is counted when the record is."""
    try:
        meta = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return attributes_of(meta) if isinstance(meta, dict) else {}


def label_of(content: bytes) -> str | int | None:
    """The label in a record's JSON; None also where that cannot be read, which is counted when the record is."""
    try:
        return _meta(json.loads(content))[1]
    except (ValueError, RecursionError):
        return None


def _meta(meta: object) -> tuple[tuple[str, ...], str | int | None]:
    if not isinstance(meta, dict):
        raise ValueError("the JSON is not an object")
    captions = meta.get("captions") or [meta.get("caption") or meta.get("text") or ""]
    label = meta.get("label")
    if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
        raise ValueError("captions must be a list of texts")
    if isinstance(label, bool) or not isinstance(label, str | int | None):
        raise ValueError("label must be a text or an integer")
    return _only_text(captions), label


def boxes_of(content: object) -> tuple[Box, ...]:
    """Boxes as JSON has them: a list of [class, left, top, right, bottom].

    Raises:
        ValueError: not that, or a box that is none.
    """
    if not isinstance(content, list):
        raise ValueError("boxes must be a list of [class, left, top, right, bottom]")
    found = []
    for box in content:
        if not isinstance(box, list) or len(box) != 5 or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in box):
            raise ValueError("boxes must be a list of [class, left, top, right, bottom]")
        index, left, top, right, bottom = box
        if index != int(index) or index < 0 or not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"box {box} must have a class index, then left < right and top < bottom as shares from 0 to 1")
        found.append((int(index), float(left), float(top), float(right), float(bottom)))
    return tuple(found)


def _only_text(captions: list[str]) -> tuple[str, ...]:
    return tuple(c.strip() for c in captions if c.strip())
