"""What the training scripts share: the config, the run folder, resume, the last line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from ldm.app.config_owner import WHOSE, Owner, owner_of
from ldm.checkpoints.folder import MANIFEST
from ldm.config.loader import UNREADABLE, build, dump, read, to_yaml
from ldm.core.distributed import World, rank_of_this
from ldm.core.errors import UserError
from ldm.core.files import write_file
from ldm.core.ownership import written_in
from ldm.core.precision import check_precision
from ldm.core.reading import read_bytes
from ldm.data.config import DataConfig
from ldm.data.image_dataset import ImageDataset, IndexedDataset
from ldm.data.open import has_held_out_split, open_dataset
from ldm.data.set_index import Index
from ldm.data.text import is_text, shown
from ldm.training.config import TrainConfig
from ldm.training.engine import fit
from ldm.training.lock import locked, refuse_held
from ldm.training.run_folder import NAMES, RunFolder
from ldm.training.state import states
from ldm.training.task import Task

T = TypeVar("T")
MAX_CONFIG = 16 << 20  # bytes
MODELS = ("checkpoint", "checkpoints", "lora")  # of NAMES, what a run leaves for good

# What may change between two sittings of one run, with all keys below each: how long and how carefully it trains, how it computes, and
# what is evaluated, shown and kept. None of it changes what a weight means, or which samples a step sees.
FREE_KEYS = (
    "train.steps",
    "train.optimizer.learning_rate",
    "train.optimizer.warmup_steps",
    "train.optimizer.decay",
    "train.optimizer.final_rate",
    "train.optimizer.clip_norm",
    "train.precision",
    "train.device",
    "train.accumulate",
    "train.parallel",
    "train.channels_last",
    "train.compile",
    "train.deterministic",
    "train.matmul_precision",
    "train.checkpoint_every",
    "train.keep_every",
    "train.keep_best",
    "train.sample_every",
    "train.log_every",
    "train.checkpoint_dtype",
    "train.checkpoint_file_mib",
    "denoiser.attention_backend",
    "denoiser.checkpointing",
    "sampling",
    "prompts",
    "data.val",
    "data.workers",
    "data.max_lost",
    "data.remote_cache",
)


def load_config(
    options: argparse.Namespace, schema: type[T], script: Owner, complete: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> T:
    """The config of the command line.

    Raises:
        UserError: see `ldm.config.loader`; a config of another script is named as such.
    """
    try:
        return build(complete(read_config(options)), schema)
    except UserError as error:
        owner = owner_of(read(options.config))
        if owner is not None and owner != script:
            raise UserError(f"config {options.config} is {WHOSE[owner]}") from error
        raise


def read_config(options: argparse.Namespace) -> dict[str, Any]:
    """The config of the command line as plain data, not yet checked.

    Where a config's held-out pictures are a split of its own `data.train`, another `data.train` on the command line takes `data.val`
    along, and the first process says so: numbers of another set's pictures would say nothing of the model.
    """
    content = read(options.config, options.overrides)
    given = {override.partition("=")[0] for override in options.overrides}
    if "data.train" not in given or "data.val" in given:
        return content
    own = read(options.config).get("data")
    place = content["data"]["train"]
    if not isinstance(own, dict) or not isinstance(place, str) or own.get("val") in (None, place) or own["val"] != own.get("train"):
        return content
    has_split = has_held_out_split(place)
    content["data"]["val"] = place if has_split else None
    if rank_of_this() == 0:
        what = "its held-out split" if has_split else "null, as it has no held-out split (name other held-out pictures by data.val=PLACE)"
        print(f"data.val follows data.train={place}: {what}", flush=True)
    return content


def join_world(config: TrainConfig) -> World:
    """This process among those of `torchrun`, on its device.

    Raises:
        UserError: the device is not there, or cannot compute in the run's precision.
    """
    world = World.join(config.device)
    check_precision(world.device, config.precision)
    return world


def open_data(data: DataConfig, seed: int, world: World) -> tuple[ImageDataset, ImageDataset | None]:
    """The training and the held-out pictures; the first process says what their owner may not expect.

    Raises:
        UserError: see `open_dataset`.
    """
    train_set = open_dataset(data, "train", seed)
    held_out = open_dataset(data, "val", seed) if data.val else None
    if world.is_first:
        for finding in dict.fromkeys(finding for each in (train_set, held_out) if each is not None for finding in each.findings):
            print(finding.line(), flush=True)
        if isinstance(train_set, IndexedDataset) and train_set.buckets:
            print(train_set.buckets, flush=True)
        unused = train_set.source.held_out if data.val is None and isinstance(train_set, IndexedDataset) else 0
        if unused:
            print(f"{unused} held-out pictures of {train_set.name} are not used, since data.val is null", flush=True)
    return train_set, held_out


@contextmanager
def open_run(run_dir: Path, config: Any, world: World) -> Iterator[RunFolder]:
    """The run's folder, locked, checked against the config of the run that is in it, and with the config written.

    A run that ends before its first step, by a mistake in its config say, leaves no config behind.

    Raises:
        UserError: another training holds the folder; it holds a run of another config, or something that training would overwrite.
    """
    run = RunFolder(run_dir, world.is_first)
    with ExitStack() as held:
        world.on_first(lambda: _begin(run, config, held))
        yield run


def _begin(run: RunFolder, config: Any, held: ExitStack) -> None:
    if not is_text(str(run.path)):
        raise UserError(f"--run-dir {shown(run.path)}: TensorBoard's files need a name in UTF-8; name another folder")
    refuse_held(run.path)
    _stored(run, config)  # refuses a folder of something else before anything is written into it
    _refuse_among_pictures(run.path, config)
    if not run.path.exists():
        run.path.mkdir(parents=True)
        held.callback(_remove_if_empty, run.path)
    held.enter_context(locked(run.path))
    run.recover()
    stored = _stored(run, config)
    if stored is not None and (changed := _changes(stored, config)):
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"{run.path} holds a run of another config (differs in {', '.join(changed[:5])}{more}). Give --run-dir another folder, "
            f"or the same config to resume; only {', '.join(_free_in(dump(config)))} may change."
        )
    made = max((step for step, _ in states(run.state_path)), default=0)
    if made > config.train.steps:
        raise UserError(
            f"{run.path} is already at step {made}, past train.steps={config.train.steps}: nothing is changed. Set train.steps to {made} "
            "or more to go on; to train for less, give --run-dir a new folder"
        )
    if not made:
        models = [run.path / name for name in MODELS if (run.path / name).exists()]
        if models:
            raise UserError(
                f"{models[0]} is there, but no state to go on from: training would begin anew and overwrite it. Give --run-dir a new "
                f"folder, where init_from={run.checkpoint_path} starts from its weights"
            )
    path = run.path / "config.yaml"
    before = path.read_bytes() if path.exists() else None
    write_file(path, to_yaml(config))
    held.callback(_forget_unbegun, run, before)


def _stored(run: RunFolder, config: Any) -> Any:
    """The config of the run in a folder, with what keys that are newer than it stand for by default; None if there is no run.

    Raises:
        UserError: the folder holds something that a run would overwrite.
    """
    folder, path = run.path, run.path / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--run-dir {folder} is a file; name a folder")
    if (folder / MANIFEST).exists():
        raise UserError(f"--run-dir {folder} holds a checkpoint, which training would overwrite; name the folder of a run, or a new one")
    is_run = path.is_file() and (run.metrics_path.is_file() or run.state_path.is_dir())
    may_be_there = ("config.yaml", *MODELS) if path.exists() else ()  # of which more is said where the config is known to be a run's
    for name in () if is_run else NAMES:
        if (folder / name).exists() and name not in may_be_there and not (name == "latents" and written_in(folder / name)):
            raise UserError(
                f"--run-dir {folder} holds {name!r}, which training would overwrite, and is not a run's (which has a config.yaml, and a "
                "metrics.jsonl or a state): name the folder of a run, or a new one"
            )
    if not path.exists():
        return None
    try:
        text = read_bytes(path, MAX_CONFIG).decode()
        stored = yaml.safe_load(text)
        if not isinstance(stored, dict):
            raise ValueError(f"it is no mapping but {type(stored).__name__}")
    except UNREADABLE as error:
        if is_run:
            raise UserError(f"{path}, of the run, cannot be read ({error}): put it back as it was, or name another --run-dir") from error
        stored = None
    try:
        built = build(stored, type(config))
        if not is_run and to_yaml(built) != text:
            raise UserError("not as a run writes it")
        return dump(built)
    except UserError as error:
        if is_run:
            return stored
        raise UserError(
            f"--run-dir {folder} holds the config.yaml of something else, which training would overwrite; "
            "name the folder of a run, or a new one"
        ) from error


def _refuse_among_pictures(folder: Path, config: Any) -> None:
    """Refuses, by UserError, a run in a plain folder of training pictures, which its sample grids would join."""
    for key in ("train", "val"):
        place = Path(getattr(config.data, key) or "/dev/null").expanduser()
        if place.is_dir() and place.resolve() in (folder.resolve(), *folder.resolve().parents) and not Index.is_in(place):
            raise UserError(f"--run-dir {folder} lies in data.{key}={place}, whose pictures its own would join: name a folder elsewhere")


def _forget_unbegun(run: RunFolder, before: bytes | None) -> None:
    """Puts the config's file back as it was, if no step was made."""
    path = run.path / "config.yaml"
    if not run.metrics_path.exists() and not states(run.state_path):
        if before is None:
            path.unlink(missing_ok=True)
        else:
            write_file(path, before)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def finish(task: Task, train: TrainConfig, run: RunFolder, seed: int, world: World, *, retry_lost: bool) -> None:
    """Trains and says where the results are; see `fit`."""
    try:
        if world.is_first:
            print((run.path / "config.yaml").read_text(encoding="utf-8"), flush=True)
        done = fit(task, train, run, seed, world, retry_lost=retry_lost)
        if world.is_first:
            print(f"{'done' if done else 'stopped'}: checkpoint in {run.checkpoint_path}, curves and samples in {run.path}", flush=True)
    finally:
        world.leave()


def choose_kernels(train: TrainConfig) -> None:
    """Of GPUs, the fastest that a run allows: see `TrainConfig`."""
    torch.backends.cudnn.deterministic = train.deterministic
    torch.backends.cudnn.benchmark = not train.deterministic
    torch.use_deterministic_algorithms(train.deterministic)
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as torch's notes on reproducibility ask for
    torch.set_float32_matmul_precision(train.matmul_precision)


def _changes(stored: Any, config: Any) -> list[str]:
    """Keys that differ and may not."""
    return [key for key in _differences(stored, dump(config)) if not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)]


def _free_in(config: Any) -> list[str]:
    """Those of FREE_KEYS that a config has."""

    def has(content: Any, key: str) -> bool:
        first, _, rest = key.partition(".")
        return isinstance(content, dict) and first in content and (not rest or has(content[first], rest))

    return [key for key in FREE_KEYS if has(config, key)]


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return found
    return [] if old == new else [path]
