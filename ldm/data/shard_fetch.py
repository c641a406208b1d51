"""Fetches a remote shard whole, by webdataset: URLs and `pipe:` commands.

It comes into an unnamed temporary file before its first record is used: so it is read as local shards are, and one that breaks off can be
fetched again.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from webdataset import gopen

from ldm.core.errors import UserError
from ldm.data.attempts import attempted
from ldm.data.sources.shards import BareShard, ShardSource, bare_source


def fetched(url: str) -> ShardSource:
    """The records of a shard; see `attempted` for what it raises."""
    return attempted(url, lambda: _copied(url), tempfile.gettempdir())


def _copied(url: str) -> ShardSource:
    with tempfile.TemporaryFile() as file:
        with gopen(url) as stream:
            shutil.copyfileobj(stream, file, 1 << 20)
        file.flush()
        shard = BareShard.of(Path(f"/dev/fd/{file.fileno()}"))
        if shard.fault:
            raise UserError(shard.fault)
        return bare_source(url, [shard])
