"""Small changes of expressions, found by their syntax: another operator, another constant, another sign, off by one.

A change is named by file, function, kind and its number among that kind's places in the function. Lines may move and the name still holds.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

KINDS = ("operator", "constant", "sign", "off by one")
OTHER: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
NEXT: dict[type[ast.AST], type[ast.AST]] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
# What no user meets: our own assertions, messages, types. (Positions within an f-string are not those of the file before Python 3.12.)
PASSED_OVER = (ast.Assert, ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)


@dataclass(frozen=True, kw_only=True)
class Change:
    """
    Attributes:
        name: `file::function::kind::number`.
        kind: one of KINDS.
        start, end: of the expression, in the file's bytes.
        before, after: the expression as it is, and changed.
    """

    name: str
    kind: str
    start: int
    end: int
    before: str
    after: str

    @property
    def file(self) -> str:
        return self.name.split("::")[0]

    @property
    def what(self) -> str:
        return f"{self.before} -> {self.after}"

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + f"({self.after})".encode() + source[self.end :]


def chosen(root: Path, rooms: Sequence[str], number: int, seed: int) -> list[Change]:
    """As many changes, as many of each kind as there are; a change is chosen by its name, whatever else there is in the tree."""

    def rank(change: Change) -> bytes:
        return hashlib.blake2b(f"{seed} {change.name}".encode()).digest()

    files = sorted(path for room in rooms for path in (root / "ldm" / room).rglob("*.py"))
    found = sorted((change for path in files for change in changes(str(path.relative_to(root)), path.read_bytes())), key=rank)
    order: Counter[str] = Counter()
    turns = []
    for change in found:
        order[change.kind] += 1
        turns.append((order[change.kind], rank(change), change))
    return [change for _, _, change in sorted(turns, key=lambda turn: turn[:2])[:number]]


def changes(file: str, source: bytes) -> Iterator[Change]:
    """All that can be made to a file, one at a time."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    numbers: Counter[tuple[str, str]] = Counter()
    for function, node, kind, new in _places(ast.parse(source), ""):
        numbers[function, kind] += 1
        yield Change(
            name=f"{file}::{function}::{kind}::{numbers[function, kind]}",
            kind=kind,
            start=starts[node.lineno - 1] + node.col_offset,
            end=starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0),
            before=ast.unparse(node),
            after=ast.unparse(new),
        )


def _places(node: ast.AST, function: str, in_index: bool = False) -> Iterator[tuple[str, ast.expr, str, ast.expr]]:
    """(function, expression, kind, changed expression) of all there are below a node, in the order of the source."""
    if isinstance(node, PASSED_OVER):
        return
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        function = f"{function}.{node.name}".lstrip(".")
    if isinstance(node, ast.expr):
        for kind, new in _changed(node, in_index):
            yield function or "(module)", node, kind, new
    if (
        isinstance(node, ast.Return)
        and isinstance(node.value, ast.BinOp)
        and isinstance(node.value.op, ast.Add | ast.Sub | ast.Mult | ast.Div)
    ):
        yield function, node.value, "sign", ast.UnaryOp(ast.USub(), node.value)
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        is_index = isinstance(node, ast.Subscript) and name == "slice"
        is_range = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST):
                yield from _places(child, function, in_index or is_index or is_range)


def _changed(node: ast.expr, in_index: bool) -> Iterator[tuple[str, ast.expr]]:
    match node:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in OTHER:
            yield "operator", _with(node, op=OTHER[type(op)]())
        case ast.Compare(ops=ops):
            for place, op in enumerate(ops):
                for kind, table in (("operator", OTHER), ("off by one", NEXT)):
                    if type(op) in table:
                        yield kind, _with(node, ops=[*ops[:place], table[type(op)](), *ops[place + 1 :]])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "operator", operand
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield "sign", operand
        case ast.Constant(value=bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield "off by one" if in_index else "constant", ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield "constant", ast.Constant(2 * value or 1.0)


def _with(node: ast.expr, **fields: object) -> ast.expr:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new
