"""Fetches a remote shard whole, by webdataset: URLs and `pipe:` commands.

It comes into an unnamed temporary file before its first record is used: so it is read as local shards are, and one that breaks off can be
fetched again.
"""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
import time
from pathlib import Path

from tqdm import tqdm
from webdataset import gopen

from ldm.core.errors import UserError
from ldm.data.sources.shards import BareShard, ShardSource, bare_source

WAITS = (1.0, 5.0, 25.0)  # seconds between the attempts to fetch a shard
CURL = {
    "6": "no such host",
    "7": "no connection",
    "18": "the connection breaks off",
    "22": "the server refuses it, as with 404",
    "28": "no answer in time",
    "56": "the connection breaks off",
}  # what its exit codes mean


def fetched(url: str) -> ShardSource:
    """The records of a shard, fetched anew after each of `WAITS` if that fails.

    Raises:
        UserError: it failed every time.
        OSError: the disk is full.
    """
    for wait in (*WAITS, None):
        try:
            return _copied(url)
        except Exception as error:  # of the network, of a command that is not ours, or of what came
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(error.errno, error.strerror, f"a shard in {tempfile.gettempdir()}") from None
            reason = _reason(error)
        if wait is not None:
            tqdm.write(f"{url}: {reason}; once more in {wait:g} s")
            time.sleep(wait)
    raise UserError(f"{url}: cannot be fetched, {len(WAITS) + 1} times ({reason})")


def _reason(error: Exception) -> str:
    """In few words; webdataset says of a command, as which it also runs curl, how it ended."""
    said = " ".join(str(error).split())[:200] or type(error).__name__
    ended = re.search(r": exit (\d+) \(read\)", str(error))
    if ended is None:
        return said
    return f"exit code {ended[1]}" + (f": {CURL[ended[1]]}" if "curl" in said and ended[1] in CURL else "")


def _copied(url: str) -> ShardSource:
    with tempfile.TemporaryFile() as file:
        with gopen(url) as stream:
            shutil.copyfileobj(stream, file, 1 << 20)
        file.flush()
        shard = BareShard.of(Path(f"/dev/fd/{file.fileno()}"))
        if shard.fault:
            raise UserError(shard.fault)
        return bare_source(url, [shard])
