"""Files that are never half-written: temporary name, fsync, rename."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flushes a file's or folder's contents to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when it is complete; an existing folder of that name is replaced.

    Yields a temporary sibling folder to write into. On an error (disk full, kill) the old folder is untouched. A kill between the two
    renames leaves the old folder under `.NAME.old-*`; `standing_folder` finds it there, and `recover_folder` renames it back.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        sync(temporary)
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        if path.exists():
            os.rename(path, old)
        os.rename(temporary, path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def standing_folder(path: Path) -> Path:
    """The folder; if it is missing, the one that `new_folder` was replacing when it was killed between its two renames."""
    return path if path.exists() else max(path.parent.glob(f".{path.name}.old-*"), default=path)


def recover_folder(path: Path) -> None:
    """Cleans up after a killed `new_folder`: restores the old folder if the new one is missing, and removes temporary files."""
    path = Path(path)
    if not path.parent.is_dir():
        return
    for old in sorted(path.parent.glob(f".{path.name}.old-*")):
        if path.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, path)
    for temporary in path.parent.glob(f".{path.name}.tmp-*"):
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
