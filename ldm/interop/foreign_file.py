"""Other tools' weight files, read without trusting them: mapped into memory, and nothing in them is ever run.

A pickle can name any function and have it called. It is read by `torch.load(weights_only=True)`, whose reader knows tensors and plain
values; beside them only the globals of STAND_INS may be named, and what stands in for them takes anything and does nothing.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ldm.core.errors import UserError

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", *PICKLES)
STAND_INS = (  # what published checkpoints hold beside tensors; none of it is of use here
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
MAX_FILE_BYTES = 64 << 30
MAX_PICKLE_BYTES = 64 << 20  # what describes the tensors, without their numbers: a megabyte in the largest published files
MAX_ENTRIES = 100_000


class Inert:
    """Stands in for the globals of STAND_INS: made of anything, set to anything, holds nothing."""

    def __new__(cls, *_: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        return

    def __setstate__(self, _: Any) -> None:
        return


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, by name; their numbers stay on the disk until they are read.

    Raises:
        UserError: no such file; no format that is known; damaged; too large; a pickle that names what is not admitted.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of file {path.suffix!r}; {', '.join(SUFFIXES)} can be read")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UserError(f"{path}: has {size >> 30} GiB; at most {MAX_FILE_BYTES >> 30} are read")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path}: cannot be read ({said(error)}); get it again") from error
    return _state_of(_unpickled(path), path)


def _unpickled(path: Path) -> Any:
    _check_archive(path)
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in STAND_INS]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:  # a hostile pickle can make its reader raise anything
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise UserError(
                f"{path}: names {named[1]}, which is no tensor and not admitted; nothing was run. A file with weights only is needed"
            ) from error
        raise UserError(f"{path}: cannot be read ({said(error)}); nothing was run. Get it again, best as .safetensors") from error


def _check_archive(path: Path) -> None:
    """Refuses an archive that is none of torch's: entries that would lie outside it, are compressed, or larger than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path}: is no archive of torch ({said(error)}); it is truncated, or older than torch 1.6: load and save it there again"
        ) from error
    if len(entries) > MAX_ENTRIES:
        raise UserError(f"{path}: has {len(entries)} entries; at most {MAX_ENTRIES} are read")
    for entry in entries:
        place = PurePosixPath(entry.filename)
        if place.is_absolute() or ".." in place.parts or "\\" in entry.filename:
            raise UserError(f"{path}: names {entry.filename!r}, outside of itself: it is no archive of torch; nothing was unpacked")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path}: {entry.filename} is compressed: it is no archive of torch")
        if place.name.endswith(".pkl") and entry.file_size > MAX_PICKLE_BYTES:
            raise UserError(f"{path}: {entry.filename} has {entry.file_size >> 20} MiB; at most {MAX_PICKLE_BYTES >> 20} are read")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise UserError(f"{path}: its entries are larger than itself: it is damaged")


def _state_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: under `state_dict`, as Lightning has them, or all there is."""
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{path}: holds no tensors by name")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: {str(name)[:80]!r} is no tensor's name, or holds {type(value).__name__}; weights only are needed")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise UserError(f"{path}: {name} is not an ordinary tensor ({value.layout}, {value.dtype}, {value.device})")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {name}, of shape {tuple(value.shape)}, repeats fewer numbers than it has; no weights are stored so")
    return dict(state)


def said(error: Exception) -> str:
    """What an error says, as text that fits into a line."""
    return shortened(str(error)) or type(error).__name__


def shortened(text: str, length: int = 160) -> str:
    """A text that fits into a line."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."
