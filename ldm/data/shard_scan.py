"""Which records a tar in the webdataset form holds, and where: by its members' names."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ldm.data.formats import IMAGE_SUFFIXES
from ldm.data.shard_index import Member

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # how gzip, bzip2, xz and zstandard begin
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
