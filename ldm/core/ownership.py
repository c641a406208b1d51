"""Whose files: only what this tool wrote, as a manifest beside it says, is ever replaced or removed.

Checkpoints, prepared sets, latent caches and training states have manifests of their own. In any other folder that a script writes to,
`RECORD` is the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ldm.core.errors import UserError
from ldm.core.version import __version__

RECORD = ".ldm-written.json"
TOOL = "ldm"  # the tool's name in a manifest, before its version
SMALL = 4 << 20  # bytes; of a larger file only the size is compared: nobody edits weights by hand, and reading them takes minutes


# Of what a write leaves if it is killed: whose name it was to have, and the process that wrote it.
LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<what>tmp|old|gone)-(?P<pid>\d{1,9})-(?P<started>\d{1,12})-(?P<place>[0-9a-f]{8})", re.DOTALL)

Marks = tuple[str, ...]
"""By what a file is known again: its `fingerprint`; two while it is replaced; none where its name suffices."""


def fingerprint(path: Path) -> str:
    """Hex sha256 of a small file's content, the size of a large one."""
    size = path.stat().st_size
    return _large(size) if size > SMALL else fingerprint_of(path.read_bytes())


def fingerprint_of(content: bytes) -> str:
    """What `fingerprint` gives of a file with this content."""
    return _large(len(content)) if len(content) > SMALL else hashlib.sha256(content).hexdigest()


def written_in(folder: Path) -> dict[str, Marks] | None:
    """What this tool wrote into a folder, by relative name, as the manifests in it say; None if it has none of this tool's."""
    found = [listed for name in MANIFESTS if (listed := _listed(folder, name)) is not None]
    return {name: marks for listed in found for name, marks in listed.items()} if found else None


def recorded_in(folder: Path) -> dict[str, Marks]:
    """The single files that scripts wrote into a folder, by relative name."""
    return {name: marks for name, marks in (_listed(folder, RECORD) or {}).items() if name != RECORD}


def fits(path: Path, marks: Marks) -> bool:
    """Whether a file is as it was written; without marks, whether it is there."""
    return path.is_file() and not path.is_symlink() and (not marks or fingerprint(path) in marks)


def _listed(folder: Path, manifest: str) -> dict[str, Marks] | None:
    """What one manifest lists, with itself; None if there is none of that name, or it is somebody else's."""
    if not (folder / manifest).is_file():  # a pipe has its reader wait for ever
        return None
    try:
        content = json.loads((folder / manifest).read_text(encoding="utf-8"))
        listed: dict[str, Marks] = MANIFESTS[manifest](content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    return {manifest: (), **listed} if all(_is_inside(name) for name in listed) else None


def strangers(folder: Path) -> list[str]:
    """What in a folder this tool did not write, or somebody changed since: relative names, of a folder without own files the folder's."""
    written = written_in(folder) or {}
    own = {name for name, marks in written.items() if fits(folder / name, marks)}
    holds_own = {str(parent) for name in own for parent in PurePosixPath(name).parents}

    def below(place: Path) -> Iterable[str]:
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            name = (Path(entry.path)).relative_to(folder).as_posix()
            if name in holds_own and not entry.is_symlink():
                yield from below(Path(entry.path))
            elif name not in own and not (entry.is_file(follow_symlinks=False) and LEFTOVER.fullmatch(entry.name)):
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
    return record({path.relative_to(folder).as_posix(): (fingerprint(path),) for path in files})


def record(files: Mapping[str, Marks]) -> str:
    """The content of a `RECORD`."""
    return json.dumps({"tool": f"{TOOL} {__version__}", "files": dict(sorted(files.items()))}, ensure_ascii=False, indent=1) + "\n"


def _large(size: int) -> str:
    return f"{size} bytes"


def _is_inside(name: str) -> bool:
    place = PurePosixPath(name)
    return bool(name) and "\0" not in name and not place.is_absolute() and ".." not in place.parts


def _of_record(content: Any) -> dict[str, Marks]:
    return {name: tuple(map(str, marks)) for name, marks in _from_here(content)["files"].items()}


def _of_checkpoint(content: Any) -> dict[str, Marks]:
    card = content.get("card")  # the README's sha256; older manifests lack it
    files = {name: _marks(file) for name, file in _from_here(content)["files"].items()}
    return files | {"README.md": () if card is None else (str(card),)}


def _of_state(content: Any) -> dict[str, Marks]:
    """In states of earlier releases, one file held all."""
    if content.keys() == {"step", "sha256"}:
        return {"state.pt": (), "published": ()}
    if content.keys() != {"step", "files"}:
        raise ValueError
    return {name: _marks(file) for name, file in content["files"].items()} | {"published": ()}


def _of_set(content: Any) -> dict[str, Marks]:
    shards = [shard for split in content["splits"].values() for shard in split]
    sizes = content.get("sizes", {}).values()  # sets of earlier releases have none
    return {file["name"]: _marks(file) for file in (*sizes, *(file for shard in shards for file in _files_of(shard)))}


def _files_of(shard: Any) -> tuple[Any, ...]:
    """A shard and its index; in sets of earlier releases, index.json had its records."""
    if "index" in shard:
        return shard, shard["index"]
    return (shard,) if isinstance(shard["records"], dict) else ()


def _of_arrays(content: Any) -> dict[str, Marks]:
    """Of a cache of latents; earlier releases had an array a file."""
    if "shards" in content:
        return {name: () for name in _from_here(content)["shards"]}
    if not {"key", "views", "count", "rows"} <= content.keys():
        raise ValueError
    return {f"{array}.npy": () for array in content["arrays"]}


def _from_here(content: Any) -> Any:
    if str(content["tool"]).split()[:1] != [TOOL]:
        raise ValueError
    return content


def _marks(file: Any) -> Marks:
    size = int(file["bytes"])
    return (_large(size) if size > SMALL else str(file["sha256"]),)


def _of_manifest(content: Any) -> dict[str, Marks]:
    return _of_state(content) if "step" in content else _of_checkpoint(content)


MANIFESTS = {RECORD: _of_record, "manifest.json": _of_manifest, "index.json": _of_set, "meta.json": _of_arrays}
