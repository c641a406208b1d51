"""YAML -> frozen dataclasses. The one place where a string chooses a class.

OmegaConf reads, interpolates and merges `key=value` overrides; then every key, kind and type is checked against the dataclass schema.
A field typed by a `Family` is chosen by its `kind:`; a config cannot cause any other import.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml
from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.config.nearest import hint
from ldm.core.errors import UserError, unknown
from ldm.core.family import Family
from ldm.core.settings import Limit
from ldm.core.shipped import locate

T = TypeVar("T")

COMMAND_LINE_ONLY = ("data.allow_remote",)  # what a config file cannot set: it lets a run fetch URLs and start commands
UNREADABLE = (OSError, yaml.YAMLError, ValueError, AttributeError, RecursionError)  # what reading a text as YAML raises: some is PyYAML's
LARGEST = 2**63  # from which on no number fits into 64 bits


def load(path: Path | str, schema: type[T], overrides: Sequence[str] = ()) -> T:
    """A config file with `key=value` overrides, as `schema`.

    Raises:
        UserError: the file is missing or not YAML; an unknown key, kind or type; a value that the dataclass refuses.
    """
    return build(read(path, overrides), schema)


def read(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The interpolated file with overrides, not yet checked: a value given in an override replaces the file's, a mapping too.

    Raises:
        UserError: the file is missing or not YAML; it asks for what only the command line may; a resolver, such as `${oc.env:HOME}`.
    """
    path = locate(Path(path).expanduser())
    if not path.is_file():
        raise UserError(f"config {path}: no such file. The shipped configs are in configs/.")
    try:
        config = OmegaConf.load(path)
        if isinstance(config, ListConfig):
            raise UserError(f"config {path}: must be a mapping of keys, found list")
        for key in COMMAND_LINE_ONLY:
            if OmegaConf.select(config, key):
                raise UserError(f"config {path}: {key}=true is allowed on the command line only, so that no file starts commands by itself")
        for override in overrides:
            key, sign, value = override.partition("=")
            if not sign or not key:
                raise UserError(f"override {override!r}: must read key=value, e.g. train.steps=1000")
            given = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)
            assert isinstance(given, dict)
            OmegaConf.update(config, key, given["value"], merge=False)
        _refuse_resolvers(OmegaConf.to_container(config, resolve=False), path)
        content = OmegaConf.to_container(config, resolve=True)
    except UserError:
        raise
    except (OmegaConfBaseException, *UNREADABLE) as error:
        raise UserError(f"config {path}: {' '.join(str(error).split())[:300] or type(error).__name__}") from error
    if not isinstance(content, dict):
        raise UserError(f"config {path}: must be a mapping of keys, found {type(content).__name__}")
    return {str(key): _expanded(value) for key, value in content.items()}


def _refuse_resolvers(content: Any, path: Path) -> None:
    """Refuses interpolations that read anything but other keys: configs travel with checkpoints, the environment should not."""
    if isinstance(content, dict | list):
        for item in content.values() if isinstance(content, dict) else content:
            _refuse_resolvers(item, path)
    if isinstance(content, str):
        open_ones: list[str] = []
        for place, letter in enumerate(content):
            if letter == "{":
                open_ones.append(content[place - 1 : place])
            elif letter == "}" and open_ones:
                open_ones.pop()
            elif letter == ":" and "$" in open_ones:
                raise UserError(f"config {path}: {content[:80]!r} is not read: only ${{other.key}} is; write the value itself")


def _expanded(content: Any) -> Any:
    """With the home folder in place of a leading `~/`."""
    if isinstance(content, dict):
        return {key: _expanded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_expanded(item) for item in content]
    return str(Path(content).expanduser()) if isinstance(content, str) and content.startswith("~/") else content


def build(content: Any, schema: type[T], path: str = "") -> T:
    """Checks plain data against a dataclass or family and builds an instance.

    Raises:
        UserError: see `load`.
    """
    try:
        built: T = _value(content, schema, path)
    except _UnknownKey as error:
        raise UserError(f"{error}{hint(error.key, error.siblings, schema)}") from None
    return built


class _UnknownKey(UserError):
    """A key that is none of its `siblings`; both as dotted paths."""

    def __init__(self, key: str, siblings: list[str]) -> None:
        super().__init__(f"unknown config key {key!r}; allowed: {', '.join(sorted(siblings)) or '(none)'}.")
        self.key, self.siblings = key, siblings


def dump(config: Any) -> Any:
    """The plain data that `build` reads back: dicts with `kind`, lists, numbers, strings."""
    if is_dataclass(config) and not isinstance(config, type):
        kind = {"kind": config.kind} if isinstance(config, Family) else {}
        return kind | {f.name: dump(getattr(config, f.name)) for f in fields(config) if f.init}
    if isinstance(config, (tuple, list)):
        return [dump(item) for item in config]
    if isinstance(config, dict):
        return {key: dump(value) for key, value in config.items()}
    return config


def to_short_form(part: Family) -> str:
    """A kind and the settings that differ from its defaults, as `build` reads them back: `pc corrections=0`."""
    assert is_dataclass(part)
    changed = [f"{f.name}={getattr(part, f.name)}" for f in fields(part) if f.init and getattr(part, f.name) != f.default]
    return " ".join([part.kind, *changed])


def to_yaml(config: Any) -> str:
    """`dump` as YAML text, keys in the order of the schema."""
    return yaml.safe_dump(dump(config), sort_keys=False, allow_unicode=True, width=120)


def _at(path: str) -> str:
    return f"config key {path!r}" if path else "config"


def _value(content: Any, wanted: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (Union, types.UnionType):
        return _union(content, arguments, path)
    if origin is Literal:
        if content not in arguments or type(content) not in {type(a) for a in arguments}:
            raise UserError(f"{_at(path)}: {content!r} is not allowed; allowed: {', '.join(map(str, arguments))}")
        return content
    if origin is tuple:
        return _tuple(content, arguments, path)
    if origin is dict:
        if not isinstance(content, dict):
            raise _mismatch(content, "a mapping", path)
        return {str(key): _value(item, arguments[1], f"{path}.{key}") for key, item in content.items() if item is not None}
    if isinstance(wanted, type) and issubclass(wanted, Family):
        return _family(content, wanted, path)
    if is_dataclass(wanted):
        return _dataclass(content, wanted, path)
    return _plain(content, wanted, path)


def _plain(content: Any, wanted: Any, path: str) -> Any:
    if wanted == Limit:
        return math.inf if content in (math.inf, "inf") else _plain(content, float, path)
    if isinstance(content, int) and abs(content) >= LARGEST:
        raise _mismatch(content, "smaller than 2^63", path)
    if isinstance(content, str) and "\0" in content:
        raise _mismatch(content, "text without the character NUL", path)
    if wanted is float and isinstance(content, int) and not isinstance(content, bool):
        return float(content)
    if wanted is int:
        content = _whole(content)
    if wanted is float and isinstance(content, str):  # YAML 1.1 reads 1e-6 as a string
        try:
            content = float(content)
        except ValueError:
            raise _mismatch(content, "a number", path) from None
    if wanted is float and isinstance(content, float) and not math.isfinite(content):
        raise _mismatch(content, "a finite number", path)
    if type(content) is not wanted:
        raise _mismatch(content, {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[wanted], path)
    return content


def _whole(content: Any) -> Any:
    """The integer of a float that is whole, also of one written as 1e4, which some readers of YAML take for a text; else as it is."""
    if isinstance(content, str) and re.fullmatch(r"\d+(\.\d*)?[eE]\+?\d{1,2}", content):
        content = float(content)
    return int(content) if isinstance(content, float) and content.is_integer() and abs(content) < LARGEST else content


def _mismatch(content: Any, wanted: str, path: str) -> UserError:
    try:
        got = repr(content)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        got = "a number of thousands of digits"
    return UserError(f"{_at(path)}: must be {wanted}, got {got if len(got) < 200 else f'{got[:200]}...'}")


def _union(content: Any, arguments: tuple[Any, ...], path: str) -> Any:
    if content is None and type(None) in arguments:
        return None
    is_list = isinstance(content, (list, tuple))
    options = [a for a in arguments if a is not type(None)]
    options = [a for a in options if (typing.get_origin(a) is tuple) == is_list] or options  # so that the message is of what was meant
    error: UserError | None = None
    for option in options:
        try:
            return _value(content, option, path)
        except UserError as refused:
            error = refused
    assert error is not None
    raise error


def _tuple(content: Any, arguments: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    if not isinstance(content, (list, tuple)):
        raise _mismatch(content, "a list", path)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_value(item, arguments[0], f"{path}[{i}]") for i, item in enumerate(content))
    if len(content) != len(arguments):
        raise UserError(f"{_at(path)}: must be a list of {len(arguments)}, got {len(content)}")
    return tuple(_value(item, a, f"{path}[{i}]") for i, (item, a) in enumerate(zip(content, arguments, strict=True)))


def _family(content: Any, family: type[Family], path: str) -> Family:
    if isinstance(content, str):
        content = from_short_form(content, path)
    if not isinstance(content, dict):
        raise _mismatch(content, "a mapping with `kind:`", path)
    content = dict(content)
    name = content.pop("kind", None)
    if name is None:
        raise UserError(f"{_at(path)}: needs `kind:`; allowed: {', '.join(family.kinds())}")
    if not isinstance(name, str) or name not in family.kinds():
        raise unknown(f"kind at {_at(path)}:", name, family.kinds())
    part: Family = _dataclass(content, family.of_kind(name), path)
    return part


def from_short_form(text: str, path: str) -> dict[str, Any]:
    """The mapping that a short form means: `pc corrections=0` is `{kind: pc, corrections: 0}`.

    Raises:
        UserError: a setting is not key=value; the message gives `path`, the config key of the text.
    """
    name, *settings = text.split() or [""]
    content: dict[str, Any] = {"kind": name}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign:
            raise UserError(f"{_at(path)}: {text!r} must read KIND key=value key=value ..., and {setting!r} is not key=value")
        try:
            content[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"{_at(path)}: the value of {setting!r} cannot be read") from None
    return content


def _dataclass(content: Any, schema: Any, path: str) -> Any:
    known = {f.name: f for f in fields(schema) if f.init}
    hints = typing.get_type_hints(schema, include_extras=True)
    prefix = f"{path}." if path else ""
    if isinstance(content, str) and content.partition(" ")[0] in typing.get_args(hints.get("kind")):
        content = from_short_form(content, path)
    if not isinstance(content, dict):
        kinds = typing.get_args(hints.get("kind"))
        wanted = f"a kind ({', '.join(kinds)}), or " if kinds else ""
        raise _mismatch(content, f"{wanted}a mapping of {', '.join(known)}, as in {prefix}{[*known][bool(kinds)]}=VALUE", path)
    for key in content:
        if key not in known:
            raise _UnknownKey(f"{prefix}{key}", [f"{prefix}{name}" for name in known])
    for name, field in known.items():
        if name not in content and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"config key {prefix + name!r} is missing: {schema.__name__} needs it")
    values = {key: _value(item, hints[key], f"{prefix}{key}") for key, item in content.items()}
    try:
        return schema(**values)
    except UserError as error:
        raise UserError(f"{_at(path)}: {error}") from error
    except ValueError as error:
        raise UserError(f"{_at(path)}: {error}") from error
