"""Shards on disk: tar files in the webdataset form, a binary index beside each, and one index.json.

A shard's index (`ldm.data.shard_index`) has the offsets and checksums of its records' members, so that a record is read, and compared, by
one slice of a memory-map. `index.json` is small: for every split its shards with their bytes and sha256, and what is known of all its
records, so that opening a set reads no record; the names of labels and map classes; where the set comes from.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from webdataset import TarWriter

from ldm.core.errors import UserError
from ldm.core.files import write_file
from ldm.data.facts import ATTRIBUTES, BOXES, CAPTIONS, LABELS, MAPS, MASKS, PIXELS, AttributeFacts, AttributeTally
from ldm.data.formats import IMAGE_SUFFIXES
from ldm.data.record import Record
from ldm.data.shard_index import Member, ShardIndex

INDEX_NAME = "index.json"
VERSION = 3  # of index.json; 2 had the records in it, 1 no checksums
MOST_NAMES = 10_000  # labels that are numbers, or names of attributes, that index.json lists; more are looked for when they are needed
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # how gzip, bzip2, xz and zstandard begin


def checksum(content: bytes | memoryview) -> str:
    """64 bits of BLAKE2b, as hex: what changed on a disk or on its way is seen, what somebody forged is not."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


class IndexFile(NamedTuple):
    """The file that a shard's index lies in."""

    name: str
    bytes: int
    sha256: str

    def check_size(self, folder: Path) -> None:
        """
        Raises:
            UserError: it is missing, or of another size than it was written with.
        """
        path = folder / self.name
        if not path.is_file():
            raise UserError(f"{path}: no such file, though {folder / INDEX_NAME} names it; copy the whole folder")
        if path.stat().st_size != self.bytes:
            raise self.damage(folder, f"{path.stat().st_size} bytes")

    def damage(self, folder: Path, reason: object) -> UserError:
        """The refusal of a file that is not what was written."""
        return UserError(f"{folder / self.name} is not what was written there ({reason}); prepare or copy the data anew")


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard; its index is a file beside it or, of shards that have none and of sets of earlier releases, in memory."""

    name: str
    bytes: int
    sha256: str
    count: int
    index: IndexFile | ShardIndex

    def open_index(self, folder: Path, *, is_checked: bool = False) -> ShardIndex:
        """The index.

        Args:
            folder: of the shard.
            is_checked: whether it was opened before, so that it need not be compared with what was written.

        Raises:
            UserError: its file is missing, or not what was written.
        """
        if isinstance(self.index, ShardIndex):
            return self.index
        self.index.check_size(folder)
        try:
            with open(folder / self.index.name, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                if not is_checked:
                    content = file.read()  # looked at in memory of its own, so that only pages that are used later stay mapped
                    if hashlib.sha256(content).hexdigest() != self.index.sha256:
                        raise ValueError("sha256")
                    ShardIndex(content).check()
            index = ShardIndex(memoryview(mapped))
            if len(index) != self.count:
                raise ValueError(f"{len(index)} records, where {INDEX_NAME} has {self.count}")
        except (OSError, ValueError, RecursionError) as error:
            raise self.index.damage(folder, error) from None
        return index


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """What is known of all records of a split.

    Attributes:
        digest: of the records, see `digest_of`.
        has: see `ldm.data.facts.DataFacts`.
        labels: those that are numbers, each with the first record that has it; None = more than MOST_NAMES.
        attributes: see `ldm.data.facts`; None = one has more than MOST_NAMES names.
    """

    digest: str
    has: frozenset[str]
    labels: Mapping[int, str] | None
    attributes: Mapping[str, AttributeFacts] | None


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """The shards of a split. facts: None in sets of earlier releases."""

    shards: tuple[ShardInfo, ...]
    facts: SplitFacts | None = None

    @property
    def count(self) -> int:
        """Of records."""
        return sum(shard.count for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class Index:
    """All of index.json. splits: "train" and, where there is one, "val"; map_classes: those that occur in maps."""

    splits: Mapping[str, SplitInfo]
    label_names: tuple[str, ...] = ()
    map_names: tuple[str, ...] = ()
    map_classes: tuple[int, ...] = ()
    about: dict[str, object] = field(default_factory=dict)  # source, licence, palette: for people

    def write(self, folder: Path) -> None:
        """Writes folder/index.json, for splits that `shard_writer` wrote."""
        plain = {
            "version": VERSION,
            "splits": {split: [_plain_shard(shard) for shard in info.shards] for split, info in self.splits.items()},
            "facts": {split: _plain_facts(info.facts) for split, info in self.splits.items() if info.facts is not None},
            "label_names": self.label_names,
            "map_names": self.map_names,
            "map_classes": self.map_classes,
            "about": self.about,
        }
        write_file(folder / INDEX_NAME, json.dumps(plain, ensure_ascii=False, indent=1) + "\n")

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder has an index of ours, known by its form: `index.json` is a common name."""
        if not (folder / INDEX_NAME).is_file():  # a pipe has its reader wait for ever
            return False
        try:
            plain = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return any(folder.glob("*.tar"))  # a damaged one of ours, which `read` names
        splits = plain.get("splits") if isinstance(plain, dict) else None
        return isinstance(splits, dict) and bool(splits) and all(isinstance(shards, list) for shards in splits.values())

    @staticmethod
    def read(folder: Path) -> Index:
        """The index of a folder.

        Raises:
            UserError: not there, or not of this form.
        """
        path = folder / INDEX_NAME
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            version = plain.get("version", 2)
            if version not in range(1, VERSION + 1):
                raise ValueError(f"version {version}; this release reads versions 1 to {VERSION}")
            facts = {split: _facts_of(one) for split, one in plain.get("facts", {}).items()}
            splits = {
                split: SplitInfo(shards=tuple(_shard_of(shard, version) for shard in shards), facts=facts.get(split))
                for split, shards in plain["splits"].items()
            }
            return Index(
                splits=splits,
                label_names=tuple(map(str, plain.get("label_names", ()))),
                map_names=tuple(map(str, plain.get("map_names", ()))),
                map_classes=tuple(map(int, plain.get("map_classes", ()))),
                about=dict(plain.get("about", {})),
            )
        except FileNotFoundError:
            raise UserError(f"no {INDEX_NAME} in {folder}; make one with scripts/prepare_data.py") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}); make it anew with scripts/prepare_data.py") from None


def _plain_shard(shard: ShardInfo) -> dict[str, object]:
    assert isinstance(shard.index, IndexFile), shard.name
    index = {"name": shard.index.name, "bytes": shard.index.bytes, "sha256": shard.index.sha256}
    return {"name": shard.name, "bytes": shard.bytes, "sha256": shard.sha256, "count": shard.count, "index": index}


def _shard_of(plain: Mapping[str, Any], version: int) -> ShardInfo:
    count = int(plain["count"])
    index: IndexFile | ShardIndex
    if version == VERSION:
        index = IndexFile(name=_file_name(plain["index"]["name"]), bytes=int(plain["index"]["bytes"]), sha256=str(plain["index"]["sha256"]))
    else:
        index = ShardIndex(ShardIndex.encode((str(key), map(_member, members)) for key, members in plain["records"].items()))
        count = len(index)
    if count < 0:
        raise ValueError(f"{count} records")
    return ShardInfo(name=_file_name(plain["name"]), bytes=int(plain["bytes"]), sha256=str(plain["sha256"]), count=count, index=index)


def _file_name(name: object) -> str:
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"shard name {name!r} is not a plain file name")
    return name


def _member(plain: Iterable[Any]) -> Member:
    """Of version 2, or of version 1, which had no checksum."""
    suffix, offset, size, *digest = plain
    return Member(str(suffix), int(offset), int(size), str(*digest))


def _plain_facts(facts: SplitFacts) -> dict[str, object]:
    attributes = facts.attributes
    return {
        "digest": facts.digest,
        "has": sorted(facts.has),
        "labels": None if facts.labels is None else list(facts.labels.items()),
        "attributes": None if attributes is None else {name: {"numbers": of.numbers, "names": of.names} for name, of in attributes.items()},
    }


def _attribute_facts(plain: Mapping[str, Any]) -> AttributeFacts:
    numbers = plain["numbers"]
    low, high = (0, 0) if numbers is None else numbers
    return AttributeFacts(numbers=None if numbers is None else (float(low), float(high)), names=tuple(map(str, plain["names"])))


def _facts_of(plain: Mapping[str, Any]) -> SplitFacts:
    labels, attributes = plain["labels"], plain["attributes"]
    return SplitFacts(
        digest=str(plain["digest"]),
        has=frozenset(map(str, plain["has"])),
        labels=None if labels is None else {int(number): str(key) for number, key in labels},
        attributes=None if attributes is None else {str(name): _attribute_facts(of) for name, of in attributes.items()},
    )


ROLES = ("image", "img", "mask", "map", "text", "caption", "captions", "label", "json")  # of a member, before its suffix


def split_name(member: str) -> tuple[str, str]:
    """(key, suffix) of a member's name as webdataset splits it: at the first dot of the last path component.

    Both are empty for a name that begins with a dot or two underscores, which is no record's.
    """
    folder, _, name = member.rpartition("/")
    stem, _, suffix = name.partition(".")
    if name.startswith((".", "__")):
        return "", ""
    return (f"{folder}/{stem}" if folder else stem), suffix


def split_records(key: str, suffixes: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The records that the members of one key are, and the pictures among them that are of none.

    `k.jpg` is a record with `k.txt`, `k.mask.png` and so on; another picture beside it, `k.depth.png`, is passed over. Where there is no
    such picture, names have dots in them: `photo.v1.0.jpg` and `photo.v1.1.jpg` are two records.

    Returns:
        By the record's key: a member's suffix within the record, and its suffix as it was given. The suffixes of what is passed over.
    """
    by_rest: dict[str, dict[str, str]] = {}
    for suffix in suffixes:
        *rest, last = suffix.split(".")
        own = f"{rest.pop()}.{last}" if rest and rest[-1].lower() in ROLES else last
        by_rest.setdefault(".".join(rest), {})[own] = suffix
    pictured = [rest for rest, members in by_rest.items() if any(map(is_picture, members))]
    if "" not in pictured and len(pictured) > 1:
        return {f"{key}.{rest}" if rest else key: members for rest, members in by_rest.items()}, []
    its = "" if "" in pictured or not pictured else pictured[0]
    others = [suffix for rest in pictured if rest != its for own, suffix in by_rest[rest].items() if is_picture(own)]
    return {key: by_rest.get("", {}) | by_rest.get(its, {})}, others


def is_picture(suffix: str) -> bool:
    """Whether a member of this suffix within its record is a picture, not a mask or map."""
    role, _, kind = suffix.lower().rpartition(".")
    return kind in IMAGE_SUFFIXES and role not in ("mask", "map")


def plain_key(name: str) -> str:
    """A key that any tar tool and file system takes: [A-Za-z0-9_-], at most 80 characters."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[-80:] or "_"


class Scan(NamedTuple):
    """What was found in a tar.

    Attributes:
        records: their members by key; checksums are not known.
        fault: what is wrong with the file; None = nothing. What can be read before the fault is kept.
        others: names of members that are of no record, or were written again later.
    """

    records: dict[str, tuple[Member, ...]]
    fault: str | None
    others: tuple[str, ...]


def scan_shard(path: Path) -> Scan:
    """The records of a tar.

    Only regular files count, and hard links to one of them, as tar writes for a file of two names. Nothing is ever extracted to a path.
    """
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    places: dict[str, tuple[int, int]] = {}
    others: list[str] = []
    fault, end = None, 0
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data + (-(-member.size // 512) * 512 if member.isreg() else 0)
                place = places.get(member.linkname) if member.islnk() else (member.offset_data, member.size) if member.isreg() else None
                key, suffix = split_name(member.name)
                if member.isdir():
                    continue
                if place is None or member.issparse() or not suffix:
                    others.append(member.name)
                    continue
                if sum(place) > size:
                    fault = "truncated"
                    break
                places[member.name] = place
                known = groups.setdefault(key, {})
                again = next((one for one in known if one.lower() == suffix.lower()), None)
                if again is not None:
                    others.append(member.name)
                    del known[again]
                known[suffix] = place
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        fault = str(error) or type(error).__name__
    if fault is None:
        fault = _fault_at_end(path, end)
    with open(path, "rb") as file:
        if file.read(6).startswith(COMPRESSED):
            fault = "it is compressed: unpack it"
    records: dict[str, tuple[Member, ...]] = {}
    for key, found in groups.items():
        split, more = split_records(key, found)
        records |= {one: tuple(Member(own, *found[suffix], "") for own, suffix in members.items()) for one, members in split.items()}
        others += [f"{key}.{suffix}" for suffix in more]
    return Scan(records, fault, tuple(others))


def _fault_at_end(path: Path, end: int) -> str | None:
    """What is wrong behind a tar's last member, which ends at byte `end`: two blocks of zeros must follow, and nothing else."""
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(1024) != bytes(1024):
            return "truncated: no end mark"
        while rest := file.read(1 << 20):
            if any(rest):
                return "more follows behind its end mark: tars are put together with tar --concatenate, not with cat"
    return None


def digest_of(entries: Iterable[tuple[str, Iterable[Member]]]) -> str:
    """Of records by their keys and their members' checksums: the same wherever a set lies, and however it is cut into shards."""
    found = hashlib.sha256(b"[")
    for number, (key, members) in enumerate(entries):
        known = (key, [(suffix, digest) for suffix, _, _, digest in members])
        found.update((", " * (number > 0) + repr(known)).encode(errors="surrogateescape"))
    found.update(b"]")
    return found.hexdigest()


class _Seen:
    """What is known of the records that were written."""

    def __init__(self) -> None:
        self._has: set[str] = set()
        self._labels: dict[int, str] = {}
        self._attributes = AttributeTally(MOST_NAMES)

    def see(self, record: Record) -> None:
        there = {
            PIXELS: True,
            CAPTIONS: record.captions,
            LABELS: record.label is not None,
            MASKS: record.mask is not None,
            MAPS: record.map is not None,
            BOXES: record.boxes,
            ATTRIBUTES: record.attributes,
        }
        self._has.update(name for name, is_there in there.items() if is_there)
        if isinstance(record.label, int) and len(self._labels) <= MOST_NAMES:
            self._labels.setdefault(record.label, record.key)
        self._attributes.add(record.attributes)

    def facts(self, digest: str) -> SplitFacts:
        labels = self._labels if len(self._labels) <= MOST_NAMES else None
        return SplitFacts(digest=digest, has=frozenset(self._has), labels=labels, attributes=self._attributes.facts())


class ShardWriter:
    """Writes the records of one split into `<prefix>-000000.tar`, ... of at most max_bytes each; see `shard_writer`."""

    def __init__(self, folder: Path, prefix: str, max_bytes: int) -> None:
        self.folder, self.prefix, self.max_bytes = folder, prefix, max_bytes
        self._shards: list[ShardInfo] = []
        self._keys: set[str] = set()
        self._seen = _Seen()
        self._buffer, self._count = io.BytesIO(), 0
        self._tar = self._new()

    def _new(self) -> TarWriter:
        self._buffer, self._count = io.BytesIO(), 0
        return TarWriter(self._buffer, encoder=False, mtime=0, user="ldm", group="ldm")

    def add(self, record: Record) -> None:
        """One record more; its key must be plain (see `plain_key`) and new: two records of one key would be read as one."""
        assert record.key not in self._keys and plain_key(record.key) == record.key, record.key
        self._keys.add(record.key)
        members = record.members()
        needed = sum(512 + -(-len(content) // 512) * 512 for content in members.values())
        if self._count and self._buffer.tell() + needed + 10240 > self.max_bytes:
            self.flush()
        self._tar.write({"__key__": record.key, **members})
        self._seen.see(record)
        self._count += 1

    def flush(self) -> None:
        """Ends the shard in hand."""
        self._tar.close()
        if self._count:
            path = self.folder / f"{self.prefix}-{len(self._shards):06d}.tar"
            content = self._buffer.getvalue()
            write_file(path, content)
            records, fault, _ = scan_shard(path)
            assert fault is None and len(records) == self._count, (fault, len(records), self._count)
            index = ShardIndex.encode(
                (key, [(suffix, start, size, checksum(memoryview(content)[start : start + size])) for suffix, start, size, _ in members])
                for key, members in records.items()
            )
            write_file(path.with_suffix(".index"), index)
            beside = IndexFile(path.with_suffix(".index").name, len(index), hashlib.sha256(index).hexdigest())
            sha256 = hashlib.sha256(content).hexdigest()
            self._shards.append(ShardInfo(name=path.name, bytes=len(content), sha256=sha256, count=len(records), index=beside))
        self._tar = self._new()

    @property
    def written(self) -> SplitInfo:
        """What was written, after the last shard was ended."""
        entries = (entry for shard in self._shards for entry in shard.open_index(self.folder, is_checked=True))
        return SplitInfo(shards=tuple(self._shards), facts=self._seen.facts(digest_of(entries)))


@contextmanager
def shard_writer(folder: Path, prefix: str, max_bytes: int) -> Iterator[ShardWriter]:
    """A writer whose last shard is ended on leaving."""
    writer = ShardWriter(folder, prefix, max_bytes)
    yield writer
    writer.flush()


def write_shards(folder: Path, prefix: str, records: Iterable[Record], max_bytes: int = 15 * 2**20) -> SplitInfo:
    """All records into shards of a split."""
    with shard_writer(folder, prefix, max_bytes) as writer:
        for record in records:
            writer.add(record)
    return writer.written
