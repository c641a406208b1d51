"""Archives as a package registry has them."""

from __future__ import annotations

import io
import tarfile


def npm_archive(files: dict[str, bytes]) -> bytes:
    """What `npm pack` makes of files, by their paths in the package."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
