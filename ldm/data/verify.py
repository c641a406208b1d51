"""Whether a prepared set is what was written, found by reading every byte of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ldm.core.errors import UserError
from ldm.core.files import sha256_of
from ldm.data.set_index import Index, ShardInfo
from ldm.data.sources.shards import Shard, ShardSource


def shards_of(folder: Path) -> list[ShardInfo]:
    """All shards that the index of a folder names.

    Raises:
        UserError: there is no index, or it cannot be read.
    """
    return [info for split in Index.read(folder).splits.values() for info in split.shards]


def damage(folder: Path, info: ShardInfo) -> Iterator[str]:
    """A line for each record of a shard that is not what was written; one for the shard, if its records cannot say."""
    path = folder / info.name
    try:
        info.open_index(folder)
    except UserError as error:
        yield str(error)
        return
    if path.is_file() and sha256_of(path) == info.sha256:
        return
    is_told = False
    try:
        source = ShardSource(str(folder), [Shard(path, info)], Index(splits={}))
    except UserError as error:
        yield str(error)
        return
    for reason in source.unreadable.values():
        is_told = True
        yield reason
    for index in range(len(source)):
        try:
            source.record(index)
        except UserError as error:
            is_told = True
            yield str(error)
    if not is_told:
        yield f"{path}: is not what was written (sha256); which of its {info.count} records changed is not known: prepare or copy it anew"
