"""Records from a folder of pictures: class folders, captions in a table or beside each picture, masks and maps folders."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ldm.core.errors import UserError
from ldm.data.formats import IMAGE_SUFFIXES
from ldm.data.images import open_map
from ldm.data.record import Box, Record, attributes_of, boxes_of
from ldm.data.shards import plain_key
from ldm.data.sources.source import Source

TABLES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
MASKS, MAPS, BOXES = "masks", "maps", "boxes"
FILE_COLUMNS, CAPTION_COLUMNS = ("file", "file_name"), ("caption", "text")


class FolderSource(Source):
    """All pictures below a folder, in the order of their paths.

    Labels are the first folder's names where every picture lies in a folder. A caption comes from the table (`captions` or
    `metadata`, CSV or JSONL, columns file|file_name and caption|text; several rows of one file are several captions) or from a
    `.txt` beside it. The table's other columns are attributes.
    `masks/PATH.png`, `maps/PATH.png` and `boxes/PATH.json`, a list of [class, left, top, right, bottom], mirror the pictures' paths.
    """

    def __init__(self, folder: Path, table: Path | None = None) -> None:
        self.folder, self.name, self.unreadable = folder, folder.name or str(folder), {}
        self._files = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower()[1:] in IMAGE_SUFFIXES
            and path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            and path.relative_to(folder).parts[0] not in (MASKS, MAPS, BOXES)
        )
        if not self._files:
            raise UserError(f"{folder}: no pictures below it (looked for {', '.join(IMAGE_SUFFIXES)})")
        self.table = table or next((folder / name for name in TABLES if (folder / name).is_file()), None)
        self._rows = read_table(self.table) if self.table else {}
        self._check_table()
        relative = [path.relative_to(folder) for path in self._files]
        if all(len(path.parts) > 1 for path in relative):
            self.label_names = tuple(sorted({path.parts[0] for path in relative}))
            self.has_labels = True
        self.has_masks, self.has_maps = (folder / MASKS).is_dir(), (folder / MAPS).is_dir()
        if self.has_maps:
            self.map_classes = _classes_in(sorted((folder / MAPS).rglob("*.png")))
            self.map_names = tuple(f"class {number}" for number in range(max(self.map_classes, default=0) + 1))
        self.has_captions = any(row.captions for row in self._rows.values()) or any(
            path.with_suffix(".txt").is_file() for path in self._files
        )
        self.has_boxes = (folder / BOXES).is_dir()
        self.has_attributes = any(row.attributes for row in self._rows.values())
        beside = [path for place in (f"{MASKS}/**/*.png", f"{MAPS}/**/*.png", f"{BOXES}/**/*.json") for path in folder.glob(place)]
        facts = [self.table, *self._files, *beside]
        stats = [(os.path.relpath(path, folder), path.stat().st_size, path.stat().st_mtime_ns) for path in facts if path is not None]
        self.digest = hashlib.sha256(repr(stats).encode()).hexdigest()
        self._keys = _unique([plain_key(str(path.with_suffix(""))) for path in relative])

    def _check_table(self) -> None:
        """Refuses a table that names none of the pictures: a wrong column or folder, most likely."""
        if self._rows and not any(self._row_of(path) for path in self._files):
            first = next(iter(self._rows))
            raise UserError(
                f"{self.table} names no picture of {self.folder} (its first is {first!r}); paths must be relative to that folder"
            )

    def __len__(self) -> int:
        return len(self._files)

    def key(self, index: int) -> str:
        return self._keys[index]

    def record(self, index: int) -> Record:
        path = self._files[index]
        relative = path.relative_to(self.folder)
        try:
            text, boxes = path.with_suffix(".txt"), self.folder / BOXES / relative.with_suffix(".json")
            row = self._row_of(path) or TableRow((), {})
            captions = row.captions or (_lines(text.read_text(encoding="utf-8")) if text.is_file() else ())
            return Record(
                key=self._keys[index],
                suffix=path.suffix.lower()[1:],
                image=path.read_bytes(),
                captions=captions,
                label=relative.parts[0] if self.label_names else None,
                mask=_beside(self.folder / MASKS / relative),
                map=_beside(self.folder / MAPS / relative),
                boxes=read_boxes(boxes) if boxes.is_file() else (),
                attributes=row.attributes,
            )
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None

    def attributes(self) -> Iterator[Mapping[str, Any]]:
        """See `Source.attributes`."""
        return (row.attributes for row in map(self._row_of, self._files) if row is not None)

    def _row_of(self, path: Path) -> TableRow | None:
        return self._rows.get(path.relative_to(self.folder).as_posix()) or self._rows.get(path.name)


def read_boxes(path: Path) -> tuple[Box, ...]:
    """The boxes in a JSON file.

    Raises:
        UserError: no such file, or not boxes.
    """
    try:
        return boxes_of(json.loads(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not boxes as JSON ({error})") from None


class TableRow(NamedTuple):
    """A table's row of one picture; several rows of one file are several captions, whose last attributes count."""

    captions: tuple[str, ...]
    attributes: dict[str, Any]


def read_table(table: Path) -> dict[str, TableRow]:
    """By file name. All columns but those of file and caption are attributes.

    Raises:
        UserError: the columns are not there, or a line cannot be read.
    """
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{table}: cannot be read as UTF-8 text ({error})") from None
    if table.suffix.lower() == ".csv":
        rows = _csv_rows(table, text)
    elif table.suffix.lower() == ".jsonl":
        rows = [_json_row(table, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    else:
        raise UserError(f"{table}: captions must be a .csv or .jsonl file")
    columns = set().union(*(row.keys() for row in rows)) if rows else set()
    file_column = next((c for c in FILE_COLUMNS if c in columns), None)
    caption_column = next((c for c in CAPTION_COLUMNS if c in columns), None)
    if file_column is None or caption_column is None:
        found = ", ".join(sorted(map(str, columns))) or "none"
        raise UserError(f"{table}: needs a column file or file_name, and a column caption or text; its columns are {found}")
    table_rows: dict[str, TableRow] = {}
    for row in rows:
        name, caption = str(row.get(file_column) or "").strip(), str(row.get(caption_column) or "").strip()
        attributes = {key: value for key, value in attributes_of(row).items() if value != ""}
        if name and (caption or attributes):
            name = Path(name).as_posix()
            earlier = table_rows.get(name, TableRow((), {}))
            table_rows[name] = TableRow((*earlier.captions, caption) if caption else earlier.captions, earlier.attributes | attributes)
    return table_rows


def _csv_rows(table: Path, text: str) -> list[dict[str, Any]]:
    try:
        return list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UserError(f"{table}: not a CSV table that can be read ({error})") from None


def _json_row(table: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{table}, line {number}: not JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise UserError(f"{table}, line {number}: must be an object with file and caption")
    return row


def _classes_in(maps: list[Path]) -> tuple[int, ...]:
    """The classes that occur in any map; those that cannot be read are counted when they are used."""
    found: set[int] = set()
    for path in maps:
        try:
            found.update(open_map(path).unique().tolist())
        except UserError:
            continue
    return tuple(sorted(found))


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _beside(path: Path) -> bytes | None:
    """The .png that mirrors a picture's path, or the file of the very same name."""
    for candidate in (path.with_suffix(".png"), path):
        if candidate.is_file():
            return candidate.read_bytes()
    return None


def _unique(keys: list[str]) -> list[str]:
    """Keys made unique by a number, in order."""
    seen: dict[str, int] = {}
    unique = []
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
        unique.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return unique
