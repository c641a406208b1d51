"""Text files as people have them, and file names as people can read them."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from pathlib import PurePath

from ldm.core.errors import UserError

MARKS = (  # UTF-32's mark for little endian begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode_text(content: bytes, name: str, encoding: str | None = None) -> str:
    """A text file's content: by its byte order mark, else as UTF-8 (or UTF-16, which its zeros give away), else in `encoding`.

    Raises:
        UserError: none of these; with the line.
    """
    for mark, kind in MARKS:
        if content.startswith(mark):
            return _decoded(content[len(mark) :], kind, name)
    for half, kind in ((content[1::2], "utf-16-le"), (content[::2], "utf-16-be")):
        if half.count(0) > len(half) / 2:  # half of most letters' bytes
            return _decoded(content, kind, name)
    if b"\0" in content:
        raise UserError(f"{_at(name, content, content.index(0))}: has a zero byte, so it is no text; remove it")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        if encoding is not None:
            return _decoded(content, encoding, name)
        raise UserError(
            f"{_at(name, content, error.start)}: not UTF-8 (byte 0x{content[error.start]:02x}); save it as UTF-8, or prepare the data with "
            "scripts/prepare_data.py and name what it is, e.g. --encoding cp1252"
        ) from None


def _decoded(content: bytes, encoding: str, name: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{_at(name, content, error.start)}: not {encoding} (byte 0x{content[error.start]:02x})") from None
    except UnicodeError as error:
        raise UserError(f"{name}: not {encoding} ({error})") from None


def check_encoding(name: str) -> None:
    """
    Raises:
        UserError: no encoding of texts is called so.
    """
    try:
        "a".encode(name).decode(name)
    except (LookupError, UnicodeError, ValueError):
        raise UserError(f"--encoding {name!r}: no such encoding; common ones are cp1252, latin-1, shift_jis, gb18030, cp1251") from None


def lines_of(text: str) -> tuple[str, ...]:
    """The lines that are not blank, without space around them. Only the ends of lines that editors write end one."""
    return tuple(line.strip() for line in re.split("[\r\n]+", text) if line.strip())


def _at(name: str, content: bytes, place: int) -> str:
    return f"{name}, line {content.count(10, 0, place) + 1}"


def shown(path: PurePath | str) -> str:
    """A path as text that can be printed and stored: bytes that are no UTF-8 are read as cp1252, characters without a glyph are escaped."""
    raw = os.fsencode(path)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("cp1252", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def one_form(name: str) -> str:
    """A name in the one Unicode form (NFC) in which names are compared: file systems and tables differ in theirs."""
    return unicodedata.normalize("NFC", name)


def is_text(text: str) -> bool:
    """Whether it can be stored: JSON can hold halves of characters (lone surrogates), which no encoding takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
