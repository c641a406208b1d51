"""Training state on disk: all that makes the next step what it would have been.

A state is a folder `step-NNNNNNNN` that appears under its name only when it is complete (temporary folder, fsync, sha256, rename), and only
then is the one before it removed. So a kill or a full disk at any instant leaves a state that loads.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoints.folder import save_archive
from ldm.core.errors import UserError
from ldm.core.files import new_folder, remove_folder, sha256_of, write_file

_NAME = re.compile(r"step-(\d{8})")


def save_state(folder: Path, step: int, content: dict[str, Any]) -> None:
    """Writes the state of a step, then removes older ones."""
    with new_folder(folder / f"step-{step:08d}") as new:
        save_archive(new / "state.pt", content)
        write_file(new / "manifest.json", json.dumps({"step": step, "sha256": sha256_of(new / "state.pt")}))
    for other_step, other in states(folder):
        if other_step != step:
            remove_folder(other)


def load_state(folder: Path, device: torch.device) -> tuple[int, dict[str, Any]] | None:
    """The newest state, or None if there is none.

    Raises:
        UserError: the state was truncated or altered.
    """
    found = states(folder)
    if not found:
        return None
    step, path = found[-1]
    advice = f"restore that folder; or go on from the run's checkpoint in a new --run-dir, with init_from={folder.parent / 'checkpoint'}"
    try:
        wanted = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["sha256"]
        if sha256_of(path / "state.pt") != wanted:
            raise UserError(f"training state {path} was truncated or altered (sha256 differs): {advice}")
        return step, torch.load(path / "state.pt", map_location=device, weights_only=True)
    except UserError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RecursionError, EOFError, pickle.UnpicklingError, RuntimeError) as error:
        raise UserError(f"training state {path} cannot be read ({type(error).__name__}: {error}): {advice}") from error


def mark_published(folder: Path, step: int) -> None:
    """Notes that the loadable checkpoint of a state has been written."""
    write_file(folder / f"step-{step:08d}" / "published", "")


def is_published(folder: Path, step: int) -> bool:
    return (folder / f"step-{step:08d}" / "published").exists()


def states(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of each saved state, the newest last."""
    if not folder.is_dir():
        return []
    return sorted((int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))
