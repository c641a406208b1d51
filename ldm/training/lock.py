"""One training at a time in a run folder."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ldm.core.errors import UserError
from ldm.core.processes import ProcessName

try:
    import fcntl
except ImportError:  # Windows

    def _hold(handle: int) -> None:
        """Nothing: then only the instant of taking is unguarded."""
else:

    def _hold(handle: int) -> None:
        with contextlib.suppress(OSError):  # a network file system without it: as on Windows
            fcntl.flock(handle, fcntl.LOCK_EX)


NAME = ".ldm-lock.json"
LONGEST = 1 << 16  # bytes that are read of it
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder; a lock whose process has ended is taken over.

    Raises:
        UserError: another process holds it, or may, since it is of another machine.
    """
    path = folder / NAME
    _take(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def refuse_held(folder: Path) -> None:
    """
    Raises:
        UserError: see `locked`.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(folder / NAME, "rb") as file:
        _refuse_holder(folder / NAME, file.read(LONGEST))


def holder_of(folder: Path) -> ProcessName | None:
    """The process that holds a folder, or held it when it was killed; None if none does, or what is there cannot be read."""
    try:
        with open(folder / NAME, "rb") as file:
            return _holder(file.read(LONGEST))[0]
    except (OSError, *UNREADABLE):
        return None


def _take(path: Path) -> None:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        with open(handle, "r+b", buffering=0) as file:
            _hold(handle)
            if not (path.exists() and os.path.samestat(path.stat(), os.fstat(handle))):
                continue  # whoever held it has just removed it
            _refuse_holder(path, file.read(LONGEST))
            file.seek(0)
            file.truncate()
            try:
                file.write(json.dumps({**asdict(ProcessName.of_this()), "since": time.strftime("%Y-%m-%d %H:%M:%S")}).encode())
            except OSError:  # the disk is full
                path.unlink()
                raise
            return


def _refuse_holder(path: Path, content: bytes) -> None:
    if not content:
        return  # killed while it took the lock
    try:
        holder, since = _holder(content)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read: if no training runs in that folder, remove it") from error
    alive = holder.is_alive()
    who = f"process {holder.pid} on host {holder.host}, since {since}"
    if alive:
        raise UserError(f"{path.parent} is in use by another training ({who}): wait for it, stop it, or give --run-dir another folder")
    if alive is None:
        raise UserError(
            f"{path.parent} is in use by a training elsewhere ({who}). Whether that still runs cannot be seen from here: "
            f"if it has ended, remove {path}; otherwise give --run-dir another folder"
        )


def _holder(content: bytes) -> tuple[ProcessName, str]:
    """Who holds a lock, and since when."""
    plain = json.loads(content)
    name = ProcessName(host=str(plain["host"]), space=str(plain["space"]), pid=int(plain["pid"]), started=float(plain["started"]))
    return name, str(plain["since"])
