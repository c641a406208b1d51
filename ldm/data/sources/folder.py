"""Records from a folder of pictures: class folders, splits, captions in a table or beside each picture, masks and maps folders."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ldm.core.errors import UserError
from ldm.core.files import sha256_of
from ldm.core.reading import read_bytes
from ldm.data.findings import NO_CAPTION, Finding
from ldm.data.formats import FORMATS, HEAD, format_of
from ldm.data.images import open_map
from ldm.data.picture_file import MAX_FILE
from ldm.data.record import Box, Record, boxes_of
from ldm.data.shard_scan import plain_key
from ldm.data.sources.contents import checksums
from ldm.data.sources.layout import BOXES, CAPTION_SUFFIXES, MAPS, MASKS, SPLITS, Layout, layout_of
from ldm.data.sources.matching import Names
from ldm.data.sources.source import Source
from ldm.data.tables import TABLES, read_table
from ldm.data.text import decode_text, lines_of, one_form, shown

MAX_TEXT = 1 << 24  # bytes of the captions or boxes of one picture
Row = tuple[tuple[str, ...], dict[str, Any]]
"""A picture's captions and attributes."""


class FolderSource(Source):
    """All pictures of a split of a folder, in the order of their paths; docs/data.md says what is read of which file.

    Labels are the first folder's names where every picture lies in a folder. A caption comes from a table or from a text beside the
    picture. The table's other columns are attributes. `masks/PATH`, `maps/PATH` and `boxes/PATH.json` mirror the pictures' paths.
    """

    def __init__(self, folder: Path, split: str = "train", *, table: Path | None = None, encoding: str | None = None) -> None:
        """
        Args:
            folder: of the pictures.
            split: "train", or "val" of a folder that has such a folder.
            table: of captions, in place of those in the folder.
            encoding: of texts that are not UTF-8.

        Raises:
            UserError: no picture; a table that cannot be read, or names none of the pictures.
        """
        self.folder, self.name, self.unreadable, self.encoding = folder, shown(folder.name or str(folder)), {}, encoding
        layout = self.layout = layout_of(folder, () if table is None else (table,))
        if not layout.pictures.get(split):
            raise UserError(_nothing(layout, split))
        self.split = split if layout.splits else "all"
        self._pictures = layout.pictures[split]
        self._keys = unique_keys(self._pictures)
        trained = [path for part in ("train", "val") for path in layout.pictures.get(part, ())]
        at_top = [path for path in trained if len(path.relative_to(layout.base_of(path)).parts) == 1]
        if not at_top:
            self.label_names = tuple(sorted({self._label(path) for path in trained}))
        self.has_labels = bool(self.label_names)
        asides = layout.asides
        self.has_masks, self.has_maps, self.has_boxes = (any(p in asides[name] for p in self._pictures) for name in (MASKS, MAPS, BOXES))
        if self.has_maps:
            self.map_classes = _classes_in([folder / path for path in asides[MAPS].values()])
            self.map_names = tuple(f"class {number}" for number in range(max(self.map_classes, default=0) + 1))
        self.tables = tuple(self._own_tables() if table is None else [(PurePosixPath(), table)])
        self._rows, unmatched = self._matched()
        self._texts, unread = self._texts_beside()
        self.has_captions = bool(self._texts) or any(captions for captions, _ in self._rows.values())
        self.has_attributes = any(attributes for _, attributes in self._rows.values())
        self.held_out = len(layout.pictures.get("val", ())) if split == "train" else 0
        self.findings = (*layout.findings, *unmatched, *unread, *self._remarks(at_top, len(trained)))

    def __len__(self) -> int:
        return len(self._pictures)

    def key(self, index: int) -> str:
        return self._keys[index]

    def name_of(self, index: int) -> str:
        """See `Source.name_of`."""
        return shown(self.folder / self._pictures[index])

    @property
    def listing(self) -> str:
        """See `Source.listing`: names, sizes and times of all files, and the tables' contents."""
        files = sorted((str(path), *file.identity[2:]) for path, file in self.layout.files.items())
        tables = [(str(base), sha256_of(table)) for base, table in self.tables]
        return hashlib.sha256(repr((self.split, self.encoding, files, tables)).encode(errors="surrogateescape")).hexdigest()

    @cached_property
    def digest(self) -> str:  # type: ignore[override]
        """Of the contents and names of all that belongs to the split; see `checksums`."""
        return hashlib.sha256(repr(self._checksums).encode(errors="surrogateescape")).hexdigest()

    @property
    def image_checksums(self) -> list[str]:
        """See `Source.image_checksums`."""
        by_path = dict(self._checksums)
        return [by_path[str(path)] for path in self._pictures]

    @cached_property
    def _checksums(self) -> list[tuple[str, str]]:
        beside = [mirrored[path] for path in self._pictures for mirrored in self.layout.asides.values() if path in mirrored]
        paths = [*self._pictures, *beside, *self._texts.values()]
        found = checksums(self.folder, self.split, [self.layout.files[path] for path in paths])
        tables = [(str(base), sha256_of(table)) for base, table in self.tables]
        return [*zip(map(str, paths), found, strict=True), *tables]

    def record(self, index: int) -> Record:
        path = self._pictures[index]
        captions, attributes = self._rows.get(path, ((), {}))
        boxes = self.layout.asides[BOXES].get(path)
        try:
            image = read_bytes(self.folder / path, MAX_FILE)
            return Record(
                key=self._keys[index],
                place=shown(path),
                suffix=_suffix_of(image, path),
                image=image,
                captions=captions or self._text_beside(path),
                label=self._label(path) if self.label_names else None,
                mask=self._aside(MASKS, path),
                map=self._aside(MAPS, path),
                boxes=() if boxes is None else read_boxes(self.folder / boxes),
                attributes=attributes,
            )
        except OSError as error:
            raise UserError(f"{shown(self.folder / path)}: cannot be read ({error.strerror})") from None

    def captions(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """See `Source.captions`."""
        for path in self._pictures:
            try:
                yield shown(path), self._rows.get(path, ((), {}))[0] or self._text_beside(path)
            except (UserError, OSError):
                continue  # counted when it is used

    def attributes(self) -> Iterator[Mapping[str, Any]]:
        """See `Source.attributes`."""
        return (self._rows[path][1] for path in self._pictures if path in self._rows)

    def _label(self, path: PurePosixPath) -> str:
        return one_form(shown(path.relative_to(self.layout.base_of(path)).parts[0]))

    def _aside(self, name: str, path: PurePosixPath) -> bytes | None:
        found = self.layout.asides[name].get(path)
        return None if found is None else read_bytes(self.folder / found, MAX_FILE)

    def _text_beside(self, path: PurePosixPath) -> tuple[str, ...]:
        """Each line of the text beside a picture is a caption."""
        if path not in self._texts:
            return ()
        text = self.folder / self._texts[path]
        return lines_of(decode_text(read_bytes(text, MAX_TEXT), shown(text), self.encoding))

    def _own_tables(self) -> Iterator[tuple[PurePosixPath, Path]]:
        """At the top and in each split's folder the first that is there."""
        for base in self.layout.bases:
            found = next((name for name in TABLES if base / name in self.layout.files), None)
            if found is not None:
                yield base, self.folder / base / found

    def _matched(self) -> tuple[dict[PurePosixPath, Row], list[Finding]]:
        """What the tables say of each picture, and the rows that fit none or several.

        Raises:
            UserError: a table whose rows fit no picture at all: a wrong column or folder, most likely.
        """
        names = Names(self.folder, [path for paths in self.layout.pictures.values() for path in paths])
        rows: dict[PurePosixPath, tuple[list[str], dict[str, Any]]] = {}
        none: list[str] = []
        several: list[str] = []
        unread: list[str] = []
        contrary: list[str] = []
        for base, path in self.tables:
            table = read_table(path, self.encoding)
            unread += [f"{column} of {shown(path.name)}" for column in table.unread]
            exact = {picture for row in table.rows for picture in names.exact(row.file, base)}
            fitting = 0
            for row in table.rows:
                # A name that only resembles a picture's is not that of one whose own path stands in the table.
                found = names.exact(row.file, base) or [one for one in names.find(row.file, base) if one not in exact]
                fitting += len(found)
                if len(found) == 1:
                    captions, attributes = rows.setdefault(found[0], ([], {}))
                    captions.extend(row.captions)
                    if any(attributes.get(name, value) != value for name, value in row.attributes.items()):
                        contrary.append(f"{shown(found[0])} (line {row.line})")
                    attributes |= row.attributes
                else:
                    (several if found else none).append(f"{row.file!r} (line {row.line})")
            if not fitting:
                raise UserError(
                    f"{path} names no picture of {shown(self.folder)} (its last is {table.rows[-1].file!r}); "
                    "paths must be relative to that folder, or lie in it"
                )
        remarks = (
            ("rows of a table fit no picture, passed over", none),
            ("rows of a table fit several pictures, passed over", several),
            ("columns of a table that are not read", unread),
            ("rows of a table that give a picture another attribute than a row before, the last of which counts", contrary),
            ("tables that are not read, since another is", self._second_tables()),
        )
        findings = [Finding(what, tuple(which)) for what, which in remarks if which]
        return {path: (tuple(captions), attributes) for path, (captions, attributes) in rows.items()}, findings

    def _second_tables(self) -> list[str]:
        read = {path.resolve() for _, path in self.tables}
        there = [base / name for base in self.layout.bases for name in TABLES if base / name in self.layout.files]
        return [shown(path) for path in there if (self.folder / path).resolve() not in read]

    def _texts_beside(self) -> tuple[dict[PurePosixPath, PurePosixPath], list[Finding]]:
        """The text of each picture that a table has no caption of, and the texts that are not read."""
        texts: dict[PurePosixPath, PurePosixPath] = {}
        unread: list[str] = []
        named = {path.with_suffix(path.suffix.lower()): path for path in self.layout.files if path.suffix.lower() in CAPTION_SUFFIXES}
        for path in self._pictures:
            there = [named[text] for suffix in CAPTION_SUFFIXES if (text := path.with_suffix(suffix)) in named]
            has_row = bool(self._rows.get(path, ((), {}))[0])
            if there and not has_row:
                texts[path] = there[0]
            unread += map(shown, there if has_row else there[1:])
        what = "texts beside pictures that are not read, since a table or another text has their captions"
        return texts, [Finding(what, tuple(unread))] if unread else []

    def _remarks(self, at_top: Sequence[PurePosixPath], count: int) -> Iterator[Finding]:
        """What its owner may not expect of the pictures themselves."""
        if self.has_captions:
            texts = {picture for picture, text in self._texts.items() if self.layout.files[text].identity[2]}  # the others are empty
            silent = [p for p in self._pictures if p not in texts and not self._rows.get(p, ((), {}))[0]]
            if silent:
                yield Finding(NO_CAPTION, tuple(map(shown, silent)))
        for name, without in ((MASKS, "a mask, which get an empty one"), (MAPS, "a map, unknown all over"), (BOXES, "boxes")):
            bare = [path for path in self._pictures if path not in self.layout.asides[name]]
            if 0 < len(bare) < len(self._pictures):
                yield Finding(f"pictures without {without}", tuple(map(shown, bare)))
        if 0 < len(at_top) < count:
            yield Finding("pictures beside the folders, so that no folder is a label", tuple(map(shown, at_top)))
        test = self.layout.pictures.get("test")
        if test:
            yield Finding("pictures of the test split, kept apart", tuple(map(shown, test)))


def _nothing(layout: Layout, split: str) -> str:
    """Why a folder has no picture of a split."""
    if split == "train":
        passed = "; ".join(finding.line() for finding in layout.findings)
        return f"{shown(layout.folder)}: no pictures below it" + (f" ({passed})" if passed else "")
    names = ", ".join(SPLITS["val"])
    return (
        f"{shown(layout.folder)} has no held-out split (a folder {names} beside train); set data.val=null, name another folder, or run "
        "scripts/prepare_data.py --val-every 20"
    )


def unique_keys(paths: Sequence[PurePosixPath]) -> list[str]:
    """A plain key for each path: the path's own, with a checksum of the path where another would have the same."""
    plain = [plain_key(str(path.with_suffix(""))) for path in paths]
    count = Counter(plain)
    keys: list[str] = []
    taken = {key for key in plain if count[key] == 1}
    for path, key in zip(paths, plain, strict=True):
        if count[key] > 1:
            raw = str(path).encode(errors="surrogateescape")
            sums = (hashlib.sha256(raw + bytes(salt)).hexdigest() for salt in itertools.count())
            key = next(new for digest in sums if (new := f"{key[-71:]}-{digest[:8]}") not in taken)
            taken.add(key)
        keys.append(key)
    return keys


def read_boxes(path: Path) -> tuple[Box, ...]:
    """The boxes in a JSON file.

    Raises:
        UserError: no such file, or not boxes.
    """
    if str(path).lstrip().startswith("[") and not path.exists():
        raise UserError(f"{shown(path):.60}: boxes are read from a file: write this list into one, boxes.json say, and name that")
    content = read_bytes(path, MAX_TEXT)
    try:
        return boxes_of(json.loads(decode_text(content, shown(path))))
    except (ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{shown(path)}: not boxes as JSON ({error})") from None


def _suffix_of(image: bytes, path: PurePosixPath) -> str:
    """The suffix of the format that a picture has, whatever its name says; its own if it has none."""
    own, found = path.suffix.lower()[1:], format_of(image[:HEAD], path.suffix)
    return own if found is None or own in FORMATS[found] else FORMATS[found][0]


def _classes_in(maps: list[Path]) -> tuple[int, ...]:
    """The classes that occur in any map; those that cannot be read are counted when they are used."""
    found: set[int] = set()
    for path in maps:
        try:
            found.update(open_map(path).unique().tolist())
        except UserError:
            continue
    return tuple(sorted(found))
