"""Packages of the npm registry, fetched for the files they carry; nothing of them is ever run."""

from __future__ import annotations

import hashlib
import tarfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.core.errors import UserError
from ldm.core.files import write_file

REGISTRY = "https://registry.npmjs.org"
WAIT = 60.0  # seconds without a byte


@dataclass(frozen=True, kw_only=True)
class NpmPackage:
    """A package of one version.

    Attributes:
        name: e.g. "@iconify-json/noto".
        version: e.g. "1.2.9".
        sha256: of its archive.
    """

    name: str
    version: str
    sha256: str

    @property
    def archive(self) -> str:
        """The name that `npm pack` gives its archive."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def url(self) -> str:
        return f"{REGISTRY}/{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"

    def fetch(self, cache: Path) -> Path:
        """Its archive in a folder, downloaded if it is not there.

        Raises:
            UserError: it cannot be downloaded, or is another file than the one that is expected.
        """
        path = cache / self.archive
        if not path.is_file():
            try:
                with urllib.request.urlopen(self.url, timeout=WAIT) as answer:
                    content = answer.read()
            except OSError as error:
                raise UserError(
                    f"{self.url} cannot be downloaded ({error}); if this machine is offline, get the file elsewhere and put it into {cache}"
                ) from None
            self._check(content, self.url)
            cache.mkdir(parents=True, exist_ok=True)
            write_file(path, content)
        self._check(path.read_bytes(), str(path))
        return path

    def _check(self, content: bytes, place: str) -> None:
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise UserError(f"{place} is not {self.name} {self.version} (sha256); delete it and run again")

    def read(self, cache: Path, members: Sequence[str]) -> list[bytes]:
        """Files of its archive, by their paths in the package.

        Raises:
            UserError: see `fetch`; one is not there.
        """
        found: dict[str, bytes] = {}
        with tarfile.open(self.fetch(cache)) as archive:
            for entry in archive:
                name = entry.name.partition("/")[2]
                if name in members and (file := archive.extractfile(entry)) is not None:
                    found[name] = file.read()
        missing = [name for name in members if name not in found]
        if missing:
            raise UserError(f"{self.name} {self.version} has no {', '.join(missing)}")
        return [found[name] for name in members]
