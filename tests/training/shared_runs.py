"""Runs of a tiny autoencoder, with its adversary, by 1, 2 and 3 processes, which are forked from one that has imported everything."""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from tasks import autoencoder_task, train_config

from ldm.training.distributed import World
from ldm.training.engine import fit
from ldm.training.run_folder import RunFolder

SIZES = (1, 2, 3)
SAVED, STEPS = 1, 3
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["shared_runs", "torch.utils.tensorboard", "matplotlib.pyplot"])


def train(folder: Path, steps: int, world: World) -> None:
    config = train_config(steps=steps)
    assert fit(autoencoder_task(world, config), config, RunFolder(folder, world.is_first), 0, world)


def begin(folder: Path, world: World) -> None:
    """A run without a break, and one that is stopped before."""
    train(folder / f"whole-{world.size}", STEPS, world)
    train(folder / f"cut-{world.size}", SAVED, world)


def go_on(folder: Path, world: World) -> None:
    """With what one, two and three processes began."""
    for size in SIZES:
        run = folder / f"cut-{size}-by-{world.size}"
        world.on_first(functools.partial(copy, folder / f"cut-{size}", run))
        train(run, STEPS, world)


def copy(folder: Path, to: Path) -> None:
    shutil.copytree(folder, to)


def together(size: int, work: Callable[[Path, World], None], folder: Path) -> None:
    """Some work, in so many processes with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [FORKS.Process(target=_work, args=(rank, size, port, work, folder), daemon=True) for rank in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(200)
        assert process.exitcode == 0


def _work(rank: int, size: int, port: int, work: Callable[[Path, World], None], folder: Path) -> None:
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in values.items()})
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    world = World.join("cpu")
    work(folder, world)
    world.leave()
