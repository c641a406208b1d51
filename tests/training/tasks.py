"""Tiny tasks of both stages, and of a classifier, on pictures drawn by number, for the tests of this folder and their worker processes."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from ldm.checkpoints.classifier import ClassifierSpec
from ldm.checkpoints.model import AutoencoderSpec, LatentDiffusionSpec, SamplingDefaults, load_first_stage
from ldm.conditioning.class_label import ClassLabelConfig
from ldm.conditioning.inpaint_mask import InpaintMaskConfig
from ldm.conditioning.semantic_map import SemanticMapConfig
from ldm.core.distributed import World
from ldm.core.random import generator
from ldm.data.batch import Sample
from ldm.data.buckets import Buckets
from ldm.data.config import DataConfig
from ldm.data.facts import CAPTIONS, LABELS, MAPS, MASKS, PIXELS, DataFacts
from ldm.data.image_dataset import IndexedDataset
from ldm.data.unreadable import UnreadableReport
from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import VPrediction
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.time_density import UniformSteps
from ldm.diffusion.weighting import MinSNR
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.losses.autoencoder_loss import AutoencoderLossConfig
from ldm.networks.classifier import ClassifierConfig
from ldm.networks.unet import UNetConfig
from ldm.samplers.ddim import DDIM
from ldm.training import latents
from ldm.training.autoencoder_task import AutoencoderTask, FrozenEncoder
from ldm.training.classifier_task import ClassifierTask
from ldm.training.config import OptimizerConfig, ParallelConfig, TrainConfig
from ldm.training.diffusion_model import DiffusionParts
from ldm.training.diffusion_task import DiffusionTask
from ldm.training.engine import _Engine
from ldm.training.latents import LatentData, Latents
from ldm.training.parallel import SharedGradients, whole
from ldm.training.run_folder import RunFolder
from ldm.training.step_numbers import read

SIZE = 16
FIRST_STAGE = KLAutoencoderConfig(channels=16, multipliers=(1, 2), blocks=1, latent_channels=2)


class DrawnPictures(IndexedDataset):
    """A data set of coloured discs; picture i depends on i only."""

    digest = "discs"

    def __init__(self) -> None:
        self.name, self.count, self.seed, self.lost, self.places = "discs", 10, 0, [], {}
        self.config, self.unreadable = DataConfig(train="discs", size=SIZE), UnreadableReport(10, 0.0)
        self.facts = DataFacts(has=frozenset((PIXELS, CAPTIONS, LABELS, MASKS, MAPS)))

    def __len__(self) -> int:
        return 10

    def sample(self, index: int, epoch: int) -> Sample:
        draw = torch.rand(6, generator=generator("disc", index))
        rows, columns = torch.meshgrid(torch.linspace(0, 1, SIZE), torch.linspace(0, 1, SIZE), indexing="ij")
        disc = (rows - draw[0]).square() + (columns - draw[1]).square() < 0.05 + 0.1 * draw[2]
        image = torch.where(disc, draw[3:, None, None], torch.ones(3, SIZE, SIZE)) * 2 - 1
        return Sample(name=f"disc-{index}", image=image, caption=f"disc {index}", label=index % 2, mask=disc[None].float(), map=disc.long())


class HalfLabelled(DrawnPictures):
    """The same; every third has no label."""

    def sample(self, index: int, epoch: int) -> Sample:
        drawn = super().sample(index, epoch)
        return replace(drawn, label=-1) if index % 3 == 0 else drawn


BUCKETS = Buckets(pixels=SIZE * SIZE, step=4, aspects=(0.5, 1.0, 2.0))


class PicturesInBuckets(DrawnPictures):
    """The same, two of three scaled to another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.config = DataConfig(train="discs", size=SIZE, buckets=BUCKETS)
        self._bucket_of = np.arange(10, dtype=np.int16) % 3

    def sample(self, index: int, epoch: int) -> Sample:
        drawn, size = super().sample(index, epoch), self.size_of(index)
        assert drawn.mask is not None and drawn.map is not None
        image = F.interpolate(drawn.image[None], size=size)[0]
        mask = F.interpolate(drawn.mask[None], size=size)[0]
        return replace(drawn, image=image, mask=mask, map=mask[0].long())


def train_config(**changes: object) -> TrainConfig:
    """Two steps of seven samples: no number of processes but 1 and 7 divides it."""
    values = {"steps": 2, "batch_size": 7, "sample_every": 99, "checkpoint_every": 99, "optimizer": OptimizerConfig(learning_rate=1e-3)}
    return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]


def autoencoder_task(
    world: World,
    config: TrainConfig,
    loss: AutoencoderLossConfig | None = None,
    lpips: nn.Module | None = None,
    frozen: FrozenEncoder | None = None,
    pictures: type[DrawnPictures] = DrawnPictures,
) -> AutoencoderTask:
    """With an adversary from the first step, and no LPIPS (its 59 MB are tested elsewhere)."""
    torch.manual_seed(0)
    loss = loss or AutoencoderLossConfig(
        perceptual_weight=0.0, disc_start=1, disc_layers=1, disc_channels=8, kl_weight=1e-3, equivariance_weight=0.5
    )
    spec = AutoencoderSpec(
        name="tiny", size=SIZE, first_stage=FIRST_STAGE, normalization=LatentNormalization(channels=2, downsampling_factor=2)
    )
    return AutoencoderTask(spec, FIRST_STAGE.build(), loss.build(3, lpips), pictures(), None, config, 0, world, frozen)


MASK = InpaintMaskConfig(drop=0.3)


def diffusion_task(
    world: World,
    config: TrainConfig,
    mask: InpaintMaskConfig = MASK,
    pictures: type[DrawnPictures] = DrawnPictures,
    *,
    checkpointing: bool = False,
) -> DiffusionTask:
    """Class, mask and map together, each sometimes dropped."""
    torch.manual_seed(0)
    first_stage = FIRST_STAGE.build().eval().requires_grad_(False)
    spec = LatentDiffusionSpec(
        name="tiny",
        size=SIZE,
        first_stage=FIRST_STAGE,
        normalization=LatentNormalization(channels=2, downsampling_factor=2),
        denoiser=UNetConfig(
            channels=32,
            multipliers=(1, 2),
            blocks=1,
            attention=(2,),
            heads=2,
            vector_width=8,
            transformer_depth=0,
            checkpointing=checkpointing,
        ),
        process=DiscreteVP(spacing="cosine"),
        prediction=VPrediction(),
        conditioning={
            "class": ClassLabelConfig(num_classes=2, width=8, drop=0.3),
            "mask": mask,
            "map": SemanticMapConfig(num_classes=2, drop=0.3),
        },
        sampling=SamplingDefaults(sampler=DDIM(), steps=2),
    )
    conditioners = spec.build_conditioners()
    network = spec.build_network(conditioners)
    torch.nn.init.normal_(network.out[-1].weight, std=0.1)  # a fresh UNet is the zero function, and passes no gradient on
    objective = Objective(process=spec.process, prediction=spec.prediction, weighting=MinSNR())
    parts = DiffusionParts(spec=spec, first_stage=first_stage, first_stage_weights={}, network=network, conditioners=conditioners)
    data = LatentData(train_set=pictures())
    return DiffusionTask(parts, objective, data, config, drop_all=0.1, prompts=(), seed=0, world=world)


def classifier_task(world: World, config: TrainConfig) -> ClassifierTask:
    """Noise-aware, on latents; some pictures have no label."""
    torch.manual_seed(0)
    first_stage = FIRST_STAGE.build().eval().requires_grad_(False).to(world.device)
    spec = ClassifierSpec(
        name="tiny",
        size=SIZE,
        normalization=LatentNormalization(channels=2, downsampling_factor=2, digest="digest"),
        network=ClassifierConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(2,), heads=2),
        process=DiscreteVP(spacing="cosine"),
        label_names=("even", "odd"),
    )
    latents = Latents(first_stage, LatentData(train_set=HalfLabelled()), world.device)
    return ClassifierTask(spec, spec.build_network(), UniformSteps(), latents, config, 0, world)


def shared_out_task(world: World, config: TrainConfig) -> DiffusionTask:
    """`diffusion_task` whose blocks are shared out over the processes, and computed again in the backward pass."""
    return diffusion_task(world, replace(config, parallel=ParallelConfig(kind="fsdp")), checkpointing=True)


TASKS: dict[str, Callable[[World, TrainConfig], Any]] = {
    "autoencoder": autoencoder_task,
    "diffusion": diffusion_task,
    "classifier": classifier_task,
}
ON_BUCKETS: dict[str, Callable[[World, TrainConfig], Any]] = {
    "autoencoder-buckets": functools.partial(autoencoder_task, pictures=PicturesInBuckets),
    "diffusion-buckets": functools.partial(diffusion_task, pictures=PicturesInBuckets),
}
OF_SEVERAL = {**TASKS, **ON_BUCKETS, "diffusion-fsdp": shared_out_task}


def numbers_of(engine: _Engine, step: int, batch: Any) -> dict[str, float]:
    """What a step is logged with."""
    return read([engine.step(step, batch)])[0]


def whole_of(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, on each process, of a tensor of which it may have a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def gradients_of_a_step(which: str, world: World, folder: Path, **changes: object) -> dict[str, torch.Tensor]:
    """All gradients of step 1 as the optimizer sees them, and the logged numbers, as tensors by name."""
    config = train_config(**changes)
    task = (OF_SEVERAL | TASKS)[which](world, config)
    engine = _Engine(task, config, RunFolder(folder, world.is_first), 0, world)
    metrics = numbers_of(engine, 1, next(task.batches(1)))
    found = {
        f"{group}.{name}": whole_of(parameter.grad)
        for group, module in task.trained.items()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    return found | {name: torch.tensor(value) for name, value in metrics.items()}


def evaluation(which: str, world: World, folder: Path) -> dict[str, torch.Tensor]:
    """Its numbers and sample grid, as tensors by name, and what the checkpoint says of the latents; pictures encoded three at once."""
    config = train_config()
    task = (OF_SEVERAL | TASKS)[which](world, config)
    with patch.object(latents, "PART", 3), torch.no_grad(), whole(average.module for average in task.averaged.values()):
        found = {name: torch.tensor(value) for name, value in task.evaluate(nullcontext()).metrics.items()}
        found["grid"] = task.sample_grid(nullcontext())
    task.save(folder / f"checkpoint-{which}", config.steps, config.steps)
    if which == "autoencoder":
        normalization = load_first_stage(folder / f"checkpoint-{which}", world.device)[1].normalization
        found |= {"shift": torch.tensor(normalization.shift), "scale": torch.tensor(normalization.scale)}
    return found


def half_used(world: World) -> torch.Tensor:
    """The gradients of two weights, each in use in some process; a third is in none."""
    weights = [nn.Parameter(torch.ones(())) for _ in range(3)]
    shared = SharedGradients(weights, world)
    for _ in range(2):
        for weight in weights:
            weight.grad = None
        loss = shared.forward(lambda: weights[0] * 3 if world.rank == 0 else weights[1] * 5, is_last=True)
        (loss * world.size).backward()
    assert weights[2].grad is None
    return torch.stack([weight.grad for weight in weights[:2] if weight.grad is not None])


def main() -> None:
    """A worker process of `torchrun`: python tasks.py FOLDER; writes what every rank found."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    world = replace(World.join(), device=torch.device("cpu"))
    folder = Path(sys.argv[1])
    for which in OF_SEVERAL:
        for parts in (1, 2):
            found = gradients_of_a_step(which, world, folder, accumulate=parts)
            torch.save(found, folder / f"{which}-{parts}-{os.environ['RANK']}.pt")
        torch.save(evaluation(which, world, folder), folder / f"evaluation-{which}-{os.environ['RANK']}.pt")
    torch.save(half_used(world), folder / f"half-used-{os.environ['RANK']}.pt")
    flags = {"none": world.any(False), "one": world.any(world.rank == 1), "all": world.any(True)}
    torch.save(flags, folder / f"flags-{os.environ['RANK']}.pt")
    world.leave()


if __name__ == "__main__":
    main()
