"""A folder of array shards that several processes make together: each its share, a shard at a time, so that a kill loses no finished shard.

Shards have the first digits of the cache's key in their names. `meta.json`, which the first process writes when all of them are there,
makes a cache of them; until then `RECORD` says whose they are, and an earlier cache of another key stays as it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from ldm.core.errors import UserError
from ldm.core.files import recover_all, recover_folder, write_file
from ldm.core.ownership import RECORD, TOOL, record, strangers, written_in
from ldm.core.version import __version__
from ldm.data.array_shard import ArrayShard, Row, about_shard, write_shard

T = TypeVar("T")

META = "meta.json"
MOST_SHARDS = 1000
FEWEST_ROWS = 128  # of a shard
PATIENCE = 120.0  # seconds until a slow file system must show what another process has written


class Processes(Protocol):
    """Those that make a cache together; see `ldm.core.distributed.World`."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def each(self, work: Callable[[], None]) -> None:
        """Has every process do something; if it fails in one, all end."""

    def on_first(self, work: Callable[[], None]) -> None:
        """Has the first process do something while the others wait."""

    def of_all(self, value: T) -> list[T]:
        """The value of each process."""


class Part(NamedTuple):
    """Some rows, and the records that could not be read for them, with the reasons."""

    rows: list[Row]
    unreadable: Mapping[str, str]


Span = tuple[int, int]
"""[start, stop) of rows."""


class ArrayCache:
    """A finished cache.

    Attributes:
        about: what its maker says of it.
        unreadable: the records that could not be read for it, with the reasons.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any]) -> None:
        self.folder, self._meta = folder, meta
        self.about: Mapping[str, Any] = meta["about"]
        self.unreadable: Mapping[str, str] = meta["unreadable"]
        self._names = list(meta["shards"])
        self._open: dict[int, ArrayShard] = {}

    def __reduce__(self) -> tuple[type[ArrayCache], tuple[Path, Mapping[str, Any]]]:
        """For worker processes that do not share this one's memory: they map the files themselves."""
        return ArrayCache, (self.folder, self._meta)

    @property
    def is_whole(self) -> bool:
        """Whether all of its files are there."""
        return all(_has_size(self.folder / name, size) for name, size in self._meta["shards"].items())

    def row(self, number: int) -> Row:
        """One row.

        Raises:
            UserError: a file is missing, or is not what was written.
        """
        shard, place = divmod(number, self._meta["shard_rows"])
        if shard not in self._open:
            path = self.folder / self._names[shard]
            _wait_for(lambda: _has_size(path, self._meta["shards"][path.name]), f"{path} is not there as it was written")
            self._open[shard] = ArrayShard(path)
        return self._open[shard].row(place)


def open_or_build(
    folder: Path,
    key: Callable[[], str],
    count: int,
    batch_size: int,
    read: Callable[[Sequence[Span]], Iterator[Part]],
    about: Mapping[str, Any],
    processes: Processes,
    check: Callable[[Mapping[str, str]], None],
) -> ArrayCache:
    """The cache of a key in a folder. What of it is not there yet is made, each shard by one process; the bytes do not depend on how many.

    Args:
        folder: of the cache; an earlier one of another key is removed when this one is finished.
        key: finds the hex digest of all that the rows depend on; the first process does.
        count: of rows.
        batch_size: rows that are made at once.
        read: makes the rows of some spans of at most batch_size, in order.
        about: what to keep with it.
        processes: each calls this.
        check: refuses, by UserError, too many unreadable records, before the cache is finished.

    Raises:
        UserError: there is a folder of that name which is no cache; or see `check`.
    """
    shard_rows = max(FEWEST_ROWS, -(-count // MOST_SHARDS))
    plans: list[_Plan] = []
    processes.on_first(lambda: plans.append(_begin(folder, key(), -(-count // shard_rows))))
    plan = processes.of_all(plans)[0][0]
    missing, paths = plan.missing, [folder / name for name in plan.names]
    own = missing[processes.rank :: processes.size]
    spans = [_spans(number * shard_rows, min((number + 1) * shard_rows, count), batch_size) for number in own]
    parts = read(list(chain.from_iterable(spans)))
    for turn in range(-(-len(missing) // processes.size)):  # in turns, so that none waits longer for another than for a shard

        def make(turn: int = turn) -> None:
            if turn < len(own):
                _write(paths[own[turn]], plan.key, islice(parts, len(spans[turn])))

        processes.each(make)
    if not plan.is_finished:
        processes.on_first(lambda: _finish(folder, plan, {"shard_rows": shard_rows, "about": about}, check))
    _wait_for(lambda: bool(_found(folder, plan.key)), f"{folder} does not show the cache that is there")
    (cache,) = _found(folder, plan.key)
    if plan.is_finished:
        check(cache.unreadable)
    return cache


def _spans(start: int, stop: int, size: int) -> list[Span]:
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


def _found(folder: Path, key: str) -> list[ArrayCache]:
    """The finished cache of a key, if it is there."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        return [ArrayCache(folder, meta)] if meta["key"] == key else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []  # none yet, or of an earlier release


class _Plan(NamedTuple):
    """The shards of a cache's key, the numbers of those that are to be made, and whether the cache was finished before."""

    key: str
    names: list[str]
    missing: list[int]
    is_finished: bool


def _begin(folder: Path, key: str, num_shards: int) -> _Plan:
    """Makes the folder ready."""
    names = [f"{key[:16]}-{number:06d}.arrays" for number in range(num_shards)]
    recover_folder(folder)
    known = written_in(folder) if folder.exists() else {}
    if known is None and strangers(folder):
        raise UserError(f"{folder} is not a cache of this tool, and one would replace it; move it, or train in another --run-dir")
    if any(cache.is_whole for cache in _found(folder, key)):
        _remove_others(folder, names)
        return _Plan(key, names, [], True)
    folder.mkdir(parents=True, exist_ok=True)
    recover_all(folder, alone=True)
    own = {name: marks for name, marks in (known or {}).items() if name not in (META, RECORD)}
    write_file(folder / RECORD, record(own | {name: () for name in names}))
    missing = [number for number, name in enumerate(names) if (about_shard(folder / name) or {}).get("key") != key]
    return _Plan(key, names, missing, False)


def _write(path: Path, key: str, parts: Iterator[Part]) -> None:
    unreadable: dict[str, str] = {}

    def rows() -> Iterator[Row]:
        for part in parts:
            unreadable.update(part.unreadable)
            yield from part.rows

    write_shard(path, rows(), {"key": key, "unreadable": unreadable})


def _finish(folder: Path, plan: _Plan, what: Mapping[str, Any], check: Callable[[Mapping[str, str]], None]) -> None:
    """Makes a cache of shards that are all there."""
    unreadable: dict[str, str] = {}
    for name in plan.names:
        unreadable |= _about_when_there(folder / name)["unreadable"]
    check(unreadable)
    meta = {
        "tool": f"{TOOL} {__version__}",
        "key": plan.key,
        **what,
        "unreadable": dict(sorted(unreadable.items())),
        "shards": {name: (folder / name).stat().st_size for name in plan.names},
    }
    write_file(folder / META, json.dumps(meta))
    _remove_others(folder, plan.names)


def _about_when_there(path: Path) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        about = about_shard(path)
        found.extend([] if about is None else [about])
        return about is not None

    _wait_for(is_there, f"{path} is not there")
    return found[0]


def _remove_others(folder: Path, names: Sequence[str]) -> None:
    """Removes what is of an earlier cache, or of one that was never finished."""
    if not (folder / RECORD).exists():
        return
    for name in (written_in(folder) or {}).keys() - {*names, META, RECORD}:
        (folder / name).unlink(missing_ok=True)
    (folder / RECORD).unlink()


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _wait_for(is_there: Callable[[], bool], otherwise: str) -> None:
    """Waits for what another process has written, until the file system shows it.

    Raises:
        UserError: it never does.
    """
    end = time.monotonic() + PATIENCE
    while not is_there():
        if time.monotonic() > end:
            raise UserError(f"{otherwise} (after {PATIENCE:g} s); the same command makes what is missing")
        time.sleep(0.1)
