"""Where what can be computed or downloaded again is kept, for all runs of a user."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """`$LDM_CACHE/NAME`, or `~/.cache/ldm/NAME`."""
    return Path(os.environ.get("LDM_CACHE") or Path.home() / ".cache" / "ldm").expanduser() / name
