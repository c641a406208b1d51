"""Tiny runs of the training scripts, on ten coloured squares in two class folders, for the tests of this folder.

Scripts run in processes of their own, forked from one that has imported everything, so that a process costs what it does and no more.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

import ldm.app.sample
import ldm.app.train_classifier
import ldm.app.train_ldm
import ldm.app.train_vae  # noqa: F401 - imported for the processes that are forked
from ldm.core.distributed import World
from ldm.training.state import open_state

ROOT = Path(__file__).parents[2]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tiny_runs", "torch.utils.tensorboard", "matplotlib.pyplot"])

VAE = """
name: tiny-vae
data: {train: null, val: null, size: 16}
first_stage: {kind: kl, channels: 16, multipliers: [1, 2], blocks: 1, latent_channels: 2, dropout: 0.1}
loss: {perceptual_weight: 0, disc_start: 4, disc_layers: 1, disc_channels: 8}
train: {steps: 12, batch_size: 4, checkpoint_every: 3, sample_every: 100, optimizer: {learning_rate: 1.0e-3}}
"""
LDM = """
name: tiny-ldm
data: {train: null, val: null, size: 16, cache_views: 2}
first_stage: {checkpoint: null}
denoiser:
  {kind: unet, channels: 32, multipliers: [1, 2], blocks: 1, attention: [], transformer_depth: 0, heads: 2, vector_width: 8, dropout: 0.1}
process: discrete_vp
prediction: eps
weighting: constant
conditioning: {class: {kind: class_label, width: 8}}
sampling: {sampler: ddim, steps: 2}
train: {steps: 12, batch_size: 4, checkpoint_every: 3, sample_every: 100, optimizer: {learning_rate: 1.0e-3}}
"""
PIXELS = """
name: tiny-pixels
data: {train: null, val: null, size: 8}
first_stage: {kind: identity}
denoiser: {kind: unet, channels: 32, multipliers: [1, 2], blocks: 1, attention: [], transformer_depth: 0, heads: 2, vector_width: null}
process: {kind: discrete_vp, spacing: cosine}
prediction: v
weighting: min_snr
conditioning: {}
sampling: {sampler: ddim, steps: 8, guidance: 1}
train: {steps: 120, batch_size: 8, ema_decay: 0.95, checkpoint_every: 500, sample_every: 500, optimizer: {learning_rate: 3.0e-3}}
"""
CLASSIFIER = """
name: tiny-classifier
data: {train: null, val: null, size: 16, cache_views: 2}
first_stage: {checkpoint: null}
network: {channels: 16, multipliers: [1, 2], blocks: 1, attention: [], heads: 2, dropout: 0.1}
process: discrete_vp
train: {steps: 12, batch_size: 4, checkpoint_every: 3, sample_every: 100, optimizer: {learning_rate: 1.0e-3}}
"""
SCRIPTS = {
    "vae": ("train_vae", VAE),
    "ldm": ("train_ldm", LDM),
    "pixels": ("train_ldm", PIXELS),
    "classifier": ("train_classifier", CLASSIFIER),
}


def write_squares(folder: Path) -> Path:
    """Ten squares on coloured ground, in folders that are their classes."""
    for number in range(10):
        picture = Image.new("RGB", (20, 20), (25 * number, 255 - 25 * number, 90))
        ImageDraw.Draw(picture).rectangle((number, 3, number + 8, 15), fill=(255, 200, 25 * number))
        path = folder / ("even" if number % 2 else "odd") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return folder


def arguments(which: str, run: Path, data: Path, *changes: str) -> list[str]:
    """The command line of the training script of a tiny run; the config is written beside the run's folder."""
    config = run.with_name(f"{run.name}.yaml")
    config.write_text(SCRIPTS[which][1])
    return ["--config", str(config), "--run-dir", str(run), f"data.train={data}", *changes]


Mishap = tuple[signal.Signals, str]
"""A signal that a process sends to itself just before it renames or removes a file or folder whose name starts with a text."""


def start(
    script: str, words: list[str], log: Path, *, threads: int = 1, mishap: Mishap | None = None, environment: Mapping[str, object] = {}
) -> BaseProcess:
    """A script in a process of its own, whose output is added to a file."""
    variables = {"CUDA_VISIBLE_DEVICES": "", **{name: str(value) for name, value in environment.items()}}
    process = FORKS.Process(target=_main, args=(script, words, str(log), threads, mishap, variables), daemon=True)
    process.start()
    return process


def start_two(script: str, words: list[str], log: Path) -> list[BaseProcess]:
    """A script in two processes with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2}
    return [start(script, words, log, environment={"RANK": rank, "LOCAL_RANK": rank, **world}) for rank in range(2)]


def finish(process: BaseProcess, log: Path, code: int = 0) -> None:
    """Waits for a process that is to end with an exit code."""
    process.join(500)
    assert process.exitcode == code, log.read_text()[-2000:]
    process.close()


def _main(script: str, words: list[str], log: str, threads: int, mishap: Mishap | None, environment: dict[str, str]) -> None:
    with open(log, "a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.update(environment)
    torch.set_num_threads(threads)
    if mishap:
        sys.addaudithook(lambda event, details: _happen(event, details, *mishap))
    sys.argv = [str(ROOT / "scripts" / f"{script}.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _happen(event: str, details: tuple[Any, ...], sent: signal.Signals, name: str) -> None:
    if event in ("os.rename", "shutil.rmtree") and Path(details[0]).name.startswith(name) and os.path.exists(details[0]):
        os.kill(os.getpid(), sent)


def state(run: Path, step: int) -> dict[str, Tensor]:
    """Live and averaged weights and optimizer moments after the last step, by name."""
    saved = open_state(run / "state", World(0, 1, torch.device("cpu")))
    assert saved and saved.step == step
    return saved.tensors()


def checkpoint(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder."""
    return {f"{file.name}.{name}": value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def metrics(run: Path) -> list[dict[str, float]]:
    """One row a step."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
