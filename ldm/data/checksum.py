"""Checksums of files' contents and of records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ldm.data.shard_index import Member


def checksum(content: bytes | memoryview) -> str:
    """64 bits of BLAKE2b, as hex: what changed on a disk or on its way is seen, what somebody forged is not."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def digest_of(entries: Iterable[tuple[str, Iterable[Member]]]) -> str:
    """Of records by their keys and their members' checksums: the same wherever a set lies, and however it is cut into shards."""
    found = hashlib.sha256(b"[")
    for number, (key, members) in enumerate(entries):
        known = (key, [(suffix, digest) for suffix, _, _, digest in members])
        found.update((", " * (number > 0) + repr(known)).encode(errors="surrogateescape"))
    found.update(b"]")
    return found.hexdigest()
