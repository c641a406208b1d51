"""Families of parts: what help says of them is what a config can name."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

import ldm
from ldm.core.family import Family, kind_names


def families() -> list[type[Family]]:
    """All of ours."""
    for module in pkgutil.walk_packages(ldm.__path__, "ldm."):
        importlib.import_module(module.name)
    return [family for family in Family.__subclasses__() if family.__module__.startswith("ldm.")]


@pytest.mark.parametrize("family", families(), ids=lambda family: family.__name__)
def test_kinds_read_from_the_source_are_those_that_importing_finds(family: type[Family]) -> None:
    assert kind_names(family.__module__.rpartition(".")[0], family.__name__) == list(family.kinds()) != []


def test_kinds_are_found_through_bases_and_aliases_of_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file may be written that the toolkit does not have; and nothing of it is run."""
    room = tmp_path / "room"
    (room / "deeper").mkdir(parents=True)
    (room / "base.py").write_text("raise AssertionError\nclass Solver(Family): ...\nclass Other(Family): ...\n")
    (room / "deeper" / "a.py").write_text("class Middle(base.Solver, abc.ABC): ...\n@kind('other')\nclass C(Other): ...\n")
    (room / "b.py").write_text(
        "@family.kind('last')\n@dataclass(frozen=True)\nclass A(Middle): ...\n@kind('first')\nclass B(Solver): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert kind_names("room", "Solver") == ["first", "last"]
