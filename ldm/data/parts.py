"""What was looked at of a set that is being prepared, on the disk until the set is finished.

A set is prepared in chunks, of some records each. Each chunk's records, as they are to be stored, and what was seen of them, are a file in
`OUT.parts`, beside the folder OUT that the set will be. So the same command goes on after a kill, and several machines that share a file
system can each do a part. What is written of the chunks in the end does not depend on who looked at which.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ldm.core.errors import UserError
from ldm.core.files import write_file
from ldm.core.ownership import LEFTOVER
from ldm.core.version import __version__
from ldm.data.checksum import checksum
from ldm.data.record import Record
from ldm.data.report import Report

FORMAT = 1
PLAN, SUFFIX = "parts.json", ".part"


class Page(NamedTuple):
    """A record as it is to be stored, or one page of its picture, with checksum and fingerprint of the picture as it was."""

    record: Record
    digest: str
    fingerprint: int | None


Pages = list[Page]
Chunk = tuple[list[Pages], Report]
"""The pages of each of its records, and what was seen of them."""


class Parts:
    """The folder of the chunks of one set."""

    def __init__(self, out: Path, what: object) -> None:
        """
        Args:
            out: the folder that the set will be.
            what: all that the chunks depend on: the source's files, the options.

        Raises:
            UserError: there are chunks of another source or of other options, or a folder of something else.
        """
        self.folder = out.with_name(f"{out.name}.parts")
        digest = hashlib.sha256(repr((FORMAT, what)).encode(errors="backslashreplace")).hexdigest()
        plan = {"tool": f"ldm {__version__}", "parts_of": digest}
        path = self.folder / PLAN
        if not path.exists() and not any(not name.startswith(".") for name in self._names()):  # one that begins there too may write it now
            write_file(path, json.dumps(plan))
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError):
            raise UserError(f"{self.folder} is not what this script was preparing: move it away, or give --out another name") from None
        if found != plan:
            raise UserError(
                f"{self.folder} holds parts of another preparing (the source changed since, or options or release are others): give the "
                "same command to go on, or remove that folder to begin anew"
            )

    def _names(self) -> list[str]:
        return sorted(os.listdir(self.folder)) if self.folder.is_dir() else []

    def path(self, split: str, number: int) -> Path:
        """The file of a chunk."""
        return self.folder / f"{split}-{number:06d}{SUFFIX}"

    def write(self, path: Path, chunk: Chunk) -> None:
        """One chunk, whole or not at all."""
        records, report = chunk
        contents: list[bytes] = []

        def put(content: bytes) -> int:
            contents.append(content)
            return len(content)

        plain = {"records": [[_plain(page, put) for page in pages] for pages in records], "report": report.plain(put)}
        head = json.dumps(plain).encode()
        body = b"".join((len(head).to_bytes(8, "little"), head, *contents))
        write_file(path, bytes.fromhex(checksum(body)) + body)

    def read(self, path: Path) -> Chunk | None:
        """A chunk; None if its file is damaged."""
        content = path.read_bytes()
        body = memoryview(content)[8:]
        if bytes.fromhex(checksum(body)) != content[:8]:
            return None
        start = 8 + int.from_bytes(body[:8], "little")
        plain = json.loads(bytes(body[8:start]))

        def take(size: int) -> bytes:
            nonlocal start
            start += size
            return bytes(body[start - size : start])

        records = [[_page(page, take) for page in pages] for pages in plain["records"]]
        return records, Report.of_plain(plain["report"], take)

    def remove(self) -> None:
        """Removes the chunks, which are in the set now, and the folder if nothing else is in it."""
        for name in self._names():
            if name.endswith(SUFFIX) or LEFTOVER.fullmatch(name):
                (self.folder / name).unlink()
        (self.folder / PLAN).unlink()
        if not self._names():
            self.folder.rmdir()


def _plain(page: Page, put: Callable[[bytes], int]) -> dict[str, Any]:
    record = page.record
    return {
        "digest": page.digest,
        "fingerprint": page.fingerprint,
        "key": record.key,
        "place": record.place,
        "suffix": record.suffix,
        "captions": record.captions,
        "label": record.label,
        "boxes": record.boxes,
        "attributes": dict(record.attributes),
        "image": put(record.image),
        "mask": None if record.mask is None else put(record.mask),
        "map": None if record.map is None else put(record.map),
    }


def _page(plain: dict[str, Any], take: Callable[[int], bytes]) -> Page:
    record = Record(key=plain["key"], place=plain["place"], suffix=plain["suffix"], image=take(plain["image"]), label=plain["label"])
    record = replace(
        record,
        captions=tuple(plain["captions"]),
        mask=None if plain["mask"] is None else take(plain["mask"]),
        map=None if plain["map"] is None else take(plain["map"]),
        boxes=tuple((int(kind), left, top, right, bottom) for kind, left, top, right, bottom in plain["boxes"]),
        attributes=plain["attributes"],
    )
    return Page(record, plain["digest"], plain["fingerprint"])
