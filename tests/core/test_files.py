"""Files and folders are never half-written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ldm.core.files import new_folder, recover_folder, write_file


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    with new_folder(target) as new:
        (new / "a").write_text("old")
    with pytest.raises(RuntimeError), new_folder(target) as new:
        (new / "a").write_text("half")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    with new_folder(target) as new:
        (new / "b").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    assert [p.name for p in target.iterdir()] == ["b"]


def test_a_failure_between_the_renames_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "checkpoint"
    with new_folder(target) as new:
        (new / "a").write_text("old")
    rename, seen = os.rename, []

    def failing(old: Path, new: Path) -> None:
        seen.append(new)
        if len(seen) == 2:
            raise OSError(5, "Input/output error")
        rename(old, new)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output"), new_folder(target) as new:
        (new / "a").write_text("new")
    monkeypatch.undo()
    recover_folder(target)
    assert (target / "a").read_text() == "old"


def test_a_kill_between_the_renames_is_undone(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    target.mkdir()
    os.rename(target, tmp_path / ".checkpoint.old-1")
    (tmp_path / ".checkpoint.tmp-1").mkdir()
    recover_folder(target)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_file(path, "old")

    write = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        write(self, content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
