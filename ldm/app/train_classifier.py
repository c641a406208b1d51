"""`scripts/train_classifier.py`: a classifier of noisy samples, to guide by; or of clean ones, to judge by."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ldm.app.frozen_first_stage import FirstStageSource, check_fit, latent_cache
from ldm.app.training_run import choose_kernels, finish, join_world, load_config, open_data, open_run
from ldm.checkpoints.classifier import ClassifierSpec, load_classifier
from ldm.checkpoints.folder import load_strictly
from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.core.random import digest
from ldm.data.config import DataConfig
from ldm.data.facts import LABELS
from ldm.data.image_dataset import ImageDataset
from ldm.diffusion.network_input import NetworkInput, TableIndex
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.time_density import TimeDensity, UniformSteps
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.networks.classifier import ClassifierConfig
from ldm.training.classifier_task import ClassifierTask
from ldm.training.config import TrainConfig, check_run_name
from ldm.training.latents import LatentData, Latents
from ldm.training.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class TrainClassifier:
    """The config of a classifier's run."""

    name: str
    seed: int = 0
    data: DataConfig
    first_stage: FirstStageSource = field(default_factory=FirstStageSource)
    network: ClassifierConfig
    process: NoiseProcess | None  # that of the model to be guided; null = none, a judge
    network_input: NetworkInput = TableIndex()
    density: TimeDensity = UniformSteps()
    num_classes: int | None = None  # where the data's labels are numbers without names
    train: TrainConfig
    init_from: str | None = None  # a classifier's checkpoint whose weights to start from

    def __post_init__(self) -> None:
        check_run_name(self.name)
        if self.data.buckets is not None:
            raise UserError("a classifier is trained on images of one size: leave out data.buckets")
        if self.process is not None and self.density.begin(self.process) is not self.density:
            raise UserError(
                f"density {self.density.kind!r} learns from a denoiser's losses; a classifier takes one that does not, e.g. uniform"
            )

    def spec(self, normalization: LatentNormalization, label_names: tuple[str, ...]) -> ClassifierSpec:
        """What rebuilds the classifier that this run trains, on samples of that space, of these classes."""
        return ClassifierSpec(
            name=self.name,
            size=self.data.size,
            fit=self.data.fit,
            normalization=normalization,
            network=self.network,
            process=self.process,
            network_input=self.network_input,
            label_names=label_names,
        )


def main(options: argparse.Namespace) -> None:
    """Trains a classifier."""
    config = load_config(options, TrainClassifier, "train_classifier")
    choose_kernels(config.train)
    world = join_world(config.train)
    with open_run(options.run_dir or Path("runs") / config.name, config, world) as run:
        _train(config, run, world, options.retry_lost)


def _train(config: TrainClassifier, run: RunFolder, world: World, retry_lost: bool) -> None:
    first_stage, first_stage_config, normalization, _ = config.first_stage.open(config.data.channels)
    check_fit(config.data, first_stage_config)
    train_set, held_out = open_data(config.data, config.seed, world)
    spec = config.spec(normalization, classes_of(train_set, held_out, config.num_classes))
    torch.manual_seed(digest(config.seed, "weights"))
    network = spec.build_network()
    if config.init_from:
        start = load_classifier(config.init_from, torch.device("cpu"))
        load_strictly(network, start.network.state_dict(), f"init_from={config.init_from}")

    first_stage.to(world.device)
    cache = latent_cache(run.path / "latents", train_set, first_stage, config.data, world, keeps_pixels=False)
    data = LatentData(train_set=train_set, held_out=held_out, cache=cache, workers=config.data.workers)
    latents = Latents(first_stage, data, world.device)
    task = ClassifierTask(spec, network, config.density, latents, config.train, config.seed, world)
    finish(task, config.train, run, config.seed, world, retry_lost=retry_lost)


def classes_of(train_set: ImageDataset, held_out: ImageDataset | None, count: int | None) -> tuple[str, ...]:
    """The classes' names; their numbers, where the data names none.

    Raises:
        UserError: no labels; labels without names or number; held-out pictures with others.
    """
    for data in filter(None, (train_set, held_out)):
        if LABELS not in data.facts.has:
            raise UserError(f"a classifier is taught by labels, and {data.name} has none: see docs/data.md for how pictures get them")
    names = train_set.facts.label_names
    if held_out is not None and held_out.facts.label_names != names:
        theirs, ours = (", ".join(names_of) or "numbers" for names_of in (held_out.facts.label_names, names))
        raise UserError(f"data.val names other labels ({theirs}) than data.train ({ours})")
    if names and count not in (None, len(names)):
        raise UserError(f"num_classes is {count}, but data.train names {len(names)} labels: leave num_classes null")
    if not names and count is None:
        raise UserError("the data's labels are numbers without names: set num_classes")
    if not names:
        for data in filter(None, (train_set, held_out)):
            data.facts.check_labels(count or 0)
    return names or tuple(str(number) for number in range(count or 0))
