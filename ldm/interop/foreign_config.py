"""A peer's config file as one of our dataclasses: only what is listed there can be asked for, and no more than a machine can hold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ldm.config.loader import build, read
from ldm.core.errors import UserError
from ldm.interop.foreign_file import said, shortened

T = TypeVar("T")

MAX_BYTES = 16 << 20
MAX_SCALAR = 1000  # characters
MAX_DEPTH = 50  # of mappings and lists within each other
LARGEST = 1 << 20  # of all numbers that size something
MOST = 128  # layers of one kind in a row, or levels
RESOLVED = re.compile(r"\$\{[^}]*:")  # OmegaConf's way to ask for more than another key's value, e.g. an environment variable's


def read_yaml(path: Path) -> dict[str, Any]:
    """A peer's YAML file, plain values only.

    Raises:
        UserError: it cannot be read; it is larger than what it says, or asks for what is outside of it.
    """
    depth = 0
    try:
        for event in yaml.parse(_text(path, "config"), Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{path}: repeats a part by name (*{event.anchor}); write it out")
            if depth > MAX_DEPTH:
                raise UserError(f"{path}: has more than {MAX_DEPTH} mappings and lists within each other")
            tag = event.tag if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) else None
            value = event.value if isinstance(event, yaml.ScalarEvent) else ""
            if tag or len(value) > MAX_SCALAR or RESOLVED.search(value):
                raise UserError(f"{path}: says {shown(tag or value)}; only plain values are read")
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {said(error)}") from error
    return read(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a folder of diffusers'.

    Raises:
        UserError: it is missing, too large, no JSON, or no mapping.
    """
    try:
        content = json.loads(_text(path, "a whole folder of diffusers' is needed"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON ({said(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of keys, found {type(content).__name__}")
    return content


def _text(path: Path, missing: str) -> str:
    if not path.is_file():
        raise UserError(f"{path}: no such file; {missing}")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path}: has {path.stat().st_size >> 20} MiB; at most {MAX_BYTES >> 20} are read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text ({error.reason} at byte {error.start})") from error


def read_foreign(content: Any, schema: type[T], where: str, ignored: tuple[str, ...] = ()) -> T:
    """A config, typed. A key that the schema has not is passed over where it asks for nothing: where it is null or false.

    Args:
        content: what the file says.
        schema: a dataclass with the peer's names and defaults; a `Literal` is all that we can represent.
        where: the file and the place in it: for errors.
        ignored: further keys that no picture depends on, or that the caller has read.

    Raises:
        UserError: no mapping; a key or value that has no counterpart here; a missing or mistyped one.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: must be a mapping of keys, found {type(content).__name__}")
    known = {field.name for field in fields(schema)}  # type: ignore[arg-type]
    for key, value in content.items():
        asks = value is not None and value is not False
        if key not in known and key not in ignored and not str(key).startswith("_") and asks:
            raise UserError(f"{where}: sets {key} to {shown(value)}, which has no counterpart here")
    wanted = {key: value for key, value in content.items() if key in known}
    _check_numbers(wanted, where)
    try:
        return build(wanted, schema)
    except UserError as error:
        raise UserError(f"{where}: {shortened(str(error), 400)}") from error


def _check_numbers(content: Any, where: str) -> None:
    """Refuses numbers that would size a network as none is."""
    if isinstance(content, (int, float)) and not abs(content) <= LARGEST:  # nor is NaN
        raise UserError(f"{where} is {shown(content)}; numbers up to {LARGEST} can be imported")
    parts = content.items() if isinstance(content, Mapping) else enumerate(content) if isinstance(content, (list, tuple)) else ()
    for key, value in parts:
        _check_numbers(value, f"{where}.{key}")


def must_be_few(where: str, key: str, counts: int | Sequence[int]) -> None:
    """Refuses more layers or levels than any network has, before one is built to compare a file with.

    Args:
        where, key: of the config.
        counts: one number, or one a level.

    Raises:
        UserError: there are more.
    """
    each = (counts,) if isinstance(counts, int) else counts
    if len(each) > MOST or max(each, default=0) > MOST:
        raise UserError(f"{where}: {key} is {shown(counts)}; at most {MOST} levels, and layers in each, can be imported")


def shown(value: object) -> str:
    """A value as text that fits into a line."""
    return shortened(repr(value), 60)


def must_be(where: str, key: str, value: object, wanted: float) -> None:
    """Refuses a number that our networks fix.

    Raises:
        UserError: it is another.
    """
    if value != wanted:
        raise UserError(f"{where}: {key} is {shown(value)}; only {wanted:g} can be imported")
