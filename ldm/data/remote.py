"""Remote shards, fetched once through webdataset's openers into the user's cache and read locally from then on."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

from tqdm import tqdm
from webdataset.gopen import gopen
from webdataset.shardlists import expand_urls

from ldm.core.errors import UserError

_SCHEME = re.compile(r"(pipe:|[a-z][a-z0-9+.-]*://)")
CHUNK = 1 << 20


def is_remote(place: str) -> bool:
    """Whether a place is a URL or a `pipe:` command."""
    return _SCHEME.match(place) is not None


def cache_folder() -> Path:
    """Where fetched shards lie: $LDM_CACHE or ~/.cache/ldm, below it `shards`."""
    return Path(os.environ.get("LDM_CACHE", "~/.cache/ldm")).expanduser() / "shards"


def fetch_shards(place: str) -> list[Path]:
    """Local copies of all shards that a URL or command with brace ranges names; those already there are not fetched again.

    Raises:
        UserError: a shard cannot be fetched. Nothing half-fetched is kept.
    """
    paths = []
    for url in tqdm(expand_urls(place), desc="remote shards", unit="shard", disable=None):
        name = hashlib.sha256(url.encode()).hexdigest()[:16]
        path = cache_folder() / f"{name}.tar"
        if not path.is_file():
            _fetch(url, path)
        paths.append(path)
    return paths


def _fetch(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    try:
        with gopen(url) as stream, open(temporary, "wb") as file:
            while chunk := stream.read(CHUNK):
                file.write(chunk)
        if not temporary.stat().st_size:
            raise UserError(f"{url}: nothing came")
        os.replace(temporary, path)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UserError(f"{url}: cannot be fetched ({error})") from None
    finally:
        temporary.unlink(missing_ok=True)
