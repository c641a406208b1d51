"""Whose files: only what this tool wrote, as a manifest beside it says, is ever replaced or removed.

Checkpoints, prepared sets, latent caches and training states have manifests of their own. In any other folder that a script writes to,
`RECORD` is the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ldm.core.errors import UserError
from ldm.core.version import __version__

RECORD = ".ldm-written.json"
TOOL = "ldm"  # the tool's name in a manifest, before its version
SMALL = 4 << 20  # bytes; of a larger file only the size is compared: nobody edits weights by hand, and reading them takes minutes


@dataclass(frozen=True, kw_only=True)
class Mark:
    """By what a file is known again: its size, its hex sha256 (one of several while it is replaced); None = its name suffices."""

    size: int | None = None  # in bytes
    sha256: tuple[str, ...] | None = None

    @staticmethod
    def of(content: bytes) -> Mark:
        return Mark(size=None, sha256=(hashlib.sha256(content).hexdigest(),))

    def fits(self, path: Path) -> bool:
        """Whether a file is as it was written."""
        if not path.is_file() or path.is_symlink():
            return False
        size = path.stat().st_size
        if self.size not in (None, size):
            return False
        return self.sha256 is None or size > SMALL or hashlib.sha256(path.read_bytes()).hexdigest() in self.sha256


def written_in(folder: Path) -> dict[str, Mark] | None:
    """What this tool wrote into a folder, by relative name, as the manifests in it say; None if it has none of this tool's."""
    found = [listed for name in MANIFESTS if (listed := _listed(folder, name)) is not None]
    return {name: mark for listed in found for name, mark in listed.items()} if found else None


def recorded_in(folder: Path) -> dict[str, Mark]:
    """The single files that scripts wrote into a folder, by relative name."""
    return {name: mark for name, mark in (_listed(folder, RECORD) or {}).items() if name != RECORD}


def is_recorded(path: Path) -> bool:
    """Whether a script wrote this file, and nobody has changed it since."""
    mark = recorded_in(path.parent).get(path.name)
    return mark is not None and mark.fits(path)


def _listed(folder: Path, manifest: str) -> dict[str, Mark] | None:
    """What one manifest lists, with itself; None if there is none of that name, or it is somebody else's."""
    try:
        content = json.loads((folder / manifest).read_text(encoding="utf-8"))
        listed: dict[str, Mark] = MANIFESTS[manifest](content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    return {manifest: Mark(), **listed} if all(_is_inside(name) for name in listed) else None


def strangers(folder: Path) -> list[str]:
    """What in a folder this tool did not write, or somebody changed since: relative names, of a folder without own files the folder's."""
    written = written_in(folder) or {}
    own = {name for name, mark in written.items() if mark.fits(folder / name)}
    holds_own = {str(parent) for name in own for parent in PurePosixPath(name).parents}

    def below(place: Path) -> Iterable[str]:
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            name = (Path(entry.path)).relative_to(folder).as_posix()
            if name in holds_own and not entry.is_symlink():
                yield from below(Path(entry.path))
            elif name not in own:
                yield name

    return list(below(folder))


def check_replaceable(path: Path) -> None:
    """
    Raises:
        UserError: there is a file, or a folder with something in it, that is not known as this tool's.
    """
    if path.is_dir():
        if written_in(path) is None and (found := strangers(path)):
            raise UserError(
                f"{path} was not written by this tool, and would be replaced (it holds {found[0]}): name another folder, or move it away"
            )
    elif path.exists():
        raise UserError(f"{path} is a file, where a folder is to be written: name another, or move it away")


def record_of(folder: Path) -> str:
    """The content of a `RECORD` for all files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return record({path.relative_to(folder).as_posix(): _measured(path) for path in files})


def record(files: Mapping[str, Mark]) -> str:
    """The content of a `RECORD`."""
    plain = {name: {"bytes": mark.size, "sha256": mark.sha256} for name, mark in sorted(files.items())}
    return json.dumps({"tool": f"{TOOL} {__version__}", "files": plain}, ensure_ascii=False, indent=1) + "\n"


def _measured(path: Path) -> Mark:
    size = path.stat().st_size
    return Mark(size=size, sha256=None if size > SMALL else Mark.of(path.read_bytes()).sha256)


def _is_inside(name: str) -> bool:
    place = PurePosixPath(name)
    return bool(name) and "\0" not in name and not place.is_absolute() and ".." not in place.parts


def _of_record(content: Any) -> dict[str, Mark]:
    return {name: _mark(file) for name, file in _from_here(content)["files"].items()}


def _of_checkpoint(content: Any) -> dict[str, Mark]:
    card = content.get("card")  # the README's sha256; older manifests lack it
    files = {name: _mark(file) for name, file in _from_here(content)["files"].items()}
    return files | {"README.md": Mark(sha256=None if card is None else (str(card),))}


def _of_state(content: Any) -> dict[str, Mark]:
    if content.keys() != {"step", "sha256"}:
        raise ValueError
    return {"state.pt": Mark(), "published": Mark()}


def _of_set(content: Any) -> dict[str, Mark]:
    shards = [shard for split in content["splits"].values() for shard in split]
    return {shard["name"]: _mark(shard) for shard in shards if isinstance(shard["records"], dict)}


def _of_latents(content: Any) -> dict[str, Mark]:
    if not {"key", "views", "count", "rows"} <= content.keys():
        raise ValueError
    return {f"{array}.npy": Mark() for array in content["arrays"]}


def _from_here(content: Any) -> Any:
    if str(content["tool"]).split()[:1] != [TOOL]:
        raise ValueError
    return content


def _mark(file: Any) -> Mark:
    size, sha256 = file["bytes"], file["sha256"]
    known = None if sha256 is None else (sha256,) if isinstance(sha256, str) else tuple(map(str, sha256))
    return Mark(size=None if size is None else int(size), sha256=known)


def _of_manifest(content: Any) -> dict[str, Mark]:
    return _of_state(content) if "step" in content else _of_checkpoint(content)


MANIFESTS = {RECORD: _of_record, "manifest.json": _of_manifest, "index.json": _of_set, "meta.json": _of_latents}
