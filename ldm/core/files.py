"""Files and folders that are never half-written: temporary name, fsync, rename. Whose they are is asked of `ldm.core.ownership`."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ldm.core.errors import UserError
from ldm.core.ownership import (
    LEFTOVER,
    RECORD,
    Marks,
    check_replaceable,
    fingerprint,
    fingerprint_of,
    fits,
    record,
    record_of,
    recorded_in,
    strangers,
    written_in,
)
from ldm.core.processes import ProcessName

_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE, AT_FDCWD: renameat2(2)
_OPENS_FOLDERS = hasattr(os, "O_DIRECTORY")  # not on Windows, which flushes only what may be written to


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flushes a file's contents to the disk, or a folder's where the system opens folders."""
    if not _OPENS_FOLDERS and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if _OPENS_FOLDERS else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file that appears under its name only when it is complete; through a link it is the link's target.

    Yields a temporary name beside it to write to. Whose the file of that name was, the caller has asked.
    """
    path = _target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # which a failed write does not name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a file whole or not at all, see `new_file`."""
    with new_file(path) as temporary:
        temporary.write_bytes(_encoded(content))


def _encoded(content: bytes | str) -> bytes:
    """Text in UTF-8; bytes of a file's name that are none are escaped, as JSON has it."""
    return content.encode(errors="backslashreplace") if isinstance(content, str) else content


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when it is complete; one that this tool wrote is replaced. Through a link, its target.

    Yields a temporary sibling folder to write into. On an error (disk full, kill) the old folder is untouched. What somebody else laid
    into the old folder, or changed in it, lies in the new one too, as NAME.kept where there is a new file of that name.

    Where the system can exchange two names at once, no reader ever misses the folder. Elsewhere a kill between two renames leaves the old
    one under `.NAME.old-*`; `standing_folder` finds it there, and `recover_folder` renames it back.

    Raises:
        UserError: there is something of that name that this tool did not write.
    """
    path = _target(path)
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if strangers(temporary):  # files that no manifest of their own lists
            write_file(temporary / RECORD, record_of(temporary))
        for file in temporary.rglob("*"):
            sync(file)
        sync(temporary)
        check_replaceable(path)  # again: writing may have taken hours
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    old = _beside(path, "old")
    if not path.exists():
        os.rename(temporary, path)
    elif _exchange(temporary, path):
        os.rename(temporary, old)
    else:
        os.rename(path, old)
        os.rename(temporary, path)
    sync(path.parent)
    if old.exists():
        _retire(old, path)


def remove_folder(path: Path) -> None:
    """Removes a folder's files that this tool wrote, and the folder itself if nothing else is in it."""
    strange = set(strangers(path))
    if not strange:
        _discard(path, path)
        return
    for name in (written_in(path) or {}).keys() - strange:
        (path / name).unlink(missing_ok=True)


def standing_folder(path: Path) -> Path:
    """The folder; if it is missing, the one that `new_folder` was replacing when it was killed between its two renames."""
    path = Path(path)
    return path if path.exists() else max((old for what, old, _ in _leftovers(path.parent, path.name) if what == "old"), default=path)


def recover_folder(path: Path, *, alone: bool = False) -> None:
    """Cleans up after a killed `new_folder`: restores the old folder if the new one is missing, and removes temporary files.

    Args:
        path: the folder.
        alone: whether no other process can be writing it, as the caller holds the lock of the run that it is of. Otherwise what processes
            that still run or are of other machines are writing is left to them.
    """
    path = _target(path)
    for what, leftover, writer in _leftovers(path.parent, path.name):
        if not alone and writer != ProcessName.of_this() and (writer is None or writer.is_alive()):
            continue
        if leftover.is_symlink() or not leftover.is_dir():
            leftover.unlink()
        elif what == "old" and not path.exists():
            os.rename(leftover, path)
        elif what == "gone":
            shutil.rmtree(leftover)
        elif what == "old" or (written_in(leftover) is not None and path.exists()):  # killed after the exchange, it may be the old one
            _retire(leftover, path)
        else:  # a new folder that was never completed
            shutil.rmtree(leftover)


def recover_all(folder: Path, *, alone: bool = False) -> None:
    """`recover_folder` for all that a folder holds or held."""
    for name in sorted({found["name"] for entry in _entries(folder) if (found := LEFTOVER.fullmatch(entry))}):
        recover_folder(folder / name, alone=alone)


class Outputs:
    """Single files that a script writes into a folder where a user's own may lie. `RECORD` says which are the script's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, *names: str) -> None:
        """
        Raises:
            UserError: a file of that name is there that no script wrote, or that somebody changed since.
        """
        recorded = recorded_in(self.folder)
        for name in names:
            path = self.folder / name
            if os.path.lexists(path) and not (name in recorded and fits(path, recorded[name])):
                raise UserError(f"{path} is not from this tool, or was changed since, and would be overwritten; name another folder")

    def write(self, files: Mapping[str, bytes | str], *, stale: frozenset[str] = frozenset()) -> None:
        """Writes files, and removes those of an earlier call that are `stale`, but for those that somebody changed.

        Raises:
            UserError: see `check`.
        """
        self.check(*files)
        contents = {name: _encoded(content) for name, content in files.items()}
        with self._recording({name: fingerprint_of(content) for name, content in contents.items()}, stale - contents.keys()):
            for name, content in contents.items():
                write_file(self.folder / name, content)

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """One file, see `ldm.core.files.new_file`.

        Raises:
            UserError: see `check`.
        """
        self.check(name)
        with ExitStack() as renamed:
            temporary = renamed.enter_context(new_file(self.folder / name))
            yield temporary
            with self._recording({name: fingerprint(temporary)}, frozenset()):
                renamed.close()

    def record(self, names: Iterable[str]) -> None:
        """Lists files that a script has written there by itself; until then they count as somebody else's."""
        before = {name: marks for name, marks in recorded_in(self.folder).items() if fits(self.folder / name, marks)}
        new: dict[str, Marks] = {name: (fingerprint(self.folder / name),) for name in names}
        write_file(self.folder / RECORD, record(before | new))

    @contextmanager
    def _recording(self, new: Mapping[str, str], stale: frozenset[str]) -> Iterator[None]:
        """Records names before their files are written, so that a kill at any moment leaves every file known; then removes stale ones."""
        before = {name: marks for name, marks in recorded_in(self.folder).items() if fits(self.folder / name, marks)}
        either: dict[str, Marks] = {name: (*before.get(name, ()), mark) for name, mark in new.items()}
        write_file(self.folder / RECORD, record(before | either))
        yield
        gone = stale & before.keys()
        for name in gone:
            (self.folder / name).unlink()
        after: dict[str, Marks] = {name: marks for name, marks in before.items() if name not in gone}
        write_file(self.folder / RECORD, record(after | {name: (mark,) for name, mark in new.items()}))


def _target(path: Path) -> Path:
    """Where a path leads: a link stays a link, and what it points to is written."""
    return path.resolve() if (path := Path(path)).is_symlink() else path


def _beside(path: Path, what: str) -> Path:
    """The name beside a path under which this process writes it, or has it until it is removed."""
    writer = ProcessName.of_this()
    return path.with_name(f".{path.name}.{what}-{writer.pid}-{round(writer.started * 100)}-{_place(writer.host, writer.space)}")


def _place(host: str, space: str) -> str:
    return hashlib.sha256(f"{host} {space}".encode()).hexdigest()[:8]


def _entries(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _leftovers(folder: Path, name: str) -> list[tuple[str, Path, ProcessName | None]]:
    """(tmp, old or gone; path; who wrote it) of what writes of that name left, or are leaving; None for a writer elsewhere."""
    here, found = ProcessName.of_this(), []
    for entry in _entries(folder):
        match = LEFTOVER.fullmatch(entry)
        if match is not None and match["name"] == name:
            writer = ProcessName(host=here.host, space=here.space, pid=int(match["pid"]), started=int(match["started"]) / 100)
            is_here = match["place"] == _place(here.host, here.space)
            found.append((match["what"], folder / entry, writer if is_here else None))
    return found


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names at once; False where system or file system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, TypeError):  # macOS, Windows
        return False
    return bool(call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def _retire(old: Path, new: Path) -> None:
    """Removes a folder that was replaced, after what is not this tool's was moved into its successor."""
    for name in strangers(old):
        goal = new / name
        if goal.is_file() and (old / name).is_file() and sha256_of(goal) == sha256_of(old / name):
            continue
        goal.parent.mkdir(parents=True, exist_ok=True)
        number = 0
        while os.path.lexists(goal):
            number += 1
            goal = (new / name).with_name(f"{Path(name).stem}.kept{number if number > 1 else ''}{Path(name).suffix}")
        os.rename(old / name, goal)
    _discard(old, new)


def _discard(folder: Path, of: Path) -> None:
    """Removes a folder in which all is this tool's; under another name, since half of it would not be known as such after a kill."""
    gone = _beside(of, "gone")
    os.rename(folder, gone)
    shutil.rmtree(gone)
