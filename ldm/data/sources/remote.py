"""A prepared set at a URL: its index is copied to this disk, and records are ranges of its shards, by fsspec.

Each shard has a file of its length here, with holes: a range that came is written into its place, up to a bound for all of them, and read
from there the next time. Whether a record is there its members' checksums say, so no process need know what another has written. Nothing is
removed while a set is read: its order is random, so what is kept is as likely to be wanted as what is not.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm.core.cache import cache_folder
from ldm.core.errors import UserError
from ldm.core.files import write_file
from ldm.data.attempts import attempted
from ldm.data.checksum import checksum
from ldm.data.set_index import INDEX_NAME, Index, IndexFile
from ldm.data.shard_index import Member

TIMEOUT = 60.0  # seconds for one range
AHEAD = 4 << 20  # bytes that are read beyond a range which follows the one before
GAP = 1 << 20  # bytes between two ranges that follow each other
RECOUNT = 64 << 20  # bytes that a process writes before it looks again what all have written
FETCHERS = 8  # threads for the shards' indices


class Kept:
    """The folder in which ranges of remote shards are kept, and how much of it may be used."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self._left = self._new = 0

    def admits(self, size: int) -> bool:
        """Whether so many bytes more may be written, which then are."""
        self._new += size
        if self._new > min(self._left, RECOUNT):
            self._left, self._new = self.most - _taken(self.folder), size
        return self._new <= self._left

    def make_room(self, own: str) -> None:
        """Removes the sets that were opened longest ago, but for one's own, until those that are left leave half of the space."""
        others = sorted(
            (path for path in self.folder.iterdir() if path.name != own and path.is_dir()), key=lambda path: path.stat().st_mtime
        )
        while others and _taken(self.folder) > self.most // 2:
            shutil.rmtree(others.pop(0), ignore_errors=True)  # another process may be removing it too


def _taken(folder: Path) -> int:
    """Bytes on the disk; holes take none."""
    stats = (path.stat() for path in folder.rglob("*") if path.is_file())
    return sum(stat.st_blocks * 512 if hasattr(stat, "st_blocks") else stat.st_size for stat in stats)


class RemoteShard:
    """The bytes of a shard at a URL."""

    def __init__(self, url: str, size: int, path: Path, kept: Kept) -> None:
        """
        Args:
            url: of the shard.
            size: its length.
            path: its file on this disk, which need not be there.
            kept: see there.
        """
        self.url, self.size, self.path, self._kept = url, size, path, kept
        self._ahead, self._start = b"", 0  # what came last, and where it begins
        self._stop = -1  # of the last range that was asked for

    def __len__(self) -> int:
        return self.size

    def read(self, members: Sequence[Member]) -> list[bytes]:
        """The contents of some members that lie near each other.

        Raises:
            UserError: they cannot be fetched.
        """
        if not members:
            return []
        start, stop = min(member.offset for member in members), max(member.offset + member.size for member in members)
        for get in (self._held, self._local):
            content = get(start, stop)
            if content is not None and _are_right(found := _cut(content, start, members), members):
                return found
        return _cut(self._fetched(start, stop), start, members)  # if it is still not right, the caller says so

    def _held(self, start: int, stop: int) -> bytes | None:
        first = start - self._start
        return self._ahead[first : stop - self._start] if 0 <= first and stop <= self._start + len(self._ahead) else None

    def _local(self, start: int, stop: int) -> bytes | None:
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                return file.read(stop - start)
        except FileNotFoundError:
            return None

    def _fetched(self, start: int, stop: int) -> bytes:
        follows = 0 <= start - self._stop <= GAP
        end = min(stop + AHEAD * follows, self.size)
        content = attempted(self.url, lambda: range_of(self.url, start, end), self.path.parent)
        self._ahead, self._start, self._stop = content, start, stop
        if self._kept.admits(len(content)):
            self.path.touch()
            with open(self.path, "r+b") as file:
                file.seek(start)
                file.write(content)
        return content[: stop - start]


def _cut(content: bytes, start: int, members: Sequence[Member]) -> list[bytes]:
    return [content[member.offset - start : member.offset - start + member.size] for member in members]


def _are_right(found: Sequence[bytes], members: Sequence[Member]) -> bool:
    return all(member.checksum and checksum(part) == member.checksum for member, part in zip(members, found, strict=True))


def range_of(url: str, start: int | None = None, stop: int | None = None) -> bytes:
    """Some bytes of a file, or all of them.

    Raises:
        Exception: of many kinds, of the network and of the system that the URL names.
        ValueError: the server gave something else.
    """
    system = _system(url.partition("://")[0], os.getpid())
    how = {"timeout": TIMEOUT} if system.async_impl else {}
    content: bytes = system.cat_file(url, start=start, end=stop, **how)
    if start is not None and stop is not None and len(content) != stop - start:
        raise ValueError(f"{len(content)} bytes came where {stop - start} were asked for: does the server give ranges?")
    return content


@lru_cache
def _system(protocol: str, process: int) -> Any:
    """Of a process: connections do not outlive a fork."""
    import fsspec  # of the extra `remote`

    return fsspec.filesystem(protocol)


def copied_set(url: str, gibibytes: float) -> tuple[Path, Kept]:
    """The folder on this disk with the index of a set, and where its ranges are kept.

    Args:
        url: of the set's folder.
        gibibytes: that all sets may take.

    Raises:
        UserError: there is no such set.
    """
    kept = Kept(cache_folder("remote"), round(gibibytes * 2**30))
    content = attempted(f"{url}/{INDEX_NAME}", lambda: range_of(f"{url}/{INDEX_NAME}"), kept.folder)
    folder = kept.folder / hashlib.sha256(url.encode() + b"\n" + content).hexdigest()[:16]  # a set that is changed is another
    write_file(folder / INDEX_NAME, content)
    kept.make_room(folder.name)
    files = [shard.index for split in Index.read(folder).splits.values() for shard in split.shards]
    if not all(isinstance(file, IndexFile) for file in files):
        raise UserError(
            f"{url} is of an earlier release, whose index cannot be read remotely: prepare it anew (prepare_data.py OLD --out NEW)"
        )
    wanted = [file for file in files if isinstance(file, IndexFile) and not _is_there(folder, file)]

    def fetch(file: IndexFile) -> None:
        where = f"{url}/{file.name}"
        write_file(folder / file.name, attempted(where, lambda: range_of(where), folder))

    with ThreadPoolExecutor(FETCHERS) as pool:
        list(tqdm(pool.map(fetch, wanted), total=len(wanted), desc="fetching indices", unit=" files", delay=2.0, leave=False))
    return folder, kept


def _is_there(folder: Path, file: IndexFile) -> bool:
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.bytes and hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
