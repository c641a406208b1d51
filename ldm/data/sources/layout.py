"""What lies in a folder of pictures: its files, links followed, by split and by role."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ldm.core.errors import UserError
from ldm.data.findings import Finding, by_kind
from ldm.data.formats import HEAD, IMAGE_SUFFIXES, format_of
from ldm.data.tables import TABLES
from ldm.data.text import shown

MASKS, MAPS, BOXES = "masks", "maps", "boxes"
CAPTION_SUFFIXES = (".txt", ".caption")
MOST_ENTERED = 16  # times that one folder is entered through links; folders that link to each other have more ways than anybody can walk
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
NEARLY = re.compile(rf"({'|'.join(SPLIT_OF)}|masks?|maps?|box|boxes)[-_ .]?(\d+|set|data|images?|imgs?)?", re.IGNORECASE)
"""Names that say a split or a role, though not as one here must be called."""


@dataclass(frozen=True)
class File:
    """A regular file below the folder.

    Attributes:
        path: from the folder, with `/`; absolute, of a file by itself.
        identity: device and inode, size, time of the last change in ns: by these a file is known without being read.
        is_linked: a symbolic link, or below one.
    """

    path: PurePosixPath
    identity: tuple[int, int, int, int]
    is_linked: bool

    @staticmethod
    def at(path: Path) -> File:
        """A file by itself, by its absolute path."""
        found = path.stat()
        return File(PurePosixPath(path.absolute()), (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns), path.is_symlink())


def walk(folder: Path) -> tuple[list[File], list[Finding]]:
    """All regular files whose path has no part that begins with a dot, in the order of their paths, and what was passed over.

    Links are followed. One that leads back to a folder it lies in is not, nor is a folder entered through links again and again.

    Raises:
        UserError: a folder that cannot be read.
    """
    files: list[File] = []
    passed_over: list[tuple[str, str]] = []
    entered = Counter[tuple[int, int]]()
    top = folder.stat()
    waiting = [(folder, PurePosixPath(), frozenset({(top.st_dev, top.st_ino)}), False)]
    while waiting:
        place, path, within, is_linked = waiting.pop()
        try:
            entries = list(os.scandir(place))
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
            inode = (found.st_dev, found.st_ino)
            if stat.S_ISREG(found.st_mode):
                files.append(File(below, (*inode, found.st_size, found.st_mtime_ns), through))
            elif not stat.S_ISDIR(found.st_mode):
                passed_over.append(("pipes, sockets and devices, passed over", shown(below)))
            elif inode in within:
                passed_over.append(("links back to a folder they lie in, not followed", shown(below)))
            elif through and entered[inode] >= MOST_ENTERED:
                passed_over.append((f"links to a folder that {MOST_ENTERED} others lead to, not followed", shown(below)))
            else:
                entered[inode] += 1
                waiting.append((place / entry.name, below, within | {inode}, through))
    return sorted(files, key=lambda file: file.path), by_kind("{}", sorted(passed_over))


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


def layout_of(folder: Path, own: Collection[Path] = ()) -> Layout:
    """Which file is what.

    Args:
        folder: to be walked.
        own: files in it that the caller reads itself, such as a table of another name.

    Raises:
        UserError: a folder that cannot be read.
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
    candidates = [path for path in images if path not in inside]
    outside = [shown(path) for path in candidates if splits and path.parts[0] not in splits]
    shown_once, again = _once([files[path] for path in candidates if not splits or path.parts[0] in splits])
    asides = {name: {path: aside for path, aside in mirrored.items() if path not in again} for name, mirrored in asides.items()}
    pictures: dict[str, list[PurePosixPath]] = {}
    for path in shown_once:
        pictures.setdefault(SPLIT_OF[path.parts[0].lower()] if splits else "train", []).append(path)
    findings = list(passed_over)
    if again:
        findings.append(Finding("links to a picture that is there already, taken once", tuple(map(shown, again))))
    if outside:
        findings.append(Finding(f"pictures outside of {', '.join(splits)}, passed over", tuple(outside)))
    findings += _nearly_named(shown_once, splits)
    findings += _misplaced({path: base for path in shown_once for base in [PurePosixPath(*path.parts[: bool(splits)])]})
    mine = {path.resolve() for path in own}
    known = [path for path in files if mine and (folder / path).resolve() in mine]
    findings += _others(files.keys() - set(known) - set(again), set(candidates) - set(again), inside, asides, splits)
    return Layout(
        folder=folder,
        files=files,
        splits=splits,
        pictures={split: tuple(paths) for split, paths in pictures.items()},
        asides=asides,
        findings=tuple(findings),
    )


def _once(found: Sequence[File]) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """Pictures without the links to one that is there too, and these links; of a picture that is only linked, the first link counts.

    Only pictures: two of them may well share a text, a mask or a table.
    """
    direct = {file.identity[:2] for file in found if not file.is_linked}
    once: list[PurePosixPath] = []
    again: list[PurePosixPath] = []
    linked = set[tuple[int, ...]]()
    for file in found:
        inode = file.identity[:2]
        is_known = file.is_linked and (inode in direct or inode in linked)
        (again if is_known else once).append(file.path)
        if file.is_linked:
            linked.add(inode)
    return once, again


def _is_image(path: Path) -> bool:
    """By its first bytes; a suffix that images have is taken at its word, so that a damaged one is counted where it is read."""
    if path.suffix.lower()[1:] in IMAGE_SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            return format_of(file.read(HEAD), path.suffix) is not None
    except OSError:  # nor can it be read as a picture: it is counted among the others
        return False


def _split_folders(images: Collection[PurePosixPath]) -> tuple[str, ...]:
    """The folders at the top that are splits: a training folder must be among them, and another split or nothing else beside it.

    Trains, cars and planes are three classes.
    """
    tops = sorted({path.parts[0] for path in images if len(path.parts) > 1})
    named = [name for name in tops if name.lower() in SPLIT_OF]
    kinds = {SPLIT_OF[name.lower()] for name in named}
    others = [name for name in tops if name not in named and name.lower() not in (MASKS, MAPS, BOXES)]
    return tuple(named) if "train" in kinds and (len(kinds) > 1 or not others) else ()


def _mirrored(
    base: PurePosixPath, name: str, files: Collection[PurePosixPath], images: Collection[PurePosixPath]
) -> tuple[dict[PurePosixPath, PurePosixPath], set[PurePosixPath]]:
    """The pictures below `base` that have a file in its folder `name`, each with that file, and all files in that folder.

    A file of the picture's own suffix comes first, then a `.png`. Where none mirrors a picture, a class is called so.
    """
    place = next((base / path.parts[len(base.parts)] for path in files if _is_called(path, base, name)), base / name)
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
                mirrored[picture] = next((path for path in found if path.suffix.lower() == picture.suffix.lower()), found[0])
    return mirrored, within


def _is_called(path: PurePosixPath, base: PurePosixPath, name: str) -> bool:
    """Whether a path leads through the folder `name` of `base`, in any capitals."""
    depth = len(base.parts)
    return path.parts[:depth] == base.parts and len(path.parts) > depth + 1 and path.parts[depth].lower() == name


def _nearly_named(pictures: Sequence[PurePosixPath], splits: Sequence[str]) -> Iterator[Finding]:
    """Pictures in folders that are taken as classes, though their names nearly say a split or a role: train2017, val_images, mask."""
    depth = bool(splits)
    found: dict[str, None] = {}
    for path in pictures:
        if len(path.parts) > depth + 1 and NEARLY.fullmatch(path.parts[depth]):
            found |= {shown(PurePosixPath(*path.parts[: depth + 1])): None}
    if found:
        yield Finding("folders taken as classes, whose names look like a split's or a role's (train, val, test, masks, maps)", tuple(found))


def _misplaced(base_of: Mapping[PurePosixPath, PurePosixPath]) -> Iterator[Finding]:
    """Pictures in folders whose names would say something further up: masks and maps beside the pictures they are of, and splits.

    Args:
        base_of: for each picture, the folder that names count from.
    """
    stems = {path.with_suffix("") for path in base_of}
    beside: list[str] = []
    splits: dict[PurePosixPath, dict[str, list[str]]] = {}
    for path, base in base_of.items():
        for depth in range(len(base.parts), len(path.parts) - 1):
            above, name, below = PurePosixPath(*path.parts[:depth]), path.parts[depth].lower(), PurePosixPath(*path.parts[depth + 1 :])
            if name in (MASKS, MAPS) and above / below.with_suffix("") in stems:
                beside.append(shown(path))
            elif name in SPLIT_OF:
                splits.setdefault(above, {}).setdefault(SPLIT_OF[name], []).append(shown(path))
    if beside:
        yield Finding("pictures in a folder masks or maps that is not at the top, taken as pictures", tuple(beside))
    for above, kinds in splits.items():
        if len(kinds) > 1:
            names = tuple(name for found in kinds.values() for name in found)
            yield Finding(f"pictures in splits that are not at the top, no split here; name the folder {shown(above)}", names)


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
    for path in sorted(files):
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
