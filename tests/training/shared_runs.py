"""Runs by 1, 2 and 3 processes, which are forked from one that has imported everything: of a tiny autoencoder, with its adversary, and of a
tiny diffusion model whose weights, moments and average are shared out.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from tasks import autoencoder_task, diffusion_task, numbers_of, train_config
from torch import nn

from ldm.core.distributed import World
from ldm.core.files import write_file
from ldm.training.config import ParallelConfig
from ldm.training.engine import _Engine, fit
from ldm.training.parallel import own, share_out, whole, write
from ldm.training.run_folder import RunFolder
from ldm.training.state import Progress, open_state, save_state

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


RESUMED = (  # what was begun, and by how many processes and in which way it goes on
    ("fsdp-3", "fsdp", 1),
    ("fsdp-2", "fsdp", 2),
    ("fsdp-3", "fsdp", 2),
    ("fsdp-3", "ddp", 2),
    ("fsdp-3", "fsdp", 3),
    ("fsdp-2", "fsdp", 3),
    ("ddp-2", "fsdp", 3),
)


def train_diffusion(folder: Path, kind: Literal["ddp", "fsdp"], steps: int, world: World) -> None:
    config = train_config(steps=steps, sample_every=STEPS, parallel=ParallelConfig(kind=kind))
    assert fit(diffusion_task(world, config), config, RunFolder(folder, world.is_first), 0, world)


def begin_diffusion(folder: Path, world: World) -> None:
    """As `begin`; by two processes also with all weights in each."""
    train_diffusion(folder / f"whole-fsdp-{world.size}", "fsdp", STEPS, world)
    train_diffusion(folder / f"cut-fsdp-{world.size}", "fsdp", SAVED, world)
    if world.size == 2:
        train_diffusion(folder / "cut-ddp-2", "ddp", SAVED, world)


def go_on_with_diffusion(folder: Path, world: World) -> None:
    """With what two and three began; three also write and read a weight of which one of them has nothing."""
    for cut, kind, size in RESUMED:
        if size == world.size:
            run = folder / f"{cut}-by-{kind}-{world.size}"
            world.on_first(functools.partial(copy, folder / f"cut-{cut}", run))
            train_diffusion(run, kind, STEPS, world)
    if world.size == 3:
        _few_rows(folder / "few-rows", world)
        _measure(folder, world)


def _measure(folder: Path, world: World) -> None:
    """The bytes that each process has after a step, by what they are of."""
    config = train_config(parallel=ParallelConfig(kind="fsdp"))
    task = diffusion_task(world, config)
    engine = _Engine(task, config, RunFolder(folder, False), 0, world)
    numbers_of(engine, 1, next(task.batches(1)))
    found: Counter[str] = Counter()
    for name, tensor in engine.learned.tensors().items():
        found[name.partition("/")[0]] += own(tensor).nbytes
    found["gradients"] = sum(part.grad.nbytes for group in engine.shared.values() for part in group.own if part.grad is not None)
    of_all = world.of_all(dict(found))
    world.on_first(lambda: write_file(folder / "bytes.json", json.dumps(of_all)))


def _few_rows(folder: Path, world: World) -> None:
    """Fewer than there are processes, of a weight and its average, which the first saves at the end as they were read."""
    modules = [nn.Sequential(nn.ModuleList([nn.Linear(5, 2, bias=False)])) for _ in range(2)]
    share_out(*modules, world)
    weight, average = (next(module.parameters()) for module in modules)
    write(torch.arange(10.0).reshape(2, 5), weight)
    write(torch.arange(10.0, 20.0).reshape(2, 5), average)
    save_state(folder, 1, {"weight": weight.detach(), "average": average}, Progress(data="", scaler={}, texts={}), world)
    own(weight).zero_()
    own(average).zero_()
    saved = open_state(folder, world)
    assert saved
    saved.read({"weight": weight.detach(), "average": average}, world)
    with whole(modules[1:]):
        found = [weight.full_tensor().detach(), next(modules[1].parameters()).detach()]
        world.on_first(lambda: torch.save(found, folder / "found.pt"))


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
