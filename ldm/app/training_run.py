"""What the training scripts share: the config, the run folder, resume, the last line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from ldm.checkpoints.folder import MANIFEST
from ldm.config.loader import build, dump, load, to_yaml
from ldm.core.errors import UserError
from ldm.data.config import DataConfig
from ldm.data.image_dataset import ImageDataset
from ldm.data.open import open_dataset
from ldm.training.config import TrainConfig
from ldm.training.distributed import World
from ldm.training.engine import Task, fit
from ldm.training.run_folder import RunFolder

T = TypeVar("T")

# What may change between two sittings of one run.
FREE_KEYS = ("train.steps", "train.checkpoint_every", "train.keep_every", "train.sample_every", "train.checkpoint_file_mib", "data.workers")


def load_config(options: argparse.Namespace, schema: type[T]) -> T:
    """The config of the command line."""
    return load(options.config, schema, options.overrides)


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
    return train_set, held_out


def open_run(run_dir: Path, config: Any, world: World) -> RunFolder:
    """The run's folder, checked against the config of the run that is in it.

    Raises:
        UserError: the folder holds a run of another config, or something else.
    """
    run = RunFolder(run_dir, world.is_first)
    before = run_dir / "config.yaml"
    is_run = run.metrics_path.is_file() or run.state_path.is_dir()
    if (run_dir / MANIFEST).exists() or (before.exists() and not is_run):
        what = "a checkpoint" if (run_dir / MANIFEST).exists() else "the config.yaml of something else"
        raise UserError(f"--run-dir {run_dir} holds {what}, which training would overwrite; name the folder of a run, or a new one")
    if before.is_file() and run.state_path.is_dir():
        changed = [key for key in _differences(_with_defaults(before, config), dump(config)) if not key.startswith(FREE_KEYS)]
        if changed:
            raise UserError(
                f"{run_dir} holds a run of another config (differs in {', '.join(changed[:5])}). Give --run-dir another folder, "
                f"or the same config to resume; only {', '.join(FREE_KEYS)} may change."
            )
    if world.is_first:
        run_dir.mkdir(parents=True, exist_ok=True)
    world.wait()
    return run


def finish(task: Task, train: TrainConfig, run: RunFolder, config: Any, seed: int, world: World) -> None:
    """Trains and says where the results are."""
    try:
        if world.is_first:
            print(to_yaml(config), flush=True)
        done = fit(task, train, run, to_yaml(config), seed, world)
        if world.is_first:
            print(f"{'done' if done else 'stopped'}: checkpoint in {run.checkpoint_path}, curves and samples in {run.path}", flush=True)
    finally:
        world.leave()


def use_deterministic_kernels() -> None:
    """The same run twice gives the same bits."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def _with_defaults(path: Path, config: Any) -> Any:
    """A run's stored config, with what keys that are newer than the run stand for by default; as it is, if it cannot be read so."""
    stored = yaml.safe_load(path.read_text())
    try:
        return dump(build(stored, type(config)))
    except UserError:
        return stored


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(old.keys() | new.keys()):
            found += _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return found
    return [] if old == new else [path]
