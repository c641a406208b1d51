"""Writes shards: tar files in the webdataset form, a binary index beside each.

A shard's index (`ldm.data.shard_index`) has the offsets and checksums of its records' members, so that a record is read, and compared, by
one slice of a memory-map.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from webdataset import TarWriter

from ldm.core.errors import UserError
from ldm.core.files import write_file
from ldm.data.checksum import checksum, digest_of
from ldm.data.facts import ATTRIBUTES, BOXES, CAPTIONS, LABELS, MAPS, MASKS, PIXELS, AttributeTally
from ldm.data.images import size_of
from ldm.data.record import Record
from ldm.data.set_index import MOST_NAMES, IndexFile, ShardInfo, SplitFacts, SplitInfo
from ldm.data.shard_index import ShardIndex
from ldm.data.shard_scan import plain_key, scan_shard


class _Seen:
    """What is known of the records that were written."""

    def __init__(self) -> None:
        self._has: set[str] = set()
        self._labels: dict[int, str] = {}
        self._attributes = AttributeTally(MOST_NAMES)

    def see(self, record: Record) -> None:
        there = {
            PIXELS: True,
            CAPTIONS: record.captions,
            LABELS: record.label is not None,
            MASKS: record.mask is not None,
            MAPS: record.map is not None,
            BOXES: record.boxes,
            ATTRIBUTES: record.attributes,
        }
        self._has.update(name for name, is_there in there.items() if is_there)
        if isinstance(record.label, int) and len(self._labels) <= MOST_NAMES:
            self._labels.setdefault(record.label, record.key)
        self._attributes.add(record.attributes)

    def facts(self, digest: str) -> SplitFacts:
        labels = self._labels if len(self._labels) <= MOST_NAMES else None
        return SplitFacts(digest=digest, has=frozenset(self._has), labels=labels, attributes=self._attributes.facts())


def _size(record: Record) -> tuple[int, int]:
    """(height, width) of its picture; (0, 0) = it cannot be read."""
    try:
        return size_of(record.image, record.name, suffix=record.suffix)
    except UserError:
        return 0, 0


class ShardWriter:
    """Writes the records of one split into `<prefix>-000000.tar`, ... of at most max_bytes each; see `shard_writer`."""

    def __init__(self, folder: Path, prefix: str, max_bytes: int) -> None:
        self.folder, self.prefix, self.max_bytes = folder, prefix, max_bytes
        self._shards: list[ShardInfo] = []
        self._keys: set[str] = set()
        self._seen = _Seen()
        self._sizes = array("I")  # height and width of each picture
        self._sizes_file: IndexFile | None = None
        self._buffer, self._count = io.BytesIO(), 0
        self._tar = self._new()

    def _new(self) -> TarWriter:
        self._buffer, self._count = io.BytesIO(), 0
        return TarWriter(self._buffer, encoder=False, mtime=0, user="ldm", group="ldm")

    def add(self, record: Record) -> None:
        """One record more; its key must be plain (see `plain_key`) and new: two records of one key would be read as one."""
        assert record.key not in self._keys and plain_key(record.key) == record.key, record.key
        self._keys.add(record.key)
        members = record.members()
        needed = sum(512 + -(-len(content) // 512) * 512 for content in members.values())
        if self._count and self._buffer.tell() + needed + 10240 > self.max_bytes:
            self.flush()
        self._tar.write({"__key__": record.key, **members})
        self._seen.see(record)
        self._sizes.extend(_size(record))
        self._count += 1

    def flush(self) -> None:
        """Ends the shard in hand."""
        self._tar.close()
        if self._count:
            path = self.folder / f"{self.prefix}-{len(self._shards):06d}.tar"
            content = self._buffer.getvalue()
            write_file(path, content)
            records, fault, _ = scan_shard(path)
            assert fault is None and len(records) == self._count, (fault, len(records), self._count)
            index = ShardIndex.encode(
                (key, [(suffix, start, size, checksum(memoryview(content)[start : start + size])) for suffix, start, size, _ in members])
                for key, members in records.items()
            )
            write_file(path.with_suffix(".index"), index)
            beside = IndexFile(path.with_suffix(".index").name, len(index), hashlib.sha256(index).hexdigest())
            sha256 = hashlib.sha256(content).hexdigest()
            self._shards.append(ShardInfo(name=path.name, bytes=len(content), sha256=sha256, count=len(records), index=beside))
        self._tar = self._new()

    def finish(self) -> None:
        """Ends the last shard, and writes the sizes of all pictures beside them."""
        self.flush()
        content = np.array(self._sizes, "<u4").tobytes()
        path = self.folder / f"{self.prefix}.sizes"
        write_file(path, content)
        self._sizes_file = IndexFile(path.name, len(content), hashlib.sha256(content).hexdigest())

    @property
    def written(self) -> SplitInfo:
        """What was written, after `finish`."""
        entries = (entry for shard in self._shards for entry in shard.open_index(self.folder, is_checked=True))
        return SplitInfo(shards=tuple(self._shards), facts=self._seen.facts(digest_of(entries)), sizes=self._sizes_file)


@contextmanager
def shard_writer(folder: Path, prefix: str, max_bytes: int) -> Iterator[ShardWriter]:
    """A writer that finishes on leaving."""
    writer = ShardWriter(folder, prefix, max_bytes)
    yield writer
    writer.finish()


def write_shards(folder: Path, prefix: str, records: Iterable[Record], max_bytes: int = 15 * 2**20) -> SplitInfo:
    """All records into shards of a split."""
    with shard_writer(folder, prefix, max_bytes) as writer:
        for record in records:
            writer.add(record)
    return writer.written
