"""Kills at changes on the disk, and full disks: the same command again ends as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import torch
from home import STEPS, Home
from trial import Killer, Trial, script

from ldm.app.arguments import prepare_data, train_ldm, train_vae
from ldm.checkpoints.folder import Checkpoint
from ldm.core.distributed import World
from ldm.core.files import standing_folder
from ldm.data.record import Record
from ldm.data.sources.shards import open_indexed
from ldm.training.state import open_state

ALONE = World(0, 1, torch.device("cpu"))
MAINS = {"vae": train_vae.main, "ldm": train_ldm.main}


def kills(home: Home, number: int) -> list[Trial]:
    """Kills of both trainings and of a preparing over an older set, spread evenly over all changes that they make on the disk."""
    found = []
    for which in MAINS:
        found += [_killed_training(home, which, at) for at in _spread(_changes_of_training(home, which), number * 2 // 5)]
    return found + [_killed_preparing(home, at) for at in _spread(_changes_of_preparing(home), number - len(found))]


def _spread(total: int, number: int) -> list[int]:
    return [1 + total * i // number for i in range(number)] if total > number else list(range(1, total + 1))


def _counter(under: Path, found: list[str]) -> Killer:
    return lambda event, path: found.append(event) if path.is_relative_to(under) else None


def _killer(under: Path, at: int) -> Killer:
    """Kills before the change of that number."""
    numbers = count(1)

    def before_change(event: str, path: Path) -> None:
        if path.is_relative_to(under) and next(numbers) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return before_change


def _counted(log: Path, under: Path, run: Callable[[Killer], int]) -> int:
    """How many changes a script makes under a folder; it writes their number into a file, since it is another process."""
    numbers, tally = count(1), log.with_suffix(".tally")

    def before_change(event: str, path: Path) -> None:
        if path.is_relative_to(under):
            os.write(handle, f"{next(numbers)}\n".encode())

    handle = os.open(tally, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    assert run(before_change) == 0, log.read_text()
    os.close(handle)
    return len(tally.read_text().splitlines())


def _words(home: Home, which: str, run: Path) -> list[str]:
    return ["--config", str(home.vae if which == "vae" else home.ldm), "--run-dir", str(run)]


def _changes_of_training(home: Home, which: str) -> int:
    run, log = home.scratch / f"{which}-counted", home.scratch / f"{which}-counted.log"
    return _counted(log, run, lambda tell: script(MAINS[which], _words(home, which, run), log, before_change=tell))


def _same(one: Path, other: Path) -> str:
    """Whether two runs ended alike, to the bit, and left nothing else."""
    states = [open_state(run / "state", ALONE) for run in (one, other)]
    if any(state is None or state.step != STEPS for state in states):
        return f"{other}: not at step {STEPS}"
    wanted, found = (state.tensors() for state in states if state)
    for name in sorted(wanted.keys() | found.keys()):
        if name not in wanted or name not in found or not torch.equal(wanted[name], found[name]):
            return f"{other}: {name} differs"
    here = (*other.iterdir(), *(other / "state").iterdir())
    leftovers = [path.name for path in here if path.name.startswith(".") and ".tmp-" in path.name]
    if leftovers:
        return f"{other}: {leftovers[0]} is left"
    Checkpoint.open(other / "checkpoint")
    for file in (one / "checkpoint").glob("*.safetensors"):
        if file.read_bytes() != (other / "checkpoint" / file.name).read_bytes():
            return f"{other}: checkpoint {file.name} differs"
    return "right"


def _whole(home: Home, which: str) -> Path:
    return home.vae_run if which == "vae" else home.ldm_run


def _killed_training(home: Home, which: str, at: int) -> Trial:
    def check() -> str:
        run, log = home.scratch / f"{which}-killed-{at}", home.scratch / "killed.log"
        code = script(MAINS[which], _words(home, which, run), log, before_change=_killer(run, at))
        if code != -signal.SIGKILL:
            return f"was not killed, but ended with {code}"
        if script(MAINS[which], _words(home, which, run), log) != 0:
            return f"does not go on: {log.read_text().strip()[-200:]}"
        found = _same(_whole(home, which), run)
        shutil.rmtree(run)
        return found

    return Trial(f"train_{which} killed before its change {at} on the disk", check)


def _prepare(home: Home, out: Path, *more: str) -> list[str]:
    return [str(home.photos), "--out", str(out), *more]


def _records(out: Path) -> dict[str, Record]:
    source = open_indexed(standing_folder(out), "train")
    return {source.key(number): source.record(number) for number in range(len(source))}


def _old_set(home: Home, name: str) -> Path:
    out, log = home.scratch / name, home.scratch / f"{name}.log"
    assert script(prepare_data.main, _prepare(home, out, "--size", "10"), log) == 0, log.read_text()
    return out


def _changes_of_preparing(home: Home) -> int:
    out, log = _old_set(home, "prepared-counted"), home.scratch / "prepared-counted.log"
    return _counted(log, home.scratch, lambda tell: script(prepare_data.main, _prepare(home, out), log, before_change=tell))


def _killed_preparing(home: Home, at: int) -> Trial:
    def check() -> str:
        out, log = _old_set(home, f"prepared-{at}"), home.scratch / "prepared.log"
        old = _records(out)
        if script(prepare_data.main, _prepare(home, out), log, before_change=_killer(home.scratch, at)) != -signal.SIGKILL:
            return "was not killed"
        between = _records(out)
        if script(prepare_data.main, _prepare(home, out), log) != 0:
            return f"does not go on: {log.read_text().strip()[-200:]}"
        new = _records(out)
        shutil.rmtree(out)
        return "right" if between in (old, new) and new != old else "what can be read after the kill is neither the old set nor the new one"

    return Trial(f"prepare_data killed before its change {at} on the disk", check)


@contextmanager
def _disk(path: Path, size: int) -> Iterator[None]:
    """A tmpfs of so many bytes; needs to be root."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)
        path.rmdir()


def full_disks(home: Home, number: int) -> list[Trial]:
    """Both trainings on disks of sizes up to what each needs."""
    found = []
    for which in MAINS:
        needed = sum(path.stat().st_size for path in _whole(home, which).rglob("*") if path.is_file()) * 2
        sizes = [max(4096, needed * i // (number // 2)) for i in range(number // 2)]
        found += [_full_disk(home, which, size) for size in sizes]
    return found


def _full_disk(home: Home, which: str, size: int) -> Trial:
    def check() -> str:
        place, log = home.scratch / f"disk-{which}-{size}", home.scratch / "disk.log"
        with _disk(place, size):
            run = place / "run"
            code = script(MAINS[which], _words(home, which, run), log)
            said = log.read_text()
            if code == 2 and "disk full" not in said:
                return f"says something else: {said.strip()[-200:]}"
            if code == 2 and (run / "state").exists():
                open_state(run / "state", ALONE)  # what was saved is whole
            subprocess.run(["mount", "-o", f"remount,size={1 << 30}", place], check=True)
            if script(MAINS[which], _words(home, which, run), log) != 0:
                return f"does not go on: {log.read_text().strip()[-200:]}"
            found = _same(_whole(home, which), run)
            return "reported" if code == 2 and found == "right" else found

    return Trial(f"train_{which} on a disk of {size} bytes", check)


def can_mount(home: Home) -> bool:
    """Whether small disks can be made here."""
    if os.geteuid() != 0:
        return False
    try:
        with _disk(home.scratch / "tried", 1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
