"""A whole training step of stage one against a plain loop: LPIPS, adversary, adaptive weight, two optimizers, average.

    python benchmarks/whole_step.py
    MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 python benchmarks/whole_step.py

Ours is the engine's step as `scripts/train_vae.py` takes it, on the KL autoencoder of `speed.py`, 64x64 pictures in batches of 4; the loop
(`plain_loop.py`) has diffusers' autoencoder of the same shape, and the same LPIPS, fused AdamW and clipping. They alternate in one process.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from plain_loop import EMA_DECAY, LEARNING_RATE, plain_loop
from speed import PRECISIONS, SCALES, Row, autoencoders, machine, milliseconds, peer
from torch import Tensor

from ldm.checkpoints.model import AutoencoderSpec
from ldm.core.distributed import World
from ldm.core.precision import DTYPES, Precision
from ldm.data.config import DataConfig
from ldm.data.image_dataset import IndexedDataset
from ldm.data.open import open_dataset
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.losses.autoencoder_loss import AutoencoderLossConfig
from ldm.pretrained import vgg_lpips
from ldm.training.autoencoder_task import AutoencoderTask
from ldm.training.config import OptimizerConfig, TrainConfig
from ldm.training.engine import _Engine
from ldm.training.run_folder import RunFolder

SIZE, BATCH = 64, 4


def our_step(folder: Path, precision: Precision) -> Callable[[], None]:
    """An optimizer step of the engine, log included, each time it is called."""
    scale = SCALES["cpu"]
    world = World(0, 1, torch.device("cpu"))
    optimizer = OptimizerConfig(learning_rate=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    config = TrainConfig(steps=10_000, batch_size=BATCH, precision=precision, ema_decay=EMA_DECAY, optimizer=optimizer)
    data = open_dataset(DataConfig(train="emoji-128", size=SIZE, workers=0), "train", 0)
    assert isinstance(data, IndexedDataset)
    normalization = LatentNormalization(
        channels=scale.autoencoder.latent_channels, downsampling_factor=scale.autoencoder.downsampling_factor
    )
    spec = AutoencoderSpec(name="step", size=SIZE, first_stage=scale.autoencoder, normalization=normalization)
    loss = AutoencoderLossConfig(disc_start=0).build(3)
    task = AutoencoderTask(spec, scale.autoencoder.build(), loss, data, None, config, 0, world)
    run = RunFolder(folder, True)
    engine = _Engine(task, config, run, 0, world)
    share = next(task.batches(1))
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        engine.step(count, share).values.tolist()

    return step


def rows(rounds: int) -> Iterator[Row]:
    """A row a precision."""
    generator = torch.Generator().manual_seed(0)
    images: Tensor = torch.rand(BATCH, 3, SIZE, SIZE, generator=generator) * 2 - 1
    device = torch.device("cpu")
    for precision in PRECISIONS:
        torch.manual_seed(0)
        theirs = autoencoders(SCALES["cpu"], device).theirs
        assert theirs is not None, "diffusers is not installed: there is no peer"
        with tempfile.TemporaryDirectory() as folder:
            ours = our_step(Path(folder), precision)
            plain = plain_loop(theirs.train(), vgg_lpips(progress=False), images, None if precision == "fp32" else DTYPES[precision])
            for _ in range(2):
                ours(), plain()
            times = [(milliseconds(ours, device), milliseconds(plain, device)) for _ in range(rounds)]
        yield Row(case=f"stage one, whole step {precision}", ours=tuple(a for a, _ in times), theirs=tuple(b for _, b in times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of either side (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine(torch.device('cpu'))}; {peer()}")
    for row in rows(options.rounds):
        print("{:34}{:>10} ms{:>10} ms{:>8}".format(*row.cells()), flush=True)


if __name__ == "__main__":
    main()
