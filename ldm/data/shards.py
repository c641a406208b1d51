"""Shards on disk: tar files in the webdataset form, beside one index.json.

The index has, for every split, the shards with their bytes and sha256, and for every record the offsets and checksums of its members, so
that a record is read, and compared, by one slice of a memory-map; the names of labels and map classes stand there too.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from webdataset import TarWriter

from ldm.core.errors import UserError
from ldm.core.files import sha256_of, write_file
from ldm.data.formats import IMAGE_SUFFIXES
from ldm.data.record import Record

INDEX_NAME = "index.json"
VERSION = 2  # of an index; 1 had no checksums
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # how gzip, bzip2, xz and zstandard begin
Member = tuple[str, int, int, str]
"""Suffix, offset, size, and checksum; "" = none is known."""


def checksum(content: bytes | memoryview) -> str:
    """64 bits of BLAKE2b, as hex: what changed on a disk or on its way is seen, what somebody forged is not."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard: records maps a key to its members, in the order of the file."""

    name: str
    bytes: int
    sha256: str
    count: int
    records: dict[str, tuple[Member, ...]]


@dataclass(frozen=True, kw_only=True)
class Index:
    """All of index.json. splits: "train" and, where there is one, "val"; map_classes: those that occur in maps."""

    splits: dict[str, tuple[ShardInfo, ...]]
    label_names: tuple[str, ...] = ()
    map_names: tuple[str, ...] = ()
    map_classes: tuple[int, ...] = ()
    about: dict[str, object] = field(default_factory=dict)  # source, licence, palette: for people

    def write(self, folder: Path) -> None:
        """Writes folder/index.json, one record a line."""
        plain = asdict(self)
        plain["version"] = VERSION
        text = json.dumps(plain, ensure_ascii=False, indent=1)
        text = re.sub(r"\[\s+(\"[^\"]*\"),\s+(\d+),\s+(\d+),\s+(\"[0-9a-f]*\")\s+\]", r"[\1, \2, \3, \4]", text)
        write_file(folder / INDEX_NAME, text + "\n")

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
            version = plain.get("version", VERSION)
            if version not in (1, VERSION):
                raise ValueError(f"version {version}; this release reads versions 1 and {VERSION}")
            splits = {
                split: tuple(ShardInfo(**{**shard, "records": _records(shard["records"])}) for shard in shards)
                for split, shards in plain["splits"].items()
            }
            for shard in (shard for shards in splits.values() for shard in shards):
                if Path(shard.name).name != shard.name or shard.name in ("", ".", ".."):
                    raise ValueError(f"shard name {shard.name!r} is not a plain file name")
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


def _records(plain: dict[str, list[list[Any]]]) -> dict[str, tuple[Member, ...]]:
    def member(suffix: str, offset: int, size: int, digest: str = "") -> Member:
        return str(suffix), int(offset), int(size), str(digest)

    records = {str(key): tuple(member(*one) for one in members) for key, members in plain.items()}
    if any(offset < 0 or size < 0 for members in records.values() for _, offset, size, _ in members):
        raise ValueError("negative offset or size")
    return records


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
        records: their members by key.
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
        records |= {one: tuple((own, *found[suffix], "") for own, suffix in members.items()) for one, members in split.items()}
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


class ShardWriter:
    """Writes the records of one split into `<prefix>-000000.tar`, ... of at most max_bytes each; see `shard_writer`."""

    def __init__(self, folder: Path, prefix: str, max_bytes: int) -> None:
        self.folder, self.prefix, self.max_bytes = folder, prefix, max_bytes
        self.shards: list[ShardInfo] = []
        self._keys: set[str] = set()
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
        self._count += 1

    def flush(self) -> None:
        """Ends the shard in hand."""
        self._tar.close()
        if self._count:
            path = self.folder / f"{self.prefix}-{len(self.shards):06d}.tar"
            content = self._buffer.getbuffer()
            write_file(path, bytes(content))
            records, fault, _ = scan_shard(path)
            assert fault is None and len(records) == self._count, (fault, len(records), self._count)
            summed = {
                key: tuple((suffix, start, size, checksum(content[start : start + size])) for suffix, start, size, _ in members)
                for key, members in records.items()
            }
            size = path.stat().st_size
            self.shards.append(ShardInfo(name=path.name, bytes=size, sha256=sha256_of(path), count=len(records), records=summed))
        self._tar = self._new()


@contextmanager
def shard_writer(folder: Path, prefix: str, max_bytes: int) -> Iterator[ShardWriter]:
    """A writer whose last shard is ended on leaving."""
    writer = ShardWriter(folder, prefix, max_bytes)
    yield writer
    writer.flush()


def write_shards(folder: Path, prefix: str, records: Iterable[Record], max_bytes: int = 15 * 2**20) -> tuple[ShardInfo, ...]:
    """All records into shards of a split."""
    with shard_writer(folder, prefix, max_bytes) as writer:
        for record in records:
            writer.add(record)
    return tuple(writer.shards)
