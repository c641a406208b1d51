"""Checksums of files, remembered: names, sizes and times are the quick test, contents decide."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from ldm.core.cache import cache_folder
from ldm.core.errors import UserError
from ldm.core.files import write_file
from ldm.data.sources.layout import File
from ldm.data.text import shown

READERS = 8  # threads: hashing leaves the interpreter to the others


def checksums(folder: Path, split: str, files: Sequence[File]) -> list[str]:
    """Of each file's content.

    All are read once; as long as the folder, the files' names, inodes, sizes and times stay the same they are known from then on.

    Raises:
        UserError: a file that cannot be read.
    """
    facts = _hash([(str(file.path), file.identity) for file in files])
    known = cache_folder("checksums") / f"{_hash((str(folder.resolve()), split))}.json"
    found: list[str]
    try:
        kept = json.loads(known.read_text(encoding="utf-8"))
        found = kept["checksums"] if kept["facts"] == facts else []
        if len(found) == len(files):
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not known yet, or cut off: read below
    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(lambda file: _of_file(folder / file.path), files)
        found = list(_progress(read, len(files), folder))
    try:
        write_file(known, json.dumps({"facts": facts, "checksums": found}))
    except OSError as error:
        tqdm.write(f"the files' checksums could not be kept in {known.parent} ({error.strerror}); every start reads {shown(folder)} whole")
    return found


def _hash(facts: object) -> str:
    return hashlib.sha256(repr(facts).encode(errors="surrogateescape")).hexdigest()


def _of_file(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror})") from None


def _progress(found: Iterable[str], count: int, folder: Path) -> Iterable[str]:
    return tqdm(found, total=count, desc=f"reading {shown(folder.name)} once", unit=" files", delay=2.0, leave=False)
