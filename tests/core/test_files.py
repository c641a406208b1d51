"""Files and folders are never half-written, and only what this tool wrote is replaced or removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.core import files
from ldm.core.errors import UserError
from ldm.core.files import Outputs, new_folder, recover_all, recover_folder, remove_folder, standing_folder, write_file
from ldm.core.ownership import RECORD, strangers, written_in
from ldm.core.processes import ProcessName

HERE = ProcessName.of_this()
PLACE = files._place(HERE.host, HERE.space)
MINE = f"{HERE.pid}-{round(HERE.started * 100)}-{PLACE}"  # a process that runs
DEAD = f"{HERE.pid}-{round(HERE.started * 100) + 12345}-{PLACE}"  # one that had the same number
AWAY = "17-17-00000000"  # one of another machine


def write(folder: Path, **contents: str) -> Path:
    with new_folder(folder) as new:
        for name, text in contents.items():
            (new / name).write_text(text)
    return folder


def tree(folder: Path) -> dict[str, str]:
    """The text of every file, but for records."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file() and path.name != RECORD}


@pytest.fixture(params=["at once", "by two renames"])
def any_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which a folder takes another's name."""
    if request.param == "by two renames":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)


@pytest.mark.usefixtures("any_system")
def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = write(tmp_path / "checkpoint", a="old")
    with pytest.raises(RuntimeError), new_folder(target) as new:
        (new / "a").write_text("half")
        raise RuntimeError
    assert tree(tmp_path) == {"checkpoint/a": "old"}
    write(target, b="new")
    assert tree(tmp_path) == {"checkpoint/b": "new"} and [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("fails_at", [1, 2, 3])
@pytest.mark.usefixtures("any_system")
def test_a_failure_at_a_rename_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    target = write(tmp_path / "checkpoint", a="old")
    (target / "notes.txt").write_text("mine")
    rename, seen = os.rename, []

    def failing(old: Path, new: Path) -> None:
        seen.append(new)
        if len(seen) == fails_at:
            raise OSError(5, "Input/output error")
        rename(old, new)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output"), new_folder(target) as new:
        (new / "a").write_text("new")
    monkeypatch.setattr(os, "rename", rename)
    assert "a" in {path.name for path in standing_folder(target).iterdir()}
    recover_folder(target)
    assert tree(tmp_path).keys() == {"checkpoint/a", "checkpoint/notes.txt"}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    "other", [{"c.png": "mine"}, {"manifest.json": "[]"}, {"manifest.json": '{"files": {"a": 1}}'}, {"index.json": "{}"}]
)
def test_a_folder_of_somebody_else_is_refused_untouched(tmp_path: Path, other: dict[str, str]) -> None:
    target = tmp_path / "photos"
    target.mkdir()
    for name, text in other.items():
        (target / name).write_text(text)
    with pytest.raises(UserError, match=f"photos was not written by this tool, .*it holds {min(other)}"), new_folder(target):
        pytest.fail("the work began")
    assert tree(tmp_path) == {f"photos/{name}": text for name, text in other.items()}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is a file"), new_folder(tmp_path / "file"):
        pytest.fail("the work began")
    with pytest.raises(UserError, match="later is a file"), new_folder(tmp_path / "later"):
        (tmp_path / "later").write_text("mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "later", "photos"]


@pytest.mark.usefixtures("any_system")
def test_what_a_user_laid_into_a_folder_or_changed_there_stays(tmp_path: Path) -> None:
    target = write(tmp_path / "exported", a="1", b="1", same="0")
    (target / "notes").mkdir()
    (target / "notes" / "day.txt").write_text("mine")
    (target / "a").write_text("changed")
    (target / "link").symlink_to(tmp_path)
    assert strangers(target) == ["a", "link", "notes"]
    write(target, a="2", c="2", same="0")
    assert {k: v for k, v in tree(target).items() if "link" not in k} == {
        "a": "2", "a.kept": "changed", "c": "2", "same": "0", "notes/day.txt": "mine",
    }  # fmt: skip
    assert (target / "link").readlink() == tmp_path
    remove_folder(target)
    assert sorted(p.name for p in target.iterdir()) == ["a.kept", "link", "notes"]


def test_a_folder_and_a_file_are_written_through_a_link(tmp_path: Path) -> None:
    write(tmp_path / "large-disk" / "set", a="1")
    for name, goal in (("set", "large-disk/set"), ("file", "large-disk/file")):
        (tmp_path / name).symlink_to(goal)
    write(tmp_path / "set", a="2")
    write_file(tmp_path / "file", "2")
    assert (tmp_path / "set").is_symlink() and (tmp_path / "file").is_symlink()
    assert tree(tmp_path / "large-disk") == {"set/a": "2", "file": "2"}


@pytest.mark.parametrize("name", ["checkpoint", "set[1]", "a*", "été"])
def test_leftovers_of_processes_that_ended_are_cleaned_and_nothing_else(tmp_path: Path, name: str) -> None:
    (tmp_path / f".{name}.old-{DEAD}").mkdir()
    (tmp_path / f".{name}.tmp-{DEAD}").mkdir()
    (tmp_path / f".{name}.gone-{DEAD}").mkdir()
    (tmp_path / f".{name}.gone-{DEAD}" / "half").write_text("")
    others = [f".{name}.tmp-notes", f".{name}.tmp-2024", f".{name}.old-1", f".{name}.tmp-{AWAY}", f".{name}2.tmp-{DEAD}"]
    for other in others:
        (tmp_path / other).mkdir()
    assert standing_folder(tmp_path / name) == tmp_path / f".{name}.old-{DEAD}"
    recover_folder(tmp_path / name)
    assert {p.name for p in tmp_path.iterdir()} == {name, *others}
    recover_folder(tmp_path / name, alone=True)  # whoever holds the lock of a run, whose other machine is gone
    assert {p.name for p in tmp_path.iterdir()} == {name, *others} - {f".{name}.tmp-{AWAY}"}
    recover_all(tmp_path)
    assert f".{name}2.tmp-{DEAD}" not in {p.name for p in tmp_path.iterdir()}


def test_what_another_process_is_writing_is_left_to_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from ldm.core.files import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as new: (new / 'a').write_text('1'); print(new, flush=True); input()"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "set")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout
    temporary = Path(writer.stdout.readline().strip())
    recover_folder(tmp_path / "set")
    assert (temporary / "a").read_text() == "1"
    writer.kill()
    writer.communicate()
    recover_folder(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


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


def test_single_files_replace_only_their_own(tmp_path: Path) -> None:
    out = Outputs(tmp_path / "out")
    out.write({"0.png": "a", "1.png": "b", "2.png": "c", "grid.png": "g"})
    (out.folder / "notes.txt").write_text("mine")
    (out.folder / "2.png").write_text("painted over")
    out.write({"0.png": "d", "grid.png": "h"}, stale=frozenset(("0.png", "1.png", "2.png")))
    assert tree(out.folder) == {"0.png": "d", "2.png": "painted over", "grid.png": "h", "notes.txt": "mine"}
    for name in ("2.png", "notes.txt"):
        with pytest.raises(UserError, match=f"{name} is not from this tool, or was changed since"):
            out.write({"0.png": "e", name: "x"})
    assert tree(out.folder)["0.png"] == "d" and set(written_in(out.folder) or ()) == {RECORD, "0.png", "grid.png"}


def fail_at_replacement(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, seen = os.replace, []

    def failing(old: Path, new: Path) -> None:
        seen.append(new)
        if len(seen) == number:
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, "replace", failing)


def test_a_kill_while_single_files_are_written_leaves_them_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is the old one or the new one, and either is this tool's."""
    out = Outputs(tmp_path)
    out.write({"0.png": "a", "1.png": "b"})
    for number in range(1, 5):
        fail_at_replacement(number, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            out.write({"0.png": f"c{number}", "1.png": f"d{number}"})
        monkeypatch.undo()
        out.check("0.png", "1.png")


def test_a_checkpoints_own_files_are_not_those_of_a_script(tmp_path: Path) -> None:
    manifest = {
        "tool": "ldm 0.1.0",
        "files": {"config.yaml": {"bytes": 1, "sha256": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"}},
    }
    (tmp_path / "config.yaml").write_text("a")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert strangers(tmp_path) == []
    with pytest.raises(UserError, match="config.yaml is not from this tool"):
        Outputs(tmp_path).write({"config.yaml": "b"})


def test_no_reader_ever_misses_a_folder_that_is_replaced(tmp_path: Path) -> None:
    """Where the system can exchange two names; before and after each change on disk."""
    target = write(tmp_path / "set", a="1")
    probe = write(tmp_path / "probe", a="1"), write(tmp_path / "probe-2", a="1")
    if not files._exchange(*probe):
        pytest.skip("this file system cannot exchange names")
    watched, is_watching = [], True

    def watching(event: str, details: tuple[object, ...]) -> None:
        if is_watching and event.startswith(("os.", "shutil.", "open")):
            watched.append((target / "a").is_file())

    sys.addaudithook(watching)
    write(target, a="2")
    is_watching = False
    assert len(watched) > 10 and all(watched)
