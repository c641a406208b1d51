"""The lists that `make mutants` reads fit the code, and random changes are what they are called."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest
import test_floors
from mutants import ROOT, breakages, random_mutants, reasons
from random_changes import KINDS, changes


def test_every_breakage_is_found_once_and_its_test_exists() -> None:
    for breakage in breakages():
        mutant = breakage.mutant()  # which refuses what is not found once
        ast.parse(mutant.source)
        path, test = breakage.test.split("::")
        assert re.search(rf"^def {test}\(", (ROOT / path).read_text(), re.MULTILINE), f"{breakage.promise!r}: there is no {breakage.test}"
    assert max(Counter(breakage.promise for breakage in breakages()).values()) == 1


def test_every_floor_has_ten_breakages() -> None:
    rooms = Counter(breakage.room for breakage in breakages())
    counts = {floor: sum(rooms[room] for room in floor) for floor in test_floors.FLOORS}
    assert min(counts.values()) >= 10, counts


def test_what_survives_with_a_reason_is_still_there() -> None:
    """A function of another name, or changed, is to be looked at again."""
    files = {name.split("::")[0] for name in reasons()}
    assert not {file for file in files if not (ROOT / file).is_file()}
    found = {change.name: change.what for file in files for change in changes(file, (ROOT / file).read_bytes())}
    stale = {name for name, known in reasons().items() if found.get(name) != known["change"]}
    assert not stale, f"tests/mutants/equivalent.toml has changes that this tree no longer has: {sorted(stale)}"


def test_random_changes() -> None:
    source = b'''
class A:
    width: int = 3

    def f(self, x: int = 2) -> tuple[int, ...]:
        """Doc 1."""
        assert x != 5
        if not x or x < len("\xc3\xa4") <= -7:
            return [x + 0.5, x[1:]]
        return x * \\
            9
'''
    made = {change.name.removeprefix("a.py::"): (change.what, change.applied(source)) for change in changes("a.py", source)}
    assert {name: what for name, (what, _) in made.items()} == {
        "A::constant::1": "3 -> 4",
        "A.f::constant::1": "2 -> 3",
        "A.f::operator::1": "not x or x < len('ä') <= -7 -> not x and x < len('ä') <= -7",
        "A.f::operator::2": "not x -> x",
        "A.f::off by one::1": "x < len('ä') <= -7 -> x <= len('ä') <= -7",
        "A.f::off by one::2": "x < len('ä') <= -7 -> x < len('ä') < -7",
        "A.f::sign::1": "-7 -> 7",
        "A.f::constant::2": "7 -> 8",
        "A.f::operator::3": "x + 0.5 -> x - 0.5",
        "A.f::constant::3": "0.5 -> 1.0",
        "A.f::off by one::3": "1 -> 2",
        "A.f::sign::2": "x * 9 -> -(x * 9)",
        "A.f::operator::4": "x * 9 -> x / 9",
        "A.f::constant::4": "9 -> 10",
    }
    lines = {name: changed.decode().splitlines() for name, (_, changed) in made.items()}
    assert lines["A.f::sign::1"][7] == '        if not x or x < len("ä") <= (7):'
    assert lines["A.f::off by one::3"][8] == "            return [x + 0.5, x[(2):]]"
    assert lines["A.f::operator::4"][9:] == ["        return (x / 9)"]


def test_the_choice_is_of_all_kinds_and_does_not_depend_on_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = list(random_mutants())
    assert Counter(mutant.name.split("::")[2] for mutant in chosen) == {kind: 50 for kind in KINDS}
    original = type(ROOT).read_bytes
    monkeypatch.setattr(type(ROOT), "read_bytes", lambda path: b"\n\n" + original(path))
    assert [mutant.name for mutant in random_mutants()] == [mutant.name for mutant in chosen]
