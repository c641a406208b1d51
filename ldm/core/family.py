"""Families of parts that a config chooses by `kind:`.

A family is a base class that lists `Family` among its direct bases; a kind is a frozen dataclass in the same package, named by the
outermost decorator. Only the family's own package is imported to find its kinds, so a config can name nothing else.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, TypeVar

from ldm.core.errors import unknown

T = TypeVar("T", bound="Family")


class Family:
    """Base of every family; see the module's text."""

    __slots__ = ()
    kind: ClassVar[str]

    @classmethod
    def family(cls) -> type[Family]:
        """The class that lists Family as a direct base."""
        return next(base for base in cls.__mro__ if Family in base.__bases__)

    @classmethod
    def kinds(cls) -> dict[str, type[Family]]:
        """All registered kinds by name, after importing the family's package."""
        family = cls.family()
        package = importlib.import_module(family.__module__.rpartition(".")[0])
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
        return dict(sorted(_kinds.get(_path(family), {}).items()))

    @classmethod
    def of_kind(cls, name: str) -> type[Family]:
        """The class of a kind.

        Raises:
            UserError: unknown kind.
        """
        kinds = cls.kinds()
        if name not in kinds:
            raise unknown(f"{cls.family().__name__} kind", name, kinds)
        return kinds[name]


_kinds: dict[str, dict[str, type[Family]]] = {}


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def kind(name: str) -> Callable[[type[T]], type[T]]:
    """Registers a class under a name in its family. Must be the outermost decorator: `dataclass(slots=True)` makes a new class."""

    def register(cls: type[T]) -> type[T]:
        table = _kinds.setdefault(_path(cls.family()), {})
        known = table.get(name)
        assert known is None or _path(known) == _path(cls), f"kind {name!r} is taken by {known}"
        cls.kind = name
        table[name] = cls
        return cls

    return register


def kind_names(package: str, family: str) -> list[str]:
    """What `kinds()` of a family names, read off its package's source files without importing them: for help, which is to be quick.

    Args:
        package: that the family's class is in, e.g. `ldm.samplers`.
        family: the class's name. Classes are identified by their names alone, so no two of a package may share one.
    """
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"no package {package}"
    files = [path for folder in spec.submodule_search_locations for path in Path(folder).rglob("*.py")]
    classes = [node for path in files for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.ClassDef)]
    members = {node.name for node in classes if node.name == family}
    assert members, f"no class {family} in {package}"
    while found := {node.name for node in classes if members & set(map(_last_name, node.bases))} - members:
        members |= found
    return sorted(name for node in classes if node.name in members for name in map(_kind_name, node.decorator_list) if name)


def _last_name(expression: ast.expr) -> str:
    """`Sampler` of `Sampler` and of `sampler.Sampler`."""
    return ast.unparse(expression).rpartition(".")[2]


def _kind_name(decorator: ast.expr) -> str | None:
    """The name in `@kind("name")`; None of any other decorator."""
    match decorator:
        case ast.Call(func=function, args=[ast.Constant(value=str(name))]) if _last_name(function) == kind.__name__:
            return name
    return None
