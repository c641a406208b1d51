"""Tables of captions and attributes: CSV as any program writes it, JSON lines, a JSON array, a JSON object of captions by file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ldm.core.errors import UserError
from ldm.core.reading import read_bytes
from ldm.data.formats import IMAGE_SUFFIXES
from ldm.data.record import attributes_of
from ldm.data.text import decode_text, is_text

TABLES = tuple(f"{name}.{suffix}" for name in ("captions", "metadata") for suffix in ("csv", "jsonl", "tsv", "json"))
FILE_COLUMNS, CAPTION_COLUMNS = ("file", "file_name"), ("caption", "text", "captions")
DELIMITERS = ",;\t|"
MOST_BYTES = 1 << 29  # of a table; in memory it takes several times as much
NAMELESS = "one without a name"
Row = dict[str, Any]


class TableRow(NamedTuple):
    """What a table says of one file.

    Attributes:
        file: its name, as the table has it.
        line: where it stands.
        captions: of its row; empty = none.
        attributes: the other columns that are not empty.
    """

    file: str
    line: int
    captions: tuple[str, ...]
    attributes: dict[str, Any]


class Table(NamedTuple):
    """
    Attributes:
        rows: in order; at least one.
        unread: columns that mean nothing here: beside the captions another column of a caption's name, or values that are no texts, numbers
            or lists of these.
    """

    rows: list[TableRow]
    unread: tuple[str, ...]


def read_table(table: Path, encoding: str | None = None) -> Table:
    """A table of captions.

    Args:
        table: .csv or .tsv (delimited by comma, semicolon, tab or bar, whichever the header has), .jsonl or .json: objects a line, an array
            of them, or one object of captions by file.
        encoding: of a table that is not UTF-8.

    Raises:
        UserError: the columns are not there, there is no row, or a line cannot be read.
    """
    text = decode_text(read_bytes(table, MOST_BYTES), str(table), encoding)
    suffix = table.suffix.lower()
    if suffix in (".csv", ".tsv"):
        rows = _csv_rows(table, text)
    elif suffix in (".jsonl", ".json"):
        rows = _json_rows(table, text)
    else:
        raise UserError(f"{table}: captions must be a .csv, .tsv, .jsonl or .json file")
    columns: dict[str, None] = {}
    unread: dict[str, None] = {}
    found = [_row(table, number, row, columns, unread) for number, row in rows]
    if not found:
        raise UserError(f"{table}: has no row of a picture")
    if not any(c in columns for c in FILE_COLUMNS) or not any(c in columns for c in CAPTION_COLUMNS):
        listed = ", ".join(columns) or "none"
        raise UserError(f"{table}: needs a column file or file_name, and a column caption or text; its columns are {listed}")
    return Table(found, tuple(unread))


def _row(table: Path, number: int, row: Row, columns: dict[str, None], unread: dict[str, None]) -> TableRow:
    """One row, whose columns are added to those met so far."""
    by_name: Row = {}
    for column, value in row.items():
        plain = column.strip().lower()
        name = plain if plain in FILE_COLUMNS + CAPTION_COLUMNS else column.strip()
        if name in by_name:
            raise UserError(f"{table}, line {number}: column {name!r} is there twice")
        by_name[name] = value
    columns |= dict.fromkeys(filter(None, by_name))
    file_column = next((column for column in FILE_COLUMNS if column in by_name), None)
    caption_column = next((column for column in CAPTION_COLUMNS if by_name.get(column) not in (None, "", [])), None)
    file = None if file_column is None else by_name[file_column]
    captions = () if caption_column is None else by_name[caption_column]
    listed = [one for one in (captions if isinstance(captions, list | tuple) else [captions]) if one == one]  # NaN is an empty cell
    if not all(isinstance(one, str | int | float) for one in listed) or not isinstance(file, str | int | None):
        raise UserError(f"{table}, line {number}: the file must be a text, and the caption a text or a list of texts")
    attributes = {key: value for key, value in attributes_of(by_name).items() if key and not _is_empty(value)}
    used = {file_column, caption_column, *attributes}
    unread |= {key or NAMELESS: None for key, value in by_name.items() if key not in used and value is not None and not _is_empty(value)}
    texts = [text for text in (str(one).strip() for one in listed) if text]
    if not all(map(is_text, (str(file), *texts, json.dumps(attributes, ensure_ascii=False)))):
        raise UserError(f"{table}, line {number}: has half of a character (a lone surrogate); mend its escapes")
    return TableRow("" if file is None else str(file).strip(), number, tuple(texts), attributes)


def _is_empty(value: Any) -> bool:
    """Whether a cell says nothing: pandas writes NaN where there is no value."""
    return value in ("", []) or value != value or (isinstance(value, str) and value.lower() == "nan")


def _csv_rows(table: Path, text: str) -> Iterator[tuple[int, Row]]:
    """(line, row) of each row that is not blank.

    With two columns, a caption may have delimiters without being quoted: the rest of its line is the caption.
    """
    lines = list(io.StringIO(text, newline=""))
    first = next((number for number, line in enumerate(lines) if line.strip()), 0)
    if lines and lines[first].strip().lower() in {f"sep={delimiter}" for delimiter in DELIMITERS}:  # Excel's own first line
        first += 1
    delimiter = max(DELIMITERS, key=lambda d: _header_score(next(csv.reader(lines[first : first + 1], delimiter=d), [])))
    reader = csv.reader(lines[first:], delimiter=delimiter, strict=True, skipinitialspace=True)
    header: list[str] = []
    while True:
        start = first + reader.line_num
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{table}, line {start + 1}: cannot be read as CSV ({error}); a quote within a quoted text is doubled"
            ) from None
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            continue
        span = lines[start : first + reader.line_num]
        _refuse_swallowed(table, start + 1, header, span, delimiter)
        raw = "".join(span).strip("\r\n")
        yield start + 1, _cells(table, start + 1, header, cells, raw, delimiter)


def _refuse_swallowed(table: Path, number: int, header: list[str], span: list[str], delimiter: str) -> None:
    """Refuses a quoted text that goes on over what looks like another row: most likely its quote was never closed."""
    place = next((i for i, name in enumerate(header) if name.lower() in FILE_COLUMNS), 0)
    for offset, line in enumerate(span[1:], 1):
        cells = line.strip().split(delimiter)
        if len(cells) >= len(header) and cells[place].strip(' "').rpartition(".")[2].lower() in IMAGE_SUFFIXES:
            raise UserError(
                f"{table}, line {number}: a quoted text goes on over line {number + offset}, which looks like a row of its own; close the "
                "quote"
            )


def _header_score(cells: list[str]) -> int:
    """How well a header is cut: both columns found counts most."""
    names = {cell.strip().lower() for cell in cells}
    return 2 * bool(names & set(FILE_COLUMNS)) + 2 * bool(names & set(CAPTION_COLUMNS)) + (len(cells) > 1)


def _cells(table: Path, number: int, header: list[str], cells: list[str], raw: str, delimiter: str) -> Row:
    if len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
        caption_is_last = header[-1].lower() in CAPTION_COLUMNS
        if len(header) != 2 or '"' in raw or not (caption_is_last or header[0].lower() in CAPTION_COLUMNS):
            raise UserError(
                f"{table}, line {number}: has {len(cells)} cells and the header {len(header)}; "
                f'put a text that has "{delimiter}" in it in double quotes'
            )
        cells = raw.split(delimiter, 1) if caption_is_last else raw.rsplit(delimiter, 1)
    if len(set(header)) < len([name for name in header if name]) + ("" in header):
        twice = next(name for name in header if name and header.count(name) > 1)
        raise UserError(f"{table}: its header has the column {twice!r} twice")
    # Rows are numbered in a column without a name by pandas; anything else there is reported.
    named = {name: cell.strip() for name, cell in zip(header, cells, strict=False) if name}
    nameless = " ".join(cell for name, cell in zip(header, cells, strict=False) if not name and not cell.strip().isdigit()).strip()
    return named | ({"": nameless} if nameless else {})


def _json_rows(table: Path, text: str) -> Iterator[tuple[int, Row]]:
    """(line or number, row) of each object."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if text.lstrip().startswith("["):
        for number, row in enumerate(_parsed(table, 1, text, kind=list), 1):
            if not isinstance(row, dict):
                raise UserError(f"{table}, entry {number}: must be an object with file and caption")
            yield number, row
    elif table.suffix.lower() == ".json" and (not _is_json(lines[0]) or _is_by_file(text)):
        for number, (file, captions) in enumerate(_parsed(table, 1, text).items(), 1):
            yield number, {"file": file, "caption": captions}
    else:
        yield from ((number, _parsed(table, number, line.strip())) for number, line in enumerate(lines, 1) if line.strip())


def _is_by_file(text: str) -> bool:
    """Whether a JSON text is one object without a file's column: captions by file."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and not {key.strip().lower() for key in found} & set(FILE_COLUMNS)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(table: Path, number: int, text: str, kind: type = dict) -> Any:
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise UserError(f"{table}, line {number + error.lineno - 1}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{table}, line {number}: cannot be read as JSON ({str(error)[:100] or type(error).__name__})") from None
    if not isinstance(found, kind):
        wanted = "an object with file and caption" if kind is dict else "an array of objects with file and caption (or make it .jsonl)"
        raise UserError(f"{table}, line {number}: must be {wanted}")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return row
