"""A file of rows, each of a few arrays and a text, that is written in one go and memory-mapped: a shard of a cache.

The arrays lie behind each other. An index of them follows (`ldm.data.shard_index`), in which a row is a record and an array is a member
`NAME:DTYPE:SHAPE`, so that rows may be of different shapes, and each array has a checksum. Then come a JSON of what is known of the whole
file, and a footer: where index and JSON begin, and the checksum of both.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.files import new_file
from ldm.data.checksum import checksum
from ldm.data.shard_index import ShardIndex

FOOTER = struct.Struct("<QQ8s8s")
MAGIC = b"ldmarray"
TEXT = "json"  # the member that is no array


class Row(NamedTuple):
    """
    Attributes:
        name: for messages.
        text: JSON of what is known of it.
        arrays: by name.
    """

    name: str
    text: str
    arrays: Mapping[str, Tensor]


def write_shard(path: Path, rows: Iterable[Row], about: Mapping[str, Any]) -> None:
    """Writes a shard whole or not at all.

    Args:
        path: of the file.
        rows: are written as they come.
        about: is read after the last row.
    """
    entries: list[tuple[str, list[tuple[str, int, int, str]]]] = []
    with new_file(path) as temporary, open(temporary, "wb") as file:
        for name, text, arrays in rows:
            members = []
            for suffix, content in (
                (TEXT, text.encode()),
                *((_suffix(name, array), array.numpy().tobytes()) for name, array in arrays.items()),
            ):
                members.append((suffix, file.tell(), len(content), checksum(content)))
                file.write(content)
            entries.append((name, members))
        index, tail = ShardIndex.encode(entries), json.dumps(about).encode()
        start = file.tell()
        file.write(index + tail + FOOTER.pack(start, start + len(index), bytes.fromhex(checksum(index + tail)), MAGIC))


def _suffix(name: str, array: Tensor) -> str:
    return f"{name}:{str(array.dtype).removeprefix('torch.')}:{'x'.join(map(str, array.shape))}"


@lru_cache(maxsize=1024)
def _of_suffix(suffix: str) -> tuple[str, torch.dtype, tuple[int, ...]]:
    name, dtype, shape = suffix.split(":")
    return name, getattr(torch, dtype), tuple(map(int, shape.split("x"))) if shape else ()


def about_shard(path: Path) -> dict[str, Any] | None:
    """What is known of a whole shard, without reading its rows; None if it is not there or is damaged."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(size - FOOTER.size)
            start, middle, digest, magic = FOOTER.unpack(file.read())
            file.seek(start)
            content = file.read(size - FOOTER.size - start)
        if magic != MAGIC or checksum(content) != digest.hex():
            return None
        about: dict[str, Any] = json.loads(content[middle - start :])
        return about
    except (OSError, ValueError, struct.error):
        return None


class ArrayShard:
    """The rows of a shard, memory-mapped; no file stays open for it."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: the file is damaged.
        """
        self.path = path
        if about_shard(path) is None:
            raise self._damage("its index")
        self._bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        content = self._bytes.numpy().data
        start, middle, *_ = FOOTER.unpack(content[-FOOTER.size :])
        self._index = ShardIndex(content[start:middle])

    def __len__(self) -> int:
        return len(self._index)

    def row(self, number: int) -> Row:
        """A row; its arrays are copies.

        Raises:
            UserError: it is not what was written.
        """
        name, members = self._index[number]
        text, arrays = "", {}
        for suffix, offset, size, digest in members:
            content = self._bytes[offset : offset + size]
            if checksum(content.numpy().data) != digest:
                raise self._damage(f"the {suffix.partition(':')[0]} of row {number}, {name},")
            if suffix == TEXT:
                text = content.numpy().tobytes().decode()
            else:
                member, dtype, shape = _of_suffix(suffix)
                arrays[member] = content.clone().view(dtype).reshape(shape)
        return Row(name, text, arrays)

    def _damage(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what} is not what was written there (checksum); delete the file, and it is made anew")
