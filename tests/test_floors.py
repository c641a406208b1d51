"""A package (room) of `ldm` imports only packages of lower floors, so others cannot break it. The floors are DESIGN's."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from ldm.conditioning.conditioner import ConditionerConfig

ROOT = Path(__file__).parent.parent
FLOORS = (
    ("core",),
    ("pretrained", "config", "diffusion", "networks", "data"),
    ("metrics", "samplers", "guidance", "conditioning", "first_stage"),
    ("losses", "checkpoints"),
    ("pipelines", "profiling"),
    ("training", "evaluation"),
    ("interop",),
    ("app",),
    ("web",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of ldm, at any place in the file."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "ldm" and len(parts) > 1:
                yield node.lineno, parts[1]


def faults(path: str, source: str) -> list[str]:
    """`path:line: what is wrong` for each import that is not of a lower floor."""
    package = tuple(Path(path).parts[:-1])
    room = package[1]
    found = []
    for line, other in imported_rooms(ast.parse(source), package):
        if other == room or (other in FLOOR_OF and FLOOR_OF[other] < FLOOR_OF[room]):
            continue
        where = f"floor {FLOOR_OF[other]}" if other in FLOOR_OF else "no room"
        found.append(f"{path}:{line}: {room} (floor {FLOOR_OF[room]}) imports {other} ({where})")
    return found


def test_every_room_has_a_floor():
    rooms = {path.parent.name for path in (ROOT / "ldm").glob("*/__init__.py")}
    assert rooms <= set(FLOOR_OF), f"give these a floor in {Path(__file__).name}: {sorted(rooms - set(FLOOR_OF))}"


def test_imports_go_down_only():
    found = []
    for path in sorted((ROOT / "ldm").glob("*/**/*.py")):
        found += faults(str(path.relative_to(ROOT)), path.read_text())
    assert not found, "\n" + "\n".join(found)


def imports_at_the_top(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of what a file of ldm imports of ldm when it is loaded; name is empty for `import module`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ldm":
            assert not node.level
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "ldm")


def test_no_module_imports_itself_in_a_circle():
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in (ROOT / "ldm").rglob("*.py")
    }
    graph = {
        module: {f"{other}.{name}" if f"{other}.{name}" in files else other for other, name in imports_at_the_top(path)} & set(files)
        for module, path in files.items()
    }
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_no_kind_of_conditioner_is_known_outside_its_room():
    """But for interop, which translates each published kind; and for what a kind's file offers beside its classes."""
    kinds = {cls.__name__ for config in ConditionerConfig.kinds().values() for cls in config.__mro__}
    kinds -= {cls.__name__ for cls in ConditionerConfig.__mro__}
    found = [
        f"{path.relative_to(ROOT)} knows {name}"
        for path in sorted((ROOT / "ldm").rglob("*.py"))
        if path.relative_to(ROOT / "ldm").parts[0] not in ("conditioning", "interop")
        for name in sorted({node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)} & kinds)
    ]
    assert len(kinds) > 8 and not found, "\n".join(found)


@pytest.mark.parametrize(
    "path, source, found",
    [
        ("ldm/networks/unet.py", "import torch\nfrom ldm.core.condition import Condition", []),
        ("ldm/networks/blocks/norm.py", "from ldm.networks.embed import x\nfrom ..embed import x\nfrom . import y", []),
        ("ldm/networks/unet.py", "import torch\nimport ldm.samplers.ddim", [2]),
        ("ldm/samplers/ddim.py", "def f():\n    from ldm import guidance", [2]),
        ("ldm/samplers/ddim.py", "from ..guidance import known_region", [1]),
        ("ldm/networks/blocks/norm.py", "from ...diffusion import process", [1]),
        ("ldm/core/files.py", "from ldm.nowhere import x", [1]),
        ("ldm/app/train.py", "from ldm.training.engine import fit", []),
    ],
)
def test_the_check_itself(path, source, found):
    """The lines that must be reported for a file of that path."""
    assert [int(fault.split(":")[1]) for fault in faults(path, source)] == found
