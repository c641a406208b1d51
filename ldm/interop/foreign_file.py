"""Other tools' weight files, read without running anything in them: without it, importing a downloaded file could run its author's code.

A pickle can call any function. It is read by `torch.load(weights_only=True)`, which admits tensors and plain values; beside them only the
globals in STAND_INS are admitted, and an inert object takes the place of each. Tensors are memory-mapped.
"""

from __future__ import annotations

import pickletools
import re
import struct
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
STAND_INS = (  # objects in published checkpoints beside the tensors; not needed here
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
MAX_FILE_BYTES = 64 << 30
MAX_PICKLE_BYTES = 64 << 20  # of the tensors' description, without their numbers: 1 MB in the largest published files
MAX_ENTRIES = 100_000


class Inert:
    """Takes the place of the globals in STAND_INS: accepts any arguments and state, and stores none."""

    def __new__(cls, *_: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        return

    def __setstate__(self, _: Any) -> None:
        return


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, by name, memory-mapped.

    Raises:
        UserError: no such file; unknown format; damaged; too large; a pickle with a global that is not admitted.
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
            raise UserError(f"{path}: cannot be read ({error_text(error)}); get it again") from error
    return _state_of(_unpickled(path), path)


def _unpickled(path: Path) -> Any:
    _check_archive(path)
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in STAND_INS]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:  # a hostile pickle can cause any exception
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise UserError(
                f"{path}: names {named[1]}, which is not a tensor and not admitted; nothing was run. A file with weights only is needed"
            ) from error
        raise UserError(f"{path}: cannot be read ({error_text(error)}); nothing was run. Get it again, best as .safetensors") from error


def _check_archive(path: Path) -> None:
    """Refuses an archive that torch did not write: entries with paths outside it, compressed entries, entries larger than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path}: is not an archive of torch ({error_text(error)}); it is truncated, or older than torch 1.6: load and save it again"
        ) from error
    if len(entries) > MAX_ENTRIES:
        raise UserError(f"{path}: has {len(entries)} entries; at most {MAX_ENTRIES} are read")
    for entry in entries:
        place = PurePosixPath(entry.filename)
        if place.is_absolute() or ".." in place.parts or "\\" in entry.filename:
            raise UserError(f"{path}: names {entry.filename!r}, outside of itself: it is not an archive of torch; nothing was unpacked")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path}: {entry.filename} is compressed: it is not an archive of torch")
        if place.name.endswith(".pkl") and entry.file_size > MAX_PICKLE_BYTES:
            raise UserError(f"{path}: {entry.filename} has {entry.file_size >> 20} MiB; at most {MAX_PICKLE_BYTES >> 20} are read")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise UserError(f"{path}: its entries are larger than itself: it is damaged")
    with zipfile.ZipFile(path) as archive:
        for entry in entries:
            _check_entry(archive, entry, path)


def _check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    """Reads an entry once: torch itself compares no checksums, so a flipped bit would come in as another weight. A pickle that makes byte
    arrays, which may be of any size, is refused."""
    try:
        with archive.open(entry) as file:
            if entry.filename.endswith(".pkl"):
                for _, argument, _ in pickletools.genops(file.read()):
                    if isinstance(argument, str) and "bytearray" in argument:
                        raise UserError(f"{path}: names bytearray, which weights do not need; nothing was run")
            while file.read(1 << 24):
                pass
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: {entry.filename} is not what was written there (checksum); get the file again") from error
    except (ValueError, IndexError, struct.error, OverflowError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: {entry.filename} cannot be read ({error_text(error)}); get the file again") from error


def _state_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: those under `state_dict`, as Lightning writes them, or the whole content."""
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{path}: holds no tensors by name")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: {str(name)[:80]!r} is not a tensor's name, or holds {type(value).__name__}; weights only are needed")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise UserError(f"{path}: {name} is not an ordinary tensor ({value.layout}, {value.dtype}, {value.device})")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {name}, of shape {tuple(value.shape)}, repeats fewer numbers than it has; weights are not stored so")
    return dict(state)


def error_text(error: Exception) -> str:
    """An error's message, shortened to fit in a line."""
    return shortened(str(error)) or type(error).__name__


def shortened(text: str, length: int = 160) -> str:
    """A text in one line, cut to `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."
