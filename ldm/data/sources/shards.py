"""Records from local shards by random access: member offsets from the index, bytes from a memory-map."""

from __future__ import annotations

import hashlib
import mmap
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ldm.core.errors import UserError
from ldm.data.findings import NO_LABEL, Finding, by_kind
from ldm.data.record import JSONS, NUMBERS, TEXTS, Record, attributes_in, captions_in, is_read, label_in
from ldm.data.shards import Index, Member, ShardInfo, checksum, is_picture, scan_shard
from ldm.data.sources.contents import checksums
from ldm.data.sources.layout import SPLIT_OF, File, layout_of, walk
from ldm.data.sources.source import Source
from ldm.data.text import shown


class ShardSource(Source):
    """The records of some shards. Those beyond a truncated file's end are unreadable, by key."""

    def __init__(self, name: str, shards: Sequence[tuple[Path, ShardInfo]], index: Index) -> None:
        self.name = name
        self.label_names, self.map_names, self.map_classes = index.label_names, index.map_names, index.map_classes
        credits = index.about.get("credits", ())
        self.credits = tuple(map(str, credits)) if isinstance(credits, list) else ()
        self._shards = shards
        self.unreadable = {}
        self._maps: dict[Path, mmap.mmap] = {}
        self._records: list[tuple[str, Path, tuple[Member, ...]]] = []
        count = Counter(key for _, info in shards for key in info.records)
        self._double = {key for key, number in count.items() if number > 1}  # in several shards
        for path, info in shards:
            if not path.is_file():
                raise UserError(f"{path}: no such shard, though {path.parent / 'index.json'} names it; copy the whole folder")
            size = path.stat().st_size
            if size:
                self._maps[path] = _mapped(path)
            for key, members in info.records.items():
                if all(offset + length <= size for _, offset, length, _ in members):
                    self._records.append((key, path, members))
                else:
                    self.unreadable[self._name(key, path)] = f"{key}: {path} is truncated"
        if not self._records:
            raise UserError(f"{name}: its shards hold no readable record")
        suffixes = {suffix.lower() for _, _, members in self._records for suffix, *_ in members}
        self.has_masks, self.has_maps = (any(suffix.startswith(f"{role}.") for suffix in suffixes) for role in ("mask", "map"))
        first = self.first_records()
        # What the first few do not show, any later one may: then all are looked through, up to the first that has it.
        self.has_captions = any(record.captions for record in first) or any(captions for _, captions in self.captions())
        self.has_labels = any(record.label is not None for record in first) or any(label is not None for label in self.labels())
        self.has_boxes = any(record.boxes for record in first) or any(b'"boxes"' in content for content in self._json())
        self.has_attributes = any(record.attributes for record in first) or any(map(bool, self.attributes()))

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes that do not share this one's memory: they map the shards themselves."""
        return {**vars(self), "_maps": list(self._maps)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _maps={path: _mapped(path) for path in state["_maps"]})

    def __len__(self) -> int:
        return len(self._records)

    def key(self, index: int) -> str:
        key, path, _ = self._records[index]
        return self._name(key, path)

    def _name(self, key: str, path: Path) -> str:
        return f"{key} in {path.name}" if key in self._double else key

    @cached_property
    def digest(self) -> str:  # type: ignore[override]
        """Of the members' checksums; of shards without any, of the files."""
        known = [(key, [(suffix, digest) for suffix, _, _, digest in members]) for key, _, members in self._records]
        if all(digest for _, members in known for _, digest in members):
            return hashlib.sha256(repr(known).encode(errors="surrogateescape")).hexdigest()
        sums = [info.sha256 for _, info in self._shards]
        if not all(sums):  # bare shards: read whole once, and known from then on
            paths = [path for path, _ in self._shards]
            sums = checksums(paths[0].parent, "shards", [File.at(path) for path in paths])
        return hashlib.sha256("".join(sums).encode()).hexdigest()

    @property
    def image_checksums(self) -> list[str]:
        """See `Source.image_checksums`."""
        found = []
        for _, path, members in self._records:
            image = next(((start, size, digest) for suffix, start, size, digest in members if is_picture(suffix)), None)
            found.append("" if image is None else image[2] or checksum(self._maps[path][image[0] : image[0] + image[1]]))
        return found

    def text_labels(self) -> tuple[str, ...]:
        """All labels, sorted, if some are texts; for shards whose index does not name them."""
        found = set(self.labels()) - {None}
        return tuple(sorted(map(str, found))) if any(isinstance(label, str) for label in found) else ()

    def captions(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """See `Source.captions`."""
        for key, path, members in self._records:
            texts = {suffix.lower(): (start, size) for suffix, start, size, _ in members if suffix.lower() in (*JSONS, *TEXTS)}
            yield key, captions_in({suffix: self._maps[path][start : start + size] for suffix, (start, size) in texts.items()})

    def label_numbers(self) -> dict[int, str]:
        """See `Source.label_numbers`."""
        found: dict[int, str] = {}
        for (key, _, _), label in zip(self._records, self.labels(), strict=True):
            if isinstance(label, int):
                found.setdefault(label, key)
        return found

    def labels(self) -> Iterator[str | int | None]:
        """Of every record; None = it has none, or one that cannot be read."""
        for _, path, members in self._records:
            places = {suffix.lower(): (start, size) for suffix, start, size, _ in members if suffix.lower() in (*JSONS, *NUMBERS)}
            yield label_in({suffix: self._maps[path][start : start + size] for suffix, (start, size) in places.items()})

    def attributes(self) -> Iterator[dict[str, Any]]:
        """See `Source.attributes`."""
        return (attributes_in(content) for content in self._json())

    def _json(self) -> Iterator[bytes]:
        for _, path, members in self._records:
            for suffix, offset, size, _ in members:
                if suffix.lower() == "json":
                    yield self._maps[path][offset : offset + size]

    def record(self, index: int) -> Record:
        key, path, members = self._records[index]
        found = {}
        for suffix, offset, size, digest in members:
            found[suffix] = self._maps[path][offset : offset + size]
            if digest and checksum(found[suffix]) != digest:
                raise UserError(f"{key}: its {suffix} in {path} is not what was written there (checksum); prepare or copy the data anew")
        record = Record.of(key, found)
        return record if record.place or key not in self._double else replace(record, place=self._name(key, path))


def open_indexed(folder: Path, split: str) -> ShardSource:
    """A split of a folder that scripts/prepare_data.py made.

    Raises:
        UserError: no such split.
    """
    index = Index.read(folder)
    if split not in index.splits:
        raise UserError(
            f"{folder} has no {split!r} split (it has {', '.join(index.splits)}); "
            + ("set data.val=null, or make it anew with scripts/prepare_data.py --val-every N" if split == "val" else "make it anew")
        )
    source = ShardSource(f"{folder.name} ({split})", [(folder / info.name, info) for info in index.splits[split]], index)
    source.split = split
    if split == "train":
        source.held_out = sum(info.count for info in index.splits.get("val", ()))
    return source


def open_folder_of_tars(folder: Path, must_be_whole: bool = True) -> ShardSource | None:
    """The bare shards at the top of a folder, see `open_tars`; None if there is none, or the folder has pictures.

    In a folder of pictures a tar is a stranger.
    """
    tars = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".tar" and path.is_file())
    if not tars or layout_of(folder).pictures:
        return None
    source = open_tars(tars, must_be_whole)
    walked, passed_over = walk(folder)
    others = [file.path for file in walked if folder / file.path not in tars]
    kinds = ((f"{path.suffix} files" if path.suffix else "files without a suffix", shown(path)) for path in others)
    source.findings += (*passed_over, *by_kind("{} beside the shards, passed over", kinds))
    held_out = tuple(shown(path.name) for path in tars if SPLIT_OF.get(re.split(r"[-_.0-9]", path.name.lower())[0], "train") != "train")
    if held_out and len(held_out) < len(tars):
        what = "shards whose names say that they are held out, taken with the others (data.train and data.val may name patterns of shards)"
        source.findings += (Finding(what, held_out),)
    return source


class BareShard(NamedTuple):
    """A shard without an index: its members are found by `tarfile`, once.

    Attributes:
        path: of the file.
        info: what an index would say of it.
        fault: "" or why it breaks off; how many records it had is not known then.
        others: names of members that are of no record, or there twice.
    """

    path: Path
    info: ShardInfo
    fault: str
    others: tuple[str, ...]

    @staticmethod
    def of(path: Path) -> BareShard:
        records, fault, others = scan_shard(path)
        info = ShardInfo(name=path.name, bytes=path.stat().st_size, sha256="", count=len(records), records=records)
        return BareShard(path, info, f"breaks off after {len(records)} records ({fault})" if fault else "", others)


def bare_source(name: str, shards: Sequence[BareShard]) -> ShardSource:
    """The records of bare shards.

    Raises:
        UserError: there is none that can be read.
    """
    source = ShardSource(name, [(shard.path, shard.info) for shard in shards], Index(splits={}))
    source.label_names = source.text_labels()
    others = tuple(other for shard in shards for other in shard.others)
    if source.has_labels:
        silent = tuple(source.key(index) for index, label in enumerate(source.labels()) if label is None)
        source.findings += (Finding(NO_LABEL, silent),) if silent else ()
    if others:
        source.findings += (Finding("members of shards that are of no record, or there twice, passed over", others),)
    records = (record for shard in shards for record in shard.info.records.items())
    unread = [(f".{suffix}", f"{key}.{suffix}") for key, members in records for suffix, *_ in members if not is_read(suffix)]
    source.findings += tuple(by_kind("{} members of shards, which are not read", unread))
    return source


def open_tars(paths: Sequence[Path], must_be_whole: bool = True) -> ShardSource:
    """Bare shards of the disk.

    Args:
        paths: of the shards.
        must_be_whole: refuse a shard that breaks off; otherwise that is counted as one record.

    Raises:
        UserError: no such shard, or one that breaks off.
    """
    shards, unreadable = [], {}
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such shard")
        shard = BareShard.of(path)
        if shard.fault:
            unreadable[path.name] = f"{path}: {shard.fault}; how many it had is not known"
            if must_be_whole:
                raise UserError(f"{unreadable[path.name]}. Fetch it again, or take what is there with scripts/prepare_data.py")
        shards.append(shard)
    source = bare_source(paths[0].parent.name or "shards", shards)
    source.unreadable |= unreadable
    return source


def _mapped(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
