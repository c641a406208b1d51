"""Nothing of ours leans on a private part of a dependency, but for what is listed here with its reason and the test that holds it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import DEPENDENCY_ROOMS, OTHER_ROOMS

pytestmark = pytest.mark.dependency
ROOT = Path(__file__).parents[1]

# name: (reason, test that holds it on the oldest and on the newest allowed release)
PRIVATE = {
    "torch.utils._python_dispatch": (
        "TorchDispatchMode, which torch documents under this name: nothing public sees what the backward pass makes",
        "tests/app/test_describe.py::test_what_is_kept_for_the_backward_pass_counts_and_what_is_not_does_not",
    ),
}


def private_names(source: str) -> Iterator[str]:
    """Dotted names in which a part of a dependency begins with an underscore, and torch.ops, whose names change with torch."""
    tree = ast.parse(source)
    modules: dict[str, str] = {}  # local name: what was imported under it
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {
                alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0] for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    yield from (name for name in modules.values() if _is_private(name))
    for node in ast.walk(tree):
        name = _dotted(node)
        if name and name.split(".")[0] in modules:
            first, *others = name.split(".")
            whole = ".".join((modules[first], *others))
            if _is_private(whole):
                yield whole


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value)):
        return f"{base}.{node.attr}"
    return None


def _is_private(name: str) -> bool:
    package, *parts = name.split(".")
    if package in OURS or package in sys.stdlib_module_names:
        return False
    return name.startswith("torch.ops") or any(re.match(r"_[^_]", part) for part in parts)


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", "*.py"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [ROOT / name for name in filter(None, listed.split("\0")) if (ROOT / name).is_file()]


OURS = {"ldm", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}


def test_private_parts_of_dependencies_are_listed():
    found = {name: path.relative_to(ROOT) for path in _tracked() for name in private_names(path.read_text())}
    listed = {name for name in found for known in PRIVATE if name == known or name.startswith(f"{known}.")}
    assert not found.keys() - listed, {name: str(path) for name, path in found.items() if name not in listed}
    assert all(any(name.startswith(known) for name in listed) for known in PRIVATE), "an entry that nothing uses any more"


@pytest.mark.parametrize("test", [test for _, test in PRIVATE.values()])
def test_what_is_listed_is_held_by_a_test(test: str):
    path, name = test.split("::")
    assert f"def {name}(" in (ROOT / path).read_text()


def test_every_room_of_tests_is_marked_or_left_out_on_purpose():
    rooms = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert rooms == {*DEPENDENCY_ROOMS, *OTHER_ROOMS}


@pytest.mark.parametrize(
    "source, found",
    [
        ("import torch\ntorch._foreach_lerp_(a, b, 1)", ["torch._foreach_lerp_"]),
        ("import torch\ntorch.ops.aten.mm(a, b)", ["torch.ops.aten.mm"]),
        ("from torch._dynamo import utils", ["torch._dynamo.utils"]),
        ("import torch as t\nt.utils._pytree.tree_leaves(x)", ["torch.utils._pytree.tree_leaves"]),
        ("import torch\nself._x = torch.nn.functional.linear(x)\nfrom ldm.networks.attention import _x", []),
    ],
)
def test_the_check_itself(source: str, found: list[str]):
    names = set(private_names(source))
    assert all(name in names for name in found) and bool(names) == bool(found)
