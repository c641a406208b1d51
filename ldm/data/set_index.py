"""What a prepared set says of itself: `index.json`.

It is small: for every split its shards with their bytes and sha256, and what is known of all its records, so that opening a set reads no
record; the names of labels and map classes; where the set comes from. A shard's own index (`ldm.data.shard_index`) lies beside it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ldm.core.errors import UserError
from ldm.core.files import write_file
from ldm.data.facts import AttributeFacts
from ldm.data.shard_index import Member, ShardIndex

INDEX_NAME = "index.json"
VERSION = 3  # of index.json; 2 had the records in it, 1 no checksums
MOST_NAMES = 10_000  # labels that are numbers, or names of attributes, that index.json lists; more are looked for when they are needed


class IndexFile(NamedTuple):
    """A file beside the shards that `index.json` names."""

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
    """The shards of a split.

    Attributes:
        shards: in order.
        facts: None in sets of earlier releases.
        sizes: a file beside the shards of (count, 2) uint32, little-endian: height and width of every picture, upright; None in sets of
            earlier releases.
    """

    shards: tuple[ShardInfo, ...]
    facts: SplitFacts | None = None
    sizes: IndexFile | None = None

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
            "sizes": {split: _plain_file(info.sizes) for split, info in self.splits.items() if info.sizes is not None},
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
            sizes = {split: _index_file(one) for split, one in plain.get("sizes", {}).items()}
            splits = {
                split: SplitInfo(
                    shards=tuple(_shard_of(shard, version) for shard in shards), facts=facts.get(split), sizes=sizes.get(split)
                )
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
    return {"name": shard.name, "bytes": shard.bytes, "sha256": shard.sha256, "count": shard.count, "index": _plain_file(shard.index)}


def _shard_of(plain: Mapping[str, Any], version: int) -> ShardInfo:
    count = int(plain["count"])
    index: IndexFile | ShardIndex
    if version == VERSION:
        index = _index_file(plain["index"])
    else:
        index = ShardIndex(ShardIndex.encode((str(key), map(_member, members)) for key, members in plain["records"].items()))
        count = len(index)
    if count < 0:
        raise ValueError(f"{count} records")
    return ShardInfo(name=_file_name(plain["name"]), bytes=int(plain["bytes"]), sha256=str(plain["sha256"]), count=count, index=index)


def _plain_file(file: IndexFile) -> dict[str, object]:
    return {"name": file.name, "bytes": file.bytes, "sha256": file.sha256}


def _index_file(plain: Mapping[str, Any]) -> IndexFile:
    return IndexFile(name=_file_name(plain["name"]), bytes=int(plain["bytes"]), sha256=str(plain["sha256"]))


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
