"""A peer's config file as one of our dataclasses: without it a downloaded config could select any code, or a network of any size.

Only the dataclass's fields are read, and numbers are limited, so that no config can exhaust a machine's memory.
"""

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
from ldm.interop.foreign_file import error_text, shortened

T = TypeVar("T")

MAX_BYTES = 16 << 20
MAX_SCALAR = 1000  # characters
MAX_DEPTH = 50  # of mappings and lists within each other
LARGEST = 1 << 20  # limit for every number in a config
MOST = 128  # limit for layers in a row, and for levels
RESOLVED = re.compile(r"\$\{[^}]*:")  # OmegaConf's resolvers, which read more than other keys, e.g. environment variables


def read_yaml(path: Path) -> dict[str, Any]:
    """A peer's YAML file, plain values only.

    Raises:
        UserError: it cannot be read; it has aliases, tags, resolvers, or too long or too deep values.
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
                raise UserError(f"{path}: contains {shown(tag or value)}; only plain values are read")
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {error_text(error)}") from error
    return read(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a diffusers folder.

    Raises:
        UserError: it is missing, too large, not JSON, or not a mapping.
    """
    try:
        content = json.loads(_text(path, "a whole folder of diffusers' is needed"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error_text(error)})") from error
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
        raise UserError(f"{path}: is not text ({error.reason} at byte {error.start})") from error


def read_foreign(content: Any, schema: type[T], where: str, ignored: tuple[str, ...] = ()) -> T:
    """A config, typed. A key that the schema lacks is passed over if its value is null or false, and refused otherwise.

    Args:
        content: of the file.
        schema: a dataclass with the peer's names and defaults; a `Literal` lists the values that can be represented here.
        where: the file and the place in it, for errors.
        ignored: further keys that no image depends on, or that the caller has read.

    Raises:
        UserError: not a mapping; a key or value without counterpart here; a missing key; a value of a wrong type.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: must be a mapping of keys, found {type(content).__name__}")
    known = {field.name for field in fields(schema)}  # type: ignore[arg-type]
    for key, value in content.items():
        is_set = value is not None and value is not False
        if key not in known and key not in ignored and not str(key).startswith("_") and is_set:
            raise UserError(f"{where}: sets {key} to {shown(value)}, which has no counterpart here")
    wanted = {key: value for key, value in content.items() if key in known}
    _check_numbers(wanted, where)
    try:
        return build(wanted, schema)
    except UserError as error:
        raise UserError(f"{where}: {shortened(str(error), 400)}") from error


def _check_numbers(content: Any, where: str) -> None:
    """Refuses numbers beyond those of any real network."""
    if isinstance(content, (int, float)) and not abs(content) <= LARGEST:  # nor is NaN
        raise UserError(f"{where} is {shown(content)}; numbers up to {LARGEST} can be imported")
    parts = content.items() if isinstance(content, Mapping) else enumerate(content) if isinstance(content, (list, tuple)) else ()
    for key, value in parts:
        _check_numbers(value, f"{where}.{key}")


def must_be_few(where: str, key: str, counts: int | Sequence[int]) -> None:
    """Refuses more layers or levels than any real network has, before a network is built to compare a file with.

    Args:
        where, key: of the config.
        counts: one number, or one per level.

    Raises:
        UserError: more than MOST.
    """
    each = (counts,) if isinstance(counts, int) else counts
    if len(each) > MOST or max(each, default=0) > MOST:
        raise UserError(f"{where}: {key} is {shown(counts)}; at most {MOST} levels, and layers in each, can be imported")


def shown(value: object) -> str:
    """A value as text, shortened to fit in a line."""
    return shortened(repr(value), 60)


def must_be(where: str, key: str, value: object, wanted: float) -> None:
    """Refuses a value that our networks do not have.

    Raises:
        UserError: it is not the wanted one.
    """
    if value != wanted:
        raise UserError(f"{where}: {key} is {shown(value)}; only {wanted:g} can be imported")
