"""What comes with the tool, the shipped model and the configs, found from any working directory."""

from __future__ import annotations

from pathlib import Path

FOLDERS = ("checkpoints", "configs")

_INSTALLED = Path(__file__).parents[1] / "shipped"  # where the wheel has them (pyproject.toml)
ROOT = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2]
"""The folder that FOLDERS lie in: of the installed package, or the checkout."""


def locate(path: Path) -> Path:
    """The path if anything is there; else what comes with the tool under that name, such as `checkpoints/emoji`; else the path."""
    if path.is_absolute() or path.parts[:1] not in [(folder,) for folder in FOLDERS] or ".." in path.parts or path.exists():
        return path
    shipped = ROOT / path
    return shipped if shipped.exists() else path
