"""The binary index of one shard: where the members of each record lie in the tar, found in O(1) without reading the others.

A file `NAME.index` beside `NAME.tar`, little-endian, is a header of 40 bytes and arrays behind each other. With n records and m members:

    magic `ldmindex`, version and length of the suffixes (uint32 each), n, m, and length of the keys (uint64 each)
    offsets (m uint64), sizes (m uint64), checksums (m of 8 bytes, zeros = none is known)
    first members (n + 1 uint32), ends of keys (n + 1 uint32, the first 0), numbers of suffixes (m uint32)
    keys (UTF-8), suffixes (JSON list)

Record i has the members first[i] to first[i + 1] - 1. A record's picture, texts, labels and attributes are members, so whoever has the
index reads any of them by one range of the tar, from a disk or from a server.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple, overload

import numpy as np

MAGIC, FORMAT = b"ldmindex", 1
HEADER = struct.Struct("<8sIIQQQ")
ESCAPE = "surrogatepass"  # keys that are file names may have bytes that are no UTF-8


class Member(NamedTuple):
    """A file in a tar.

    Attributes:
        suffix: of its name, behind the record's key and a dot.
        offset, size: of its bytes.
        checksum: see `ldm.data.shards.checksum`; "" = none is known.
    """

    suffix: str
    offset: int
    size: int
    checksum: str


class Entry(NamedTuple):
    """A record's key and members."""

    key: str
    members: tuple[Member, ...]


class ShardIndex(Sequence[Entry]):
    """The records of a shard, in the order of the file. Reads its buffer, a memory-map say, in place."""

    def __init__(self, buffer: bytes | memoryview) -> None:
        """
        Raises:
            ValueError: not such an index, or a damaged one.
        """
        if len(buffer) < HEADER.size:
            raise ValueError("too short")
        magic, version, suffix_bytes, records, members, key_bytes = HEADER.unpack_from(buffer)
        if magic != MAGIC:
            raise ValueError("not an index of a shard")
        if version != FORMAT:
            raise ValueError(f"version {version}; this release reads version {FORMAT}")
        if len(buffer) != HEADER.size + 28 * members + 8 * (records + 1) + key_bytes + suffix_bytes:
            raise ValueError("truncated, or longer than its header says")
        place = HEADER.size

        def array(form: str, count: int) -> np.ndarray:
            nonlocal place
            found: np.ndarray = np.frombuffer(buffer, form, count, place)
            place += found.nbytes
            return found

        self.offsets, self.sizes, self._checksums = array("<u8", members), array("<u8", members), array("<u8", members)
        self._first, self._key_ends = array("<u4", records + 1), array("<u4", records + 1)
        self._suffix_numbers, self._keys = array("<u4", members), array("u1", key_bytes)
        self.suffixes = tuple(map(str, json.loads(bytes(buffer[place:]))))

    def check(self) -> None:
        """Looks at every number, once.

        Raises:
            ValueError: the numbers contradict each other.
        """
        for ends, total in ((self._first, len(self.offsets)), (self._key_ends, len(self._keys))):
            if ends[0] != 0 or ends[-1] != total or (ends[1:] < ends[:-1]).any():
                raise ValueError("its records do not follow each other")
        if (self._suffix_numbers >= len(self.suffixes)).any() or (np.maximum(self.offsets, self.sizes) >= 1 << 62).any():
            raise ValueError("a member without a suffix or a place")

    def __len__(self) -> int:
        return len(self._first) - 1

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        key = bytes(self._keys[self._key_ends[index] : self._key_ends[index + 1]]).decode(errors=ESCAPE)
        return Entry(key, tuple(self._member(number) for number in range(self._first[index], self._first[index + 1])))

    def _member(self, number: int) -> Member:
        checksum = self._checksums[number]
        suffix = self.suffixes[self._suffix_numbers[number]]
        return Member(suffix, int(self.offsets[number]), int(self.sizes[number]), checksum.tobytes().hex() if checksum else "")

    def whole(self, size: int) -> np.ndarray:
        """The numbers of the records all of whose members lie within the first `size` bytes of the tar."""
        beyond = np.flatnonzero(self.offsets + self.sizes > size)
        lost = np.searchsorted(self._first, beyond, side="right") - 1
        return np.setdiff1d(np.arange(len(self)), lost)

    @staticmethod
    def encode(entries: Iterable[tuple[str, Iterable[tuple[str, int, int, str]]]]) -> bytes:
        """The file's content.

        Raises:
            ValueError: a checksum is not 16 hexadecimal digits, or offset or size are not from 0 to 2**62.
        """
        suffixes: dict[str, int] = {}
        members: list[tuple[int, int, int, int]] = []
        keys, first, key_ends = bytearray(), [0], [0]
        for key, own in entries:
            for suffix, offset, size, checksum in own:
                bits = bytes.fromhex(checksum) if checksum else bytes(8)
                if len(bits) != 8 or not 0 <= min(offset, size) <= max(offset, size) < 1 << 62:
                    raise ValueError(f"offset {offset}, size {size} or checksum {checksum!r} of a member of {key!r}")
                members.append((offset, size, int.from_bytes(bits, "little"), suffixes.setdefault(suffix, len(suffixes))))
            keys += key.encode(errors=ESCAPE)
            first.append(len(members))
            key_ends.append(len(keys))
        names = json.dumps(list(suffixes)).encode()
        offsets, sizes, checksums, numbers = zip(*members, strict=True) if members else ((),) * 4
        return b"".join(
            (
                HEADER.pack(MAGIC, FORMAT, len(names), len(first) - 1, len(members), len(keys)),
                *(np.array(column, "<u8").tobytes() for column in (offsets, sizes, checksums)),
                *(np.array(column, "<u4").tobytes() for column in (first, key_ends)),
                np.array(numbers, "<u4").tobytes(),
                bytes(keys),
                names,
            )
        )
