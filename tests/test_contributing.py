"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the tree: their files, and the tests that they name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?P<before>[^\n]*)\n\n```python\n(?P<code>.*?)```", re.DOTALL)
PLACE = re.compile(r"`((?:ldm|tests)/[\w/]+\.py)`")


def insert(path: Path, line: str, *changes: tuple[str, str]) -> None:
    """Adds an import to a test file, and changes it elsewhere: what is found exactly once, and what takes its place."""
    text = path.read_text()
    for old, new in (("import pytest\n", f"import pytest\n{line}\n"), *changes):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path.write_text(text)


def test_the_recipes_run_as_written(tmp_path: Path) -> None:
    for name in ("ldm", "tests/samplers", "tests/conditioning"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("tests/conftest.py", "tests/elsewhere.py", "tests/rooms.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    pieces = []
    for before, code in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()):
        if not code.startswith(('"""', "import")):
            pieces.append(code)
            continue
        (place,) = PLACE.findall(before)
        assert (ROOT / place).parent.is_dir() and not (ROOT / place).exists(), place
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(code)
    rows, own_test = pieces  # what recipes 1 and 2 add to a test file that is there
    last, new = re.search(r"\.\.\., (\(.*\)), (\(.*\))\],\)", rows).groups()
    insert(
        tmp_path / "tests/samplers/test_orders.py",
        "from ldm.samplers.adams_bashforth import AdamsBashforth",
        (f"{last}],", f"{last}, {new}],"),
    )
    conditioning = tmp_path / "tests/conditioning/test_conditioning.py"
    insert(
        conditioning,
        "from ldm.conditioning.hashed_words import HashedWordsConfig",
        ("CONFIGS = {\n", 'CONFIGS = {\n    "hashed_words": HashedWordsConfig(width=16),\n'),
    )
    conditioning.write_text(f"{conditioning.read_text()}\n\n{own_test}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests", "-k", "AdamsBashforth or hashed_words or shapes_are_written"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed > 30, done.stdout[-500:]  # the general tests found the new parts too
