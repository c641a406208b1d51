"""What lies in a folder of pictures: its files, links followed, by split and by role."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ldm.core.errors import UserError
from ldm.data.findings import Finding, by_kind
from ldm.data.formats import HEAD, IMAGE_SUFFIXES, format_of
from ldm.data.tables import TABLES
from ldm.data.text import shown

MASKS, MAPS, BOXES = "masks", "maps", "boxes"
CAPTION_SUFFIXES = (".txt", ".caption")
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}


@dataclass(frozen=True)
class File:
    """A regular file below the folder.

    Attributes:
        path: from the folder, with `/`.
        identity: device and inode, size, time of the last change in ns: by these a file is known without being read.
        is_linked: a symbolic link, or below one.
    """

    path: PurePosixPath
    identity: tuple[int, int, int, int]
    is_linked: bool


def walk(folder: Path) -> tuple[list[File], list[Finding]]:
    """All regular files whose path has no part that begins with a dot, in the order of their paths, and what was passed over.

    Links are followed; one that leads back to a folder it lies in is not. Of a file that is there and linked too, only the file counts, of
    one that is linked several times the first link.

    Raises:
        UserError: a folder that cannot be read.
    """
    passed_over: list[tuple[str, str]] = []

    def files(place: Path, path: PurePosixPath, within: frozenset[tuple[int, int]], is_linked: bool) -> Iterator[File]:
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{shown(place)}: cannot be read ({error.strerror})") from None
        for entry in entries:
            if entry.name.startswith("."):
                continue
            below, through = path / entry.name, is_linked or entry.is_symlink()
            try:
                found = entry.stat()
            except OSError:
                passed_over.append(("links that lead nowhere", shown(below)))
                continue
            if stat.S_ISDIR(found.st_mode):
                if (found.st_dev, found.st_ino) in within:
                    passed_over.append(("links back to a folder they lie in", shown(below)))
                else:
                    yield from files(place / entry.name, below, within | {(found.st_dev, found.st_ino)}, through)
            elif stat.S_ISREG(found.st_mode):
                yield File(below, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns), through)
            else:
                passed_over.append(("that are no regular files (pipes, sockets, devices)", shown(below)))

    top = folder.stat()
    found = list(files(folder, PurePosixPath(), frozenset({(top.st_dev, top.st_ino)}), False))
    direct = {file.identity[:2] for file in found if not file.is_linked}
    kept, linked = [], set[tuple[int, int]]()
    for file in found:
        inode = file.identity[:2]
        if file.is_linked and (inode in direct or inode in linked):
            passed_over.append(("links to a file that is there already, taken once", shown(file.path)))
            continue
        if file.is_linked:
            linked.add(inode)
        kept.append(file)
    return kept, by_kind("{}", passed_over)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A folder's files by role.

    Attributes:
        folder: that was walked.
        files: all, by path.
        splits: names of the folders at the top that are splits ("train", "validation", ...); empty = the whole folder is one.
        pictures: by split: "train", and "val" and "test" where there are such folders; paths in order.
        asides: for each of MASKS, MAPS and BOXES, the pictures that have such a file, and that file.
        findings: what was passed over, and why.
    """

    folder: Path
    files: Mapping[PurePosixPath, File]
    splits: tuple[str, ...]
    pictures: Mapping[str, tuple[PurePosixPath, ...]]
    asides: Mapping[str, Mapping[PurePosixPath, PurePosixPath]]
    findings: tuple[Finding, ...]

    @property
    def bases(self) -> tuple[PurePosixPath, ...]:
        """The folders that a table, masks, maps and boxes may lie in."""
        return (PurePosixPath(), *map(PurePosixPath, self.splits))

    def base_of(self, picture: PurePosixPath) -> PurePosixPath:
        """The folder that a picture's label starts from: its split's, or the whole."""
        return PurePosixPath(picture.parts[0]) if self.splits else PurePosixPath()


def layout_of(folder: Path) -> Layout:
    """Which file is what.

    Raises:
        UserError: a folder or file that cannot be read.
    """
    walked, passed_over = walk(folder)
    files = {file.path: file for file in walked}
    images = [path for path in files if _is_image(folder / path)]
    splits = _split_folders(images)
    asides: dict[str, dict[PurePosixPath, PurePosixPath]] = {}
    inside: set[PurePosixPath] = set()
    for name in (MASKS, MAPS, BOXES):
        asides[name] = {}
        for base in (PurePosixPath(), *map(PurePosixPath, splits)):
            mirrored, within = _mirrored(base, name, files, images)
            if mirrored:
                asides[name] |= mirrored
                inside |= within
    pictures: dict[str, list[PurePosixPath]] = {}
    outside = []
    for path in images:
        if path in inside:
            continue
        if splits and path.parts[0] not in splits:
            outside.append(shown(path))
        else:
            pictures.setdefault(SPLIT_OF[path.parts[0].lower()] if splits else "train", []).append(path)
    findings = [*passed_over, *_others(files, {path for paths in pictures.values() for path in paths}, inside, asides, splits)]
    if outside:
        findings.append(Finding(f"pictures outside of {', '.join(splits)}, passed over", tuple(outside)))
    return Layout(
        folder=folder,
        files=files,
        splits=splits,
        pictures={split: tuple(paths) for split, paths in pictures.items()},
        asides=asides,
        findings=tuple(findings),
    )


def _is_image(path: Path) -> bool:
    """By its first bytes; a suffix that images have is taken at its word, so that a damaged one is counted where it is read."""
    if path.suffix.lower()[1:] in IMAGE_SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            return format_of(file.read(HEAD), path.suffix) is not None
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror})") from None


def _split_folders(images: Collection[PurePosixPath]) -> tuple[str, ...]:
    """The folders at the top that are splits: a training folder must be among them, and another split or nothing else beside it.

    Trains, cars and planes are three classes.
    """
    tops = sorted({path.parts[0] for path in images if len(path.parts) > 1})
    named = [name for name in tops if name.lower() in SPLIT_OF]
    kinds = {SPLIT_OF[name.lower()] for name in named}
    others = [name for name in tops if name not in named and name not in (MASKS, MAPS, BOXES)]
    return tuple(named) if "train" in kinds and (len(kinds) > 1 or not others) else ()


def _mirrored(
    base: PurePosixPath, name: str, files: Collection[PurePosixPath], images: Collection[PurePosixPath]
) -> tuple[dict[PurePosixPath, PurePosixPath], set[PurePosixPath]]:
    """The pictures below `base` that have a file in its folder `name`, each with that file, and all files in that folder.

    A `.png` mirrors a picture of any suffix. Where none does, a class is called so.
    """
    place = base / name
    within = {path for path in files if path.parts[: len(place.parts)] == place.parts}
    if not within:
        return {}, within
    offered: dict[PurePosixPath, list[PurePosixPath]] = {}
    for path in sorted(within if name == BOXES else within.intersection(images), key=lambda path: (path.suffix.lower() != ".png", path)):
        if name != BOXES or path.suffix.lower() == ".json":
            offered.setdefault(path.relative_to(place).with_suffix(""), []).append(path)
    mirrored = {}
    for picture in images:
        if picture not in within and picture.parts[: len(base.parts)] == base.parts:
            relative = picture.relative_to(base)
            found = offered.get(relative.with_suffix(""))
            if found:
                mirrored[picture] = found[0]
    return mirrored, within


def _others(
    files: Collection[PurePosixPath],
    pictures: Collection[PurePosixPath],
    inside: Collection[PurePosixPath],
    asides: Mapping[str, Mapping[PurePosixPath, PurePosixPath]],
    splits: tuple[str, ...],
) -> Iterator[Finding]:
    """What is neither a picture nor belongs to one."""
    used = {path for mirrored in asides.values() for path in mirrored.values()}
    stems = {picture.with_suffix("") for picture in pictures}
    stray, unknown = [], []
    tables = {base / name for base in (PurePosixPath(), *map(PurePosixPath, splits)) for name in TABLES}
    for path in files:
        if path in inside:
            if path not in used:
                stray.append(shown(path))
        elif path not in pictures and path not in tables:
            kind = path.suffix.lower()
            if kind not in CAPTION_SUFFIXES or path.with_suffix("") not in stems:
                unknown.append((f"{shown(kind)} files" if kind else "files without a suffix", shown(path)))
    if stray:
        yield Finding(f"files in {', '.join(name for name in asides if asides[name])} that mirror no picture's path", tuple(stray))
    yield from by_kind("{}, which are no pictures and belong to none", unknown)
