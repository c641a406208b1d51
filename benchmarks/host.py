"""What a training step costs besides the networks: the thread that trains, at batch 256, on cached 4x32x32 latents with text.

    python benchmarks/host.py             # on one thread of a CPU; a process reads data and a thread makes draws beside it
    python benchmarks/host.py --steps 40

The denoiser is one number that multiplies its input, and the optimizer has that number and the text's projection, so what is left is
reading, drawing, preparing the condition, bookkeeping, and the arithmetic of latents and loss on a million numbers, which on a
GPU is the GPU's work.
A line each; the last two are the sums. Wall time is what passes; the processor's time is that of the training thread alone, without other
work on the machine and without waiting.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoints.model import LatentDiffusionSpec, SamplingDefaults
from ldm.conditioning.bert_pretrained import BertPretrained, BertPretrainedConfig
from ldm.conditioning.frozen_text import FrozenText
from ldm.core.condition import Condition
from ldm.core.distributed import World
from ldm.core.random import Streams
from ldm.data.config import DataConfig
from ldm.data.image_dataset import IndexedDataset
from ldm.data.latent_cache import LatentCache
from ldm.data.open import open_dataset
from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import VPrediction
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.weighting import MinSNR
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.networks.unet import UNetConfig
from ldm.samplers.ddim import DDIM
from ldm.training.config import TrainConfig
from ldm.training.diffusion_model import DiffusionParts
from ldm.training.diffusion_task import DiffusionTask
from ldm.training.engine import _Engine
from ldm.training.latents import LatentData, Latents
from ldm.training.run_folder import RunFolder
from ldm.training.step_numbers import read

BATCH, LATENT = 256, (4, 32, 32)
PICTURES = 512
FIRST_STAGE = KLAutoencoderConfig(channels=32, multipliers=(1, 1, 1, 1), blocks=1, latent_channels=4)
SHADES = ("red", "green", "blue", "yellow", "grey", "orange", "pink", "brown")
NETWORKS = ("denoiser", "text's projection", "backward")  # and what is theirs
ARITHMETIC = "latents and loss"


class Scaled(nn.Module):
    """In place of a denoiser."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None
        return x * self.scale + 0 * condition.tokens.mean()


class Clock:
    """Seconds by name, wall and the thread's; what is timed within another is not counted there."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._inner: list[list[float]] = []

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        self._inner.append([0.0, 0.0])
        before = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            took = [time.perf_counter() - before[0], time.thread_time() - before[1]]
            inner = self._inner.pop()
            for kind in (0, 1):
                self.spent[name][kind] += took[kind] - inner[kind]
                if self._inner:
                    self._inner[-1][kind] += took[kind]

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            with self.timing(name):
                return call(*given, **named)

        return timed


def task_of(folder: Path, config: TrainConfig, world: World) -> DiffusionTask:
    """On pictures that are drawn, and latents that are made up."""
    pictures = folder / "pictures"
    pictures.mkdir()
    rows = ["file,caption"]
    for number in range(PICTURES):
        shade = SHADES[number % len(SHADES)]
        Image.new("RGB", (8, 8), shade).save(pictures / f"{number:04d}.png")
        rows.append(f"{number:04d}.png,a plain {shade} picture with the number {number}")
    (pictures / "captions.csv").write_text("\n".join(rows))
    data = DataConfig(train=str(pictures), size=LATENT[1] * FIRST_STAGE.downsampling_factor, workers=1)
    train_set = open_dataset(data, "train", 0)
    assert isinstance(train_set, IndexedDataset)
    cache = LatentCache.open_or_build(
        folder / "latents",
        train_set,
        lambda images: (torch.randn(len(images), *LATENT), torch.full((len(images), *LATENT), 0.1)),
        first_stage_digest="",
        views=1,
        keeps_pixels=False,
        batch_size=32,
        processes=world,
    )
    spec = LatentDiffusionSpec(
        name="host",
        size=data.size,
        first_stage=FIRST_STAGE,
        normalization=LatentNormalization(channels=LATENT[0], downsampling_factor=FIRST_STAGE.downsampling_factor),
        denoiser=UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(2,), heads=2, context_width=128),
        process=DiscreteVP(spacing="cosine"),
        prediction=VPrediction(),
        conditioning={"text": BertPretrainedConfig(drop=0.1)},
        sampling=SamplingDefaults(sampler=DDIM(), steps=2),
    )
    first_stage = FIRST_STAGE.build().eval().requires_grad_(False)
    parts = DiffusionParts(
        spec=spec, first_stage=first_stage, first_stage_weights={}, network=Scaled(), conditioners=spec.build_conditioners()
    )
    objective = Objective(process=spec.process, prediction=spec.prediction, weighting=MinSNR())
    latents = LatentData(train_set=train_set, cache=cache, workers=data.workers)
    return DiffusionTask(parts, objective, latents, config, drop_all=0.1, prompts=(), seed=0, world=world)


def measured(steps: int, folder: Path) -> dict[str, list[tuple[float, float]]]:
    """By name, (wall, processor) seconds of each step; the first ten are left out, and all captions are encoded by then."""
    world, config = World(0, 1, torch.device("cpu")), TrainConfig(steps=steps, batch_size=BATCH)
    task, clock = task_of(folder, config, world), Clock()
    run = RunFolder(folder / "run", True)
    engine, batches = _Engine(task, config, run, 0, world), task.batches(1)
    run.open(0)
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    block = []
    with ExitStack() as patches:
        for owner, name, line in (
            (Streams, "normal", "draws"),
            (Streams, "uniform", "draws"),
            (FrozenText, "features", "text"),
            (BertPretrained, "forward", "text's projection"),
            (Objective, "__call__", ARITHMETIC),
            (Latents, "draw", ARITHMETIC),
            (Scaled, "forward", "denoiser"),
            (Tensor, "backward", "backward"),
        ):
            patches.enter_context(patch.object(owner, name, _method(clock, line, getattr(owner, name))))
        for step in range(1, steps + 11):
            clock.spent.clear()
            with clock.timing("reading"):
                batch = next(batches)
            with clock.timing("bookkeeping"):
                block.append(engine.step(step, batch))
                if step % config.log_every == 0:
                    for one, numbers in zip(block, read(block), strict=True):
                        run.log(one.step, numbers)
                    block = []
            if step > 10:
                for name, (wall, processor) in clock.spent.items():
                    found[name].append((wall, processor))
            time.sleep(0.05)  # in which a network would be computed
    run.close()
    return found


def _method(clock: Clock, line: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *given: Any, **named: Any) -> Any:
        with clock.timing(line):
            return call(self, *given, **named)

    return method


def cost_of_a_draw(pairs: int) -> tuple[float, float, float]:
    """Milliseconds of the processor for a batch's noise and for torch.randn of its shape; the median quotient of pairs."""
    streams = Streams.of(0, "train", 1, samples=range(BATCH))
    ours, theirs = [], []
    for _ in range(pairs):
        for times, draw in ((ours, lambda: streams.normal("noise", LATENT)), (theirs, lambda: torch.randn(BATCH, *LATENT))):
            before = time.thread_time()
            draw()
            times.append(1000 * (time.thread_time() - before))
    quotient = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return statistics.median(ours), statistics.median(theirs), quotient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options.steps, Path(folder))
    print("| | wall, ms a step | processor, ms a step |\n|---|---|---|")
    outside = [name for name in found if name not in NETWORKS]
    for name in [*outside, *NETWORKS]:
        print(_row(name, found[name]))
    for title, names in (
        ("outside the networks", outside),
        ("the same without the arithmetic of latents and loss", [n for n in outside if n != ARITHMETIC]),
    ):
        print(_row(title, [(sum(w for w, _ in one), sum(p for _, p in one)) for one in zip(*(found[n] for n in names), strict=True)]))
    ours, theirs, quotient = cost_of_a_draw(options.steps)
    print(f"\na draw of {BATCH}x4x32x32: {ours:.1f} ms; torch.randn of that shape: {theirs:.1f} ms; quotient {quotient:.2f}")


def _row(name: str, seconds: list[tuple[float, float]]) -> str:
    wall, processor = (1000 * statistics.median(kind) for kind in zip(*seconds, strict=True))
    return f"| {name} | {wall:.2f} | {processor:.2f} |"


if __name__ == "__main__":
    main()
