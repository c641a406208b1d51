"""A peer's config file as one of our dataclasses: only what is listed there can be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from ldm.config.loader import build
from ldm.core.errors import UserError

T = TypeVar("T")


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
            raise UserError(f"{where}: sets {key} to {shortened(value)}, which has no counterpart here")
    try:
        return build({key: value for key, value in content.items() if key in known}, schema)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def shortened(value: object) -> str:
    """A value as text that fits a line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def must_be(where: str, key: str, value: float, wanted: float) -> None:
    """Refuses a number that our networks fix.

    Raises:
        UserError: it is another.
    """
    if value != wanted:
        raise UserError(f"{where}: {key} is {value:g}; only {wanted:g} can be imported")
