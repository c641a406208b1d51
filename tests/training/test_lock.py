"""One training at a time in a run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ldm.core.errors import UserError
from ldm.core.processes import ProcessName
from ldm.training.lock import NAME, locked, refuse_held

HERE = ProcessName.of_this()
PROGRAM = """
import sys
from pathlib import Path
from ldm.training.lock import locked

with locked(Path(sys.argv[1])):
    print(1, flush=True)
    input()
"""


def stamp(folder: Path, holder: ProcessName) -> None:
    (folder / NAME).write_text(json.dumps({**asdict(holder), "since": "2026-01-02 03:04:05"}))


def test_a_second_training_is_refused_with_host_process_and_time_of_the_first(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout and first.stdout.readline()
    said = rf"in use by another training \(process {first.pid} on host {HERE.host}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\)"
    with pytest.raises(UserError, match=said), locked(tmp_path):
        pytest.fail("it began")
    with pytest.raises(UserError, match=said):
        refuse_held(tmp_path)
    first.kill()
    first.communicate()
    with locked(tmp_path):  # which nobody holds now
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


SLOW = """
import time
from ldm.training import lock

look = lock._refuse_holder
lock._refuse_holder = lambda path, content: (look(path, content), time.sleep(0.5))
"""


def test_of_several_that_start_at_once_one_trains(tmp_path: Path) -> None:
    """Even if all look before the first has written that it is there."""
    stamp(tmp_path, replace(HERE, started=HERE.started - 100))  # a stale lock, which all find
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    several = [subprocess.Popen([sys.executable, "-c", SLOW + PROGRAM, str(tmp_path)], **pipes) for _ in range(4)]
    said = [process.stdout.readline() for process in several]  # a line, or the end
    assert sorted(said) == [b"", b"", b"", b"1\n"]
    for process in several:
        process.communicate(b"\n")
    assert sorted(process.returncode for process in several) == [0, 1, 1, 1]


@pytest.mark.parametrize("holder", [replace(HERE, started=HERE.started + 50), replace(HERE, pid=2**22 + 1)])
def test_a_stale_lock_is_taken_over(tmp_path: Path, holder: ProcessName) -> None:
    """Its process has ended, even if another has its number."""
    stamp(tmp_path, holder)
    with locked(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["started"] == HERE.started
    (tmp_path / NAME).write_text("")  # killed while it took it
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("holder", [replace(HERE, host="elsewhere"), replace(HERE, space="pid:[17]")])
def test_a_lock_of_another_machine_or_container_says_what_to_remove(tmp_path: Path, holder: ProcessName) -> None:
    stamp(tmp_path, holder)
    said = f"process {HERE.pid} on host {holder.host}, since 2026-01-02 03:04:05.*if it has ended, remove {tmp_path / NAME}"
    with pytest.raises(UserError, match=said), locked(tmp_path):
        pytest.fail("it began")
    (tmp_path / NAME).unlink()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("content", ["[]", "{", '{"host": 1}', '{"host":"a","space":"","pid":1e999,"started":0,"since":""}', "[" * 100_000])
def test_a_lock_that_cannot_be_read_says_what_to_remove(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    with pytest.raises(UserError, match=f"{NAME} cannot be read.*remove it"), locked(tmp_path):
        pytest.fail("it began")
    assert (tmp_path / NAME).read_text() == content


def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(content: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(OSError, match="No space left"), locked(tmp_path):
        pytest.fail("it began")
    assert list(tmp_path.iterdir()) == []
