"""Training state on disk: all that makes the next step what it would have been.

A state is a folder `step-NNNNNNNN` that appears under its name only when it is complete (temporary folder, fsync, sha256, rename), and only
then is the one before the last removed. So a kill or a full disk at any instant leaves a state that loads.

Its tensors are written and read by `torch.distributed.checkpoint`: each process writes a part, and any number of processes reads it. They
lie in safetensors files, all else is JSON: nothing is unpickled. States of earlier releases (`ldm.training.earlier_state`) are read too.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ldm.config.loader import build, dump
from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.core.files import new_folder, remove_folder, sha256_of, write_file
from ldm.training.earlier_state import FILE, read_earlier
from ldm.training.parallel import write

KEPT = 2  # states, the newest ones
FILE_BYTES = 256 << 20  # of tensors in a file, which is put together in memory; a larger tensor has one of its own
MANIFEST, PROGRESS = "manifest.json", "progress.json"

_NAME = re.compile(r"step-(\d{8})")
_DAMAGE = (
    OSError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    RecursionError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
    UserError,
)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What of a state is no tensor.

    Attributes:
        data: digest of the training data.
        lost: (epoch, shard) of what could not be had.
        places: (reader, turn, offset) of all readers of a stream, see `ImageDataset.places`.
        undone: steps.
        scaler: of the losses, in fp16.
        texts: what else modules have in their state dict, by name.
    """

    data: str
    lost: tuple[tuple[int, str], ...] = ()
    places: tuple[tuple[int, int, int], ...] = ()
    undone: tuple[int, ...] = ()
    scaler: dict[str, int | float]
    texts: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """A state whose digests are right.

    Attributes:
        step: after which it was saved.
        path: its folder.
        progress: see there.
        layout: shape and dtype of each tensor.
        held: the tensors of an earlier release's state, in memory; None = they are read from files when they are wanted.
    """

    step: int
    path: Path
    progress: Progress
    layout: dict[str, tuple[torch.Size, torch.dtype]]
    held: Mapping[str, Tensor] | None = None

    def renamed(self, names: Mapping[str, str]) -> SavedState:
        """With what optimizers remember by their weights' names; for an earlier release's state. names: by the numbers' names."""

        def name(old: str) -> str:
            of, slash, part = old.rpartition("/")
            return f"{names.get(of, of)}{slash}{part}"

        layout = {name(old): value for old, value in self.layout.items()}
        return replace(self, layout=layout, held=self.held and {name(old): value for old, value in self.held.items()})

    def read(self, tensors: dict[str, Tensor], world: World) -> None:
        """Overwrites tensors with those saved under their names, whatever number of processes saved them.

        Raises:
            UserError: the state has others.
        """
        for name in sorted(tensors.keys() ^ self.layout.keys()):
            raise _refusal(self.path, f"tensor {name!r} is {'missing' if name in tensors else 'unexpected'}")
        for name, tensor in tensors.items():
            if (tensor.shape, tensor.dtype) != self.layout[name]:
                shape, dtype = self.layout[name]
                raise _refusal(
                    self.path, f"tensor {name!r} is {tuple(shape)}, {dtype}, where {tuple(tensor.shape)}, {tensor.dtype} is needed"
                )
        if self.held is not None:
            for name, tensor in tensors.items():
                write(self.held[name], tensor)
            return
        try:
            with _without_hints():
                load(tensors, storage_reader=HuggingFaceStorageReader(str(self.path)), process_group=world.host, no_dist=world.size == 1)
        except CheckpointException as error:
            raise _refusal(self.path, _first_failure(error)) from error

    def tensors(self) -> dict[str, Tensor]:
        """All of them, whole, on the CPU."""
        found = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in self.layout.items()}
        self.read(found, World(0, 1, torch.device("cpu")))
        return found


class _Contiguous(DefaultSavePlanner):
    """Safetensors files hold tensors in the order of their dimensions; they are read into whatever order is in use."""

    def resolve_data(self, write_item: WriteItem) -> Any:
        data = super().resolve_data(write_item)
        return data.contiguous() if isinstance(data, Tensor) else data


def save_state(folder: Path, step: int, tensors: dict[str, Tensor], progress: Progress, world: World) -> None:
    """Writes the state of a step, then removes all older ones but the last. All processes call it, with the same tensors or shards of them.

    Raises:
        OSError: the disk is full, or the folder may not be written; in the first process, and the others end without a word.
    """
    with ExitStack() as made:
        begun: list[str] = []
        world.on_first(lambda: begun.append(str(made.enter_context(new_folder(folder / f"step-{step:08d}")))))
        new = Path(world.of_all(begun)[0][0])
        writer = HuggingFaceStorageWriter(str(new), fqn_to_index_mapping=_files(tensors), save_distributed=True)
        try:
            with _without_hints():
                save(tensors, storage_writer=writer, planner=_Contiguous(), process_group=world.host, no_dist=world.size == 1)
        except CheckpointException as error:
            if not world.is_first:
                sys.exit(2)
            raise _first_failure(error) from error
        written = sorted(new.glob("*.safetensors"))[world.rank :: world.size]
        files = [pair for pairs in world.of_all([(file.name, _marks(file)) for file in written]) for pair in pairs]

        def finish() -> None:
            write_file(new / PROGRESS, json.dumps(dump(progress)))
            listed = dict(sorted([*files, (PROGRESS, _marks(new / PROGRESS))]))
            write_file(new / MANIFEST, json.dumps({"step": step, "files": listed}))
            made.close()
            others = [path for _, path in states(folder) if path.name != f"step-{step:08d}"]
            for path in others[: 1 - KEPT]:
                remove_folder(path)

        world.on_first(finish)


def open_state(folder: Path, world: World) -> SavedState | None:
    """The newest state, or None if there is none. All processes call it; the first reads all of it for its digests.

    Raises:
        UserError: the state was truncated or altered; in the first process alone, the others just end.
    """
    found = states(folder)
    if not found:
        return None
    step, path = found[-1]
    world.on_first(lambda: _verify(path))
    try:
        if _is_earlier(_manifest(path)):
            held, plain = read_earlier(path)
            layout = {name: (tensor.shape, tensor.dtype) for name, tensor in held.items()}
            return SavedState(step=step, path=path, progress=build(plain, Progress, FILE), layout=layout, held=held)
        progress = build(json.loads((path / PROGRESS).read_text(encoding="utf-8")), Progress, PROGRESS)
        return SavedState(step=step, path=path, progress=progress, layout=_layout(path))
    except _DAMAGE as error:
        raise _refusal(path, error) from error


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


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number, from 1, of the file that each tensor goes to."""
    numbers, number, filled = {}, 1, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if filled and filled + size > FILE_BYTES:
            number, filled = number + 1, 0
        numbers[name] = number
        filled += size
    return numbers


def _marks(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256_of(file)}


def _manifest(path: Path) -> Any:
    return json.loads((path / MANIFEST).read_text(encoding="utf-8"))


def _is_earlier(manifest: Any) -> bool:
    """Whether an earlier release wrote the state, all of it into one file."""
    return bool(manifest.keys() == {"step", "sha256"})


def _verify(path: Path) -> None:
    try:
        content = _manifest(path)
        if _is_earlier(content):
            altered = [] if sha256_of(path / FILE) == content["sha256"] else [FILE]
        else:
            files = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in content["files"].items()}
            if not files.keys() >= {PROGRESS, *(file.name for file in path.glob("*.safetensors"))}:
                raise ValueError("manifest.json does not list all of its files")
            altered = [name for name, marks in files.items() if tuple(_marks(path / Path(name).name).values()) != marks]
    except _DAMAGE as error:
        raise _refusal(path, error) from error
    if altered:
        raise UserError(f"training state {path} was truncated or altered ({altered[0]} is not as it was written): {_advice(path)}")


def _layout(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """
    Raises:
        ValueError: the pieces of a tensor do not make up a whole.
    """
    layout = {}
    for name, tensor in sorted(HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata.items()):
        assert isinstance(tensor, TensorStorageMetadata)
        if sum(piece.sizes.numel() for piece in tensor.chunks) != tensor.size.numel():
            raise ValueError(f"tensor {name!r} is not whole")
        layout[name] = tensor.size, tensor.properties.dtype
    return layout


def _refusal(path: Path, error: Exception | str) -> UserError:
    what = str(error) if isinstance(error, str | UserError) else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return UserError(f"training state {path} cannot be read ({what}): {_advice(path)}")


def _advice(path: Path) -> str:
    """What to do about a state that cannot be read."""
    before = [other for _, other in states(path.parent) if other.name < path.name]
    earlier = f"or remove it to go on from {before[-1].name} beside it; " if before else ""
    checkpoint = path.parent.parent / "checkpoint"
    return f"restore that folder; {earlier}or go on from the run's checkpoint in a new --run-dir, with init_from={checkpoint}"


def _first_failure(error: CheckpointException) -> Exception:
    """Of any process; a full disk before what followed from it."""
    failures = [failure for failure, _ in error.failures.values() if isinstance(failure, Exception)]
    return next((failure for failure in failures if isinstance(failure, OSError)), failures[0])


@contextmanager
def _without_hints() -> Iterator[None]:
    """What torch says of its own code, and of a world of one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        yield
