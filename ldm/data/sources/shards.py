"""Records from shards by random access: member offsets from the index, bytes from a memory-map or, of a remote shard, by ranges."""

from __future__ import annotations

import hashlib
import mmap
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldm.core.errors import UserError
from ldm.data.checksum import checksum, digest_of
from ldm.data.facts import ATTRIBUTES, BOXES, CAPTIONS, LABELS, MAPS, MASKS, AttributeFacts
from ldm.data.findings import NO_LABEL, Finding, by_kind
from ldm.data.record import JSONS, NUMBERS, TEXTS, Record, attributes_in, captions_in, is_read, label_in
from ldm.data.set_index import INDEX_NAME, Index, IndexFile, ShardInfo, SplitFacts
from ldm.data.shard_index import Entry, Member, ShardIndex
from ldm.data.shard_scan import is_picture, scan_shard
from ldm.data.sources.contents import checksums
from ldm.data.sources.layout import SPLIT_OF, File, layout_of, walk
from ldm.data.sources.remote import RemoteShard, copied_set
from ldm.data.sources.source import Source
from ldm.data.text import shown

Content = mmap.mmap | bytes | RemoteShard
"""The bytes of a shard."""

OPEN = 64  # shards that are memory-mapped at once, with their indices; Python keeps a file open for each map


class Shard(NamedTuple):
    """A shard, at the place of its file on the disk. content: where its bytes are; None = in it, mapped when it is first read."""

    path: Path
    info: ShardInfo
    content: mmap.mmap | RemoteShard | None = None


class ShardSource(Source):
    """The records of some shards. Those beyond a truncated file's end are unreadable, by key.

    Where the set has an index of this release, nothing is kept in memory for a record, and opening reads none but the first few.
    """

    def __init__(
        self, name: str, shards: Sequence[Shard], index: Index, facts: SplitFacts | None = None, sizes: IndexFile | None = None
    ) -> None:
        """
        Args:
            name: for people.
            shards: see `Shard`.
            index: of the set, for names and credits.
            facts: of the records; None = not known, and looked for in them.
            sizes: see `SplitInfo`.

        Raises:
            UserError: a shard is missing, or none has a readable record.
        """
        self.name = name
        self.label_names, self.map_names, self.map_classes = index.label_names, index.map_names, index.map_classes
        credits = index.about.get("credits", ())
        self.credits = tuple(map(str, credits)) if isinstance(credits, list) else ()
        self._shards, self._sizes = shards, sizes
        self._checked: set[int] = set()
        self._opened = self._with_open_shards()
        self.unreadable = {}
        in_memory = [info.index for _, info, _ in shards if isinstance(info.index, ShardIndex)]
        count = Counter(key for index in in_memory for key, _ in index)
        self._double = {key for key, number in count.items() if number > 1}  # in several shards
        self._whole: dict[int, np.ndarray] = {}  # of truncated shards, the numbers of the records that are there
        counts = [self._count(number) for number in range(len(shards))]
        self._ends = list(accumulate(counts))  # of each shard's records among all
        if not self._ends or not self._ends[-1]:
            raise UserError(f"{name}: its shards hold no readable record")
        self._facts = None if self.unreadable else facts
        self._look()

    def _count(self, number: int) -> int:
        """How many records of a shard are there; the others are unreadable."""
        path, info, content = self._shards[number]
        if content is None and not path.is_file():
            raise UserError(f"{path}: no such shard, though {path.parent / INDEX_NAME} names it; copy the whole folder")
        if isinstance(info.index, IndexFile):
            info.index.check_size(path.parent)
        size = path.stat().st_size if content is None else len(content)
        if size >= info.bytes:
            return info.count
        index = info.open_index(path.parent)
        whole = self._whole[number] = index.whole(size)
        for key in (index[lost].key for lost in sorted(set(range(len(index))) - set(whole.tolist()))):
            self.unreadable[self._name(key, path)] = f"{key}: {path} is truncated"
        return len(whole)

    def _look(self) -> None:
        """What the records have: as the index knows; else of the first few, and of all up to the first that has it."""
        if self._facts is not None:
            has = self._facts.has
            self.has_captions, self.has_labels, self.has_masks = CAPTIONS in has, LABELS in has, MASKS in has
            self.has_maps, self.has_boxes, self.has_attributes = MAPS in has, BOXES in has, ATTRIBUTES in has
            return
        suffixes = {suffix.lower() for number in range(len(self._shards)) for suffix in self._opened(number)[0].suffixes}
        self.has_masks, self.has_maps = (any(suffix.startswith(f"{role}.") for suffix in suffixes) for role in ("mask", "map"))
        first = self.first_records()
        self.has_captions = any(record.captions for record in first) or any(captions for _, captions in self.captions())
        self.has_labels = any(record.label is not None for record in first) or any(label is not None for label in self.labels())
        self.has_boxes = any(record.boxes for record in first) or any(b'"boxes"' in content for content in self._json())
        self.has_attributes = any(record.attributes for record in first) or any(map(bool, self.attributes()))

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes that do not share this one's memory: they open the shards themselves."""
        state = {name: value for name, value in vars(self).items() if name != "_opened"}
        at_hand = [None if isinstance(shard.content, mmap.mmap) else shard.content for shard in self._shards]
        shards = [Shard(shard.path, shard.info, content) for shard, content in zip(self._shards, at_hand, strict=True)]
        return {**state, "_shards": shards}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._opened = self._with_open_shards()

    def _with_open_shards(self) -> Callable[[int], tuple[ShardIndex, Content]]:
        return lru_cache(maxsize=OPEN)(self._open)

    def _open(self, number: int) -> tuple[ShardIndex, Content]:
        """A shard's index and content."""
        path, info, content = self._shards[number]
        index = info.open_index(path.parent, is_checked=number in self._checked)
        self._checked.add(number)
        if content is not None:
            return index, content
        try:
            with open(path, "rb") as file:
                return index, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None

    def __len__(self) -> int:
        return self._ends[-1]

    def _placed(self, index: int) -> tuple[int, int]:
        """A record's shard, and its number there."""
        shard = bisect_right(self._ends, index)
        number = index - (self._ends[shard - 1] if shard else 0)
        return shard, int(self._whole[shard][number]) if shard in self._whole else number

    def _found(self, index: int) -> tuple[Path, Content, Entry]:
        """A record's shard, with its content, and its place there."""
        shard, number = self._placed(index)
        entries, content = self._opened(shard)
        return self._shards[shard].path, content, entries[number]

    def _walk(self) -> Iterator[tuple[Path, Content, Entry]]:
        """`_found` of all records."""
        return map(self._found, range(len(self)))

    def key(self, index: int) -> str:
        path, _, (key, _) = self._found(index)
        return self._name(key, path)

    def _name(self, key: str, path: Path) -> str:
        return f"{key} in {path.name}" if key in self._double else key

    @cached_property
    def digest(self) -> str:  # type: ignore[override]
        """As the index knows it, or of the members' checksums; of shards without any, of the files."""
        if self._facts is not None:
            return self._facts.digest
        if all(member.checksum for _, _, entry in self._walk() for member in entry.members):
            return digest_of(entry for _, _, entry in self._walk())
        sums = [info.sha256 for _, info, _ in self._shards]
        if not all(sums):  # bare shards: read whole once, and known from then on
            paths = [path for path, _, _ in self._shards]
            sums = checksums(paths[0].parent, "shards", [File.at(path) for path in paths])
        return hashlib.sha256("".join(sums).encode()).hexdigest()

    @property
    def image_checksums(self) -> list[str]:
        """See `Source.image_checksums`."""
        found = []
        for _, content, entry in self._walk():
            image = next((member for member in entry.members if is_picture(member.suffix)), None)
            found.append("" if image is None else image.checksum or checksum(_read(content, [image])[0]))
        return found

    def text_labels(self) -> tuple[str, ...]:
        """All labels, sorted, if some are texts; for shards whose index does not name them."""
        found = set(self.labels()) - {None}
        return tuple(sorted(map(str, found))) if any(isinstance(label, str) for label in found) else ()

    def captions(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """See `Source.captions`."""
        for _, content, entry in self._walk():
            yield entry.key, captions_in(_members(content, entry, (*JSONS, *TEXTS)))

    def label_numbers(self) -> Mapping[int, str]:
        """See `Source.label_numbers`."""
        if self._facts is not None and self._facts.labels is not None:
            return self._facts.labels
        found: dict[int, str] = {}
        for (_, _, entry), label in zip(self._walk(), self.labels(), strict=True):
            if isinstance(label, int):
                found.setdefault(label, entry.key)
        return found

    def labels(self) -> Iterator[str | int | None]:
        """Of every record; None = it has none, or one that cannot be read."""
        return (label_in(_members(content, entry, (*JSONS, *NUMBERS))) for _, content, entry in self._walk())

    def attributes(self) -> Iterator[dict[str, Any]]:
        """See `Source.attributes`."""
        return (attributes_in(content) for content in self._json())

    def attribute_facts(self) -> Mapping[str, AttributeFacts]:
        """See `Source.attribute_facts`."""
        known = None if self._facts is None else self._facts.attributes
        return super().attribute_facts() if known is None else known

    def stored_sizes(self) -> np.ndarray | None:
        """See `Source.stored_sizes`.

        Raises:
            UserError: their file is not what was written.
        """
        if self._sizes is None or self._whole:  # of truncated shards some records are not there
            return None
        folder = self._shards[0].path.parent
        self._sizes.check_size(folder)
        content = (folder / self._sizes.name).read_bytes()
        if hashlib.sha256(content).hexdigest() != self._sizes.sha256:
            raise self._sizes.damage(folder, "sha256")
        if len(content) != 8 * len(self):
            raise self._sizes.damage(folder, f"{len(content) / 8:g} pictures, where {INDEX_NAME} has {len(self)}")
        return np.frombuffer(content, "<u4").reshape(-1, 2)

    def _json(self) -> Iterator[bytes]:
        return (text for _, content, entry in self._walk() for text in _members(content, entry, ("json",)).values())

    def record(self, index: int) -> Record:
        path, content, entry = self._found(index)
        found = {}
        for member, part in zip(entry.members, _read(content, entry.members), strict=True):
            found[member.suffix] = part
            if member.checksum and checksum(part) != member.checksum:
                raise UserError(
                    f"{entry.key}: its {member.suffix} in {path} is not what was written there (checksum); prepare or copy the data anew"
                )
        record = Record.of(entry.key, found)
        return record if record.place or entry.key not in self._double else replace(record, place=self._name(entry.key, path))


def _read(content: Content, members: Sequence[Member]) -> list[bytes]:
    if isinstance(content, RemoteShard):
        return content.read(members)
    return [content[member.offset : member.offset + member.size] for member in members]


def _members(content: Content, entry: Entry, suffixes: Sequence[str]) -> dict[str, bytes]:
    """The members of some suffixes, which are given in small letters."""
    wanted = [member for member in entry.members if member.suffix.lower() in suffixes]
    return {member.suffix.lower(): part for member, part in zip(wanted, _read(content, wanted), strict=True)}


def open_remote(url: str, split: str, gibibytes: float) -> ShardSource:
    """A split of a prepared set at a URL.

    Args:
        url: of its folder.
        split: "train" or "val".
        gibibytes: of this disk that ranges of all remote sets may take.

    Raises:
        UserError: it cannot be fetched, or has no such split.
    """
    url = url.rstrip("/")
    folder, kept = copied_set(url, gibibytes)
    return open_indexed(
        folder, split, url.rpartition("/")[2], lambda info: RemoteShard(f"{url}/{info.name}", info.bytes, folder / info.name, kept)
    )


def open_indexed(
    folder: Path, split: str, name: str | None = None, content_of: Callable[[ShardInfo], RemoteShard | None] = lambda info: None
) -> ShardSource:
    """A split of a folder that scripts/prepare_data.py made.

    Args:
        folder: see above.
        split: its name.
        name: for people; None = the folder's.
        content_of: where a shard's bytes are; None = in the folder.

    Raises:
        UserError: no such split.
    """
    index = Index.read(folder)
    if split not in index.splits:
        raise UserError(
            f"{name or folder} has no {split!r} split (it has {', '.join(index.splits)}); "
            + ("set data.val=null, or make it anew with scripts/prepare_data.py --val-every N" if split == "val" else "make it anew")
        )
    info = index.splits[split]
    shards, facts = info.shards, info.facts
    opened = [Shard(folder / shard.name, shard, content_of(shard)) for shard in shards]
    source = ShardSource(f"{name or folder.name} ({split})", opened, index, facts, info.sizes)
    source.split = split
    if split == "train" and "val" in index.splits:
        source.held_out = index.splits["val"].count
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
        shard: its file, what an index.json would say of it, and its content.
        entries: its records.
        fault: "" or why it breaks off; how many records it had is not known then.
        others: names of members that are of no record, or there twice.
    """

    shard: Shard
    entries: ShardIndex
    fault: str
    others: tuple[str, ...]

    @staticmethod
    def of(path: Path) -> BareShard:
        records, fault, others = scan_shard(path)
        index = ShardIndex(ShardIndex.encode(records.items()))
        info = ShardInfo(name=path.name, bytes=path.stat().st_size, sha256="", count=len(records), index=index)
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if info.bytes else None
        return BareShard(Shard(path, info, content), index, f"breaks off after {len(records)} records ({fault})" if fault else "", others)


def bare_source(name: str, shards: Sequence[BareShard]) -> ShardSource:
    """The records of bare shards.

    Raises:
        UserError: there is none that can be read.
    """
    source = ShardSource(name, [shard.shard for shard in shards], Index(splits={}))
    source.label_names = source.text_labels()
    others = tuple(other for shard in shards for other in shard.others)
    if source.has_labels:
        silent = tuple(source.key(index) for index, label in enumerate(source.labels()) if label is None)
        source.findings += (Finding(NO_LABEL, silent),) if silent else ()
    if others:
        source.findings += (Finding("members of shards that are of no record, or there twice, passed over", others),)
    entries = (entry for shard in shards for entry in shard.entries)
    unread = [(f".{suffix}", f"{key}.{suffix}") for key, members in entries for suffix, *_ in members if not is_read(suffix)]
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
