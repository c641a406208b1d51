"""The checkpoint folder: `config.yaml`, `*.safetensors`, `manifest.json`, `README.md`.

A part larger than the size limit is split as `PART-00001-of-00003.safetensors`. The folder appears whole or not at all.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.checkpoints.formats import FORMAT, check_format, upgraded
from ldm.config.loader import UNREADABLE, build
from ldm.core.errors import UserError, unknown
from ldm.core.files import new_folder, recover_folder, sha256_of, standing_folder, write_file
from ldm.core.shipped import locate
from ldm.core.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")
P = ParamSpec("P")
F = TypeVar("F", Path, Path | str)

MANIFEST = "manifest.json"
READINGS = 20  # of a folder that is replaced each time
HEADER_BYTES = 160  # upper bound for a tensor's entry in a file's header, without its name; and for the rest of the header

_PART = re.compile(r"(.+?)(?:-\d{5}-of-\d{5})?\.safetensors")


def write_checkpoint(folder: Path, config_yaml: str, parts: dict[str, dict[str, Tensor]], card: str, max_file_bytes: int = 4 << 30) -> None:
    """Writes or replaces a checkpoint. On an error the previous one stays; see `new_folder` for what is not replaced.

    A part larger than max_file_bytes is split between tensors; a single larger tensor gets a file of its own.

    Raises:
        UserError: a folder that is no checkpoint of this tool; a tensor that is not finite.
        OSError: the disk is full, or the folder may not be written.
    """
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not _is_finite(tensor):
                raise UserError(
                    f"{part}: tensor {name!r} is not finite in {str(tensor.dtype).removeprefix('torch.')}, whose largest number is "
                    f"{torch.finfo(tensor.dtype).max:.4g}: store bf16 or fp32 instead, in training by train.checkpoint_dtype"
                )
    recover_folder(folder)
    with new_folder(folder) as new:
        write_file(new / "config.yaml", config_yaml)
        for part, tensors in parts.items():
            pieces = _split(tensors, max_file_bytes)
            for number, piece in enumerate(pieces, 1):
                name = f"{part}.safetensors" if len(pieces) == 1 else f"{part}-{number:05d}-of-{len(pieces):05d}.safetensors"
                save_tensors(new / name, {key: tensor.detach().cpu().contiguous() for key, tensor in piece.items()})
        files = {f.name: {"bytes": f.stat().st_size, "sha256": sha256_of(f)} for f in sorted(new.iterdir())}
        about = {"format": FORMAT, "tool": f"ldm {__version__}", "card": hashlib.sha256(card.encode()).hexdigest()}
        write_file(new / MANIFEST, json.dumps(about | {"files": files}, indent=1) + "\n")
        write_file(new / "README.md", card)  # not among the files that are verified, so that its owner may edit it


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes contiguous tensors to one file, with metadata for its readers.

    Raises:
        OSError: the disk is full, or the file may not be written.
    """
    try:
        path.touch()  # gives it the permissions of any new file; the library's own is readable by its owner only
        mode = path.stat().st_mode
        save_file(tensors, path, metadata)
        path.chmod(mode)
    except SafetensorError as error:  # safetensors reports errors of the disk so
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def save_archive(path: Path, content: Any) -> None:
    """Writes tensors in torch's own format.

    Raises:
        OSError: the disk is full, or the file may not be written.
    """
    with _Writer(io.FileIO(path, "w")) as file:
        try:
            torch.save(content, file)
        except RuntimeError:  # torch then reports only that its archive is incomplete
            if file.error is None:
                raise
            raise OSError(file.error.errno, file.error.strerror, str(path)) from None


class _Writer(io.BufferedWriter):
    """A file that remembers why it could not be written."""

    error: OSError | None = None

    def write(self, content: Buffer, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.error = error
            raise


def _split(tensors: dict[str, Tensor], max_file_bytes: int) -> list[dict[str, Tensor]]:
    pieces: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() + len(name.encode()) + HEADER_BYTES
        if pieces[-1] and filled + size > max_file_bytes - HEADER_BYTES:
            pieces.append({})
            filled = 0
        pieces[-1][name] = tensor
        filled += size
    return pieces


def read_again(load: Callable[Concatenate[F, P], T]) -> Callable[Concatenate[F, P], T]:
    """A function that reads a checkpoint folder, repeated if the folder was replaced meanwhile: it may have read some of each."""

    @functools.wraps(load)
    def steady(folder: F, /, *arguments: P.args, **keywords: P.kwargs) -> T:
        for _ in range(READINGS):
            before = _seal(folder)
            try:
                found = load(folder, *arguments, **keywords)
            except (UserError, OSError):
                if _seal(folder) == before:
                    raise
            else:
                if _seal(folder) == before:
                    return found
        raise UserError(f"checkpoint {folder} was replaced {READINGS} times while it was read; read it when its run has ended")

    return steady


def _seal(folder: Path | str) -> bytes | None:
    """The manifest, in which are the digests of all files."""
    try:
        return (checkpoint_folder(folder) / MANIFEST).read_bytes()
    except (OSError, ValueError):  # no such file; no such name
        return None


def checkpoint_folder(folder: Path | str) -> Path:
    """The folder, the one that stands in for it while it is replaced, or the shipped one of that name; it may be none of them."""
    return locate(standing_folder(Path(folder)))


@dataclass(frozen=True)
class Checkpoint:
    """An opened, verified checkpoint folder."""

    folder: Path
    config: dict[str, Any]
    files: tuple[str, ...]

    @staticmethod
    @read_again
    def open(folder: Path | str, *, verified: bool = True) -> Checkpoint:
        """Opens a folder and verifies the size and sha256 of every file, unless `verified` is False because only the config is read.

        Raises:
            UserError: no such folder, not a checkpoint, a file missing, truncated or altered.
        """
        folder = checkpoint_folder(folder)
        if not folder.is_dir():
            raise UserError(f"checkpoint {folder}: no such folder. A training run writes one to its RUN_DIR/checkpoint.")
        if not (folder / MANIFEST).is_file():
            inside = [str(folder / name) for name in ("checkpoint", "lora") if (folder / name / MANIFEST).is_file()]
            hint = f"; did you mean {' or '.join(inside)}?" if inside else ""
            raise UserError(f"checkpoint {folder}: it has no manifest.json, so it is not a checkpoint folder of this tool{hint}")
        files = _manifest(folder)
        for name, (size, sha256) in files.items() if verified else ():
            path = folder / name
            if not path.is_file():
                raise UserError(f"checkpoint {folder}: {name} is missing; copy the whole folder again")
            if path.stat().st_size != size:
                raise UserError(f"checkpoint {folder}: {name} has {path.stat().st_size} bytes instead of {size}; copy it again")
            if sha256_of(path) != sha256:
                raise UserError(f"checkpoint {folder}: {name} was altered (its sha256 is not manifest.json's); copy it again")
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        except UNREADABLE as error:
            raise UserError(f"checkpoint {folder}: config.yaml cannot be read ({' '.join(str(error).split())})") from error
        if not isinstance(config, dict):
            raise UserError(f"checkpoint {folder}: config.yaml must be a mapping of keys, found {type(config).__name__}")
        return Checkpoint(folder, upgraded(config), tuple(files))

    def spec(self, schema: type[T]) -> T:
        """The config, typed.

        Raises:
            UserError: it is not of this schema.
        """
        try:
            return build(self.config, schema)
        except UserError as error:
            raise UserError(f"checkpoint {self.folder}: {error}") from error

    def has(self, part: str) -> bool:
        return bool(self._files_of(part))

    def tensors(self, part: str, dtypes: Mapping[str, torch.dtype] | None = None) -> dict[str, Tensor]:
        """All tensors of a part, memory-mapped from its files, on the CPU.

        Args:
            part: its name.
            dtypes: dtype to convert to, by tensor name; the other tensors keep the dtype in which they were saved.

        Raises:
            UserError: the checkpoint has no such part.
        """
        names = self._files_of(part)
        if not names:
            parts = {match[1] for name in self.files if (match := _PART.fullmatch(name))}
            raise unknown(f"part of checkpoint {self.folder}:", part, parts)
        tensors: dict[str, Tensor] = {}
        for name in names:
            try:
                tensors |= _read(self.folder / name, dtypes or {})
            except SafetensorError as error:
                raise UserError(f"checkpoint {self.folder}: {name} cannot be read ({error})") from error
        return tensors

    def _files_of(self, part: str) -> list[str]:
        return sorted(name for name in self.files if (match := _PART.fullmatch(name)) and match[1] == part)


def _manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 of each file."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"checkpoint {folder}: manifest.json is damaged; copy the whole folder again") from error
    check_format(content.get("format", 1), f"checkpoint {folder}")
    for name in files:
        if Path(name).name != name or "\0" in name:
            raise UserError(f"checkpoint {folder}: manifest.json names {name!r}, which is not a file of this folder")
    return files


def _read(file: Path, dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """A file's tensors, memory-mapped. Those to be converted are read one by one, each through a mapping of its own that is closed again:
    so the memory in use never exceeds that of the result by much."""
    tensors = load_file(file)
    for name in [name for name, tensor in tensors.items() if dtypes.get(name, tensor.dtype) != tensor.dtype]:
        with safe_open(file, framework="pt") as opened:
            tensors[name] = opened.get_tensor(name).to(dtypes[name])
    return tensors


def _is_finite(tensor: Tensor) -> bool:
    """Whether all its numbers are; a piece at a time, since torch makes copies for the answer."""
    return all(bool(piece.isfinite().all()) for piece in tensor.reshape(-1).split(1 << 20))


def load_strictly(module: torch.nn.Module, tensors: dict[str, Tensor], what: str, dtypes: Mapping[str, torch.dtype] | None = None) -> None:
    """Loads a module's weights and refuses missing, unexpected and misshapen tensors, and numbers that are not finite.

    Tensors are copied only where their dtype changes: those of a file stay mapped from it, and the module may be on the meta device.

    Args:
        module: gets the weights.
        tensors: by name.
        what: the weights' name in messages.
        dtypes: dtype of each tensor in the module, by name; None = the module's current ones.

    Raises:
        UserError: names the first tensor that does not fit.
    """
    wanted = module.state_dict()
    for name in sorted(wanted.keys() ^ tensors.keys()):
        fault = "missing" if name in wanted else "unexpected"
        raise UserError(f"{what}: tensor {name!r} is {fault}; weights and config do not belong together")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(f"{what}: tensor {name!r} has shape {tuple(tensor.shape)}, the config requires {tuple(wanted[name].shape)}")
        if tensor.device.type != "meta" and not _is_finite(tensor):
            raise UserError(f"{what}: tensor {name!r} holds NaN or infinity, which no training here stores; get the file again")
    dtypes = dtypes or {name: tensor.dtype for name, tensor in wanted.items()}
    module.load_state_dict({name: tensor.to(dtypes[name]) for name, tensor in tensors.items()}, assign=True)
