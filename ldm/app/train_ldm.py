"""`scripts/train_ldm.py`: stage two."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from ldm.app.finetuning import check_base, completed
from ldm.app.frozen_first_stage import FirstStageSource, check_fit, latent_cache
from ldm.app.training_run import choose_kernels, finish, join_world, load_config, open_data, open_run
from ldm.checkpoints.folder import load_strictly
from ldm.checkpoints.lora import LoraSpec
from ldm.checkpoints.model import LatentDiffusionSpec, SamplingDefaults, denoiser_digest, load_latent_diffusion
from ldm.conditioning.conditioner import ConditionerConfig
from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.core.random import digest
from ldm.data.config import DataConfig
from ldm.data.facts import CAPTIONS, PIXELS
from ldm.data.image_dataset import ImageDataset, IndexedDataset
from ldm.data.latent_cache import STORED
from ldm.diffusion.bound import PIXEL_LEVELS
from ldm.diffusion.network_input import NetworkInput, TableIndex
from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import Prediction
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.time_density import TimeDensity, UniformSteps
from ldm.diffusion.weighting import Weighting
from ldm.first_stage.config import FirstStageConfig
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.networks.config import DenoiserNetworkConfig
from ldm.networks.lora import Lora
from ldm.samplers.ddpm import DDPM
from ldm.training.config import TrainConfig, check_run_name
from ldm.training.diffusion_model import DiffusionParts
from ldm.training.diffusion_task import DiffusionTask
from ldm.training.latents import LatentData
from ldm.training.run_folder import RunFolder

MOST_CAPTIONS = 20_000  # records whose captions are compared with what the text encoder reads


@dataclass(frozen=True, kw_only=True)
class TrainLDM:
    """The config of a stage-two run."""

    name: str
    seed: int = 0
    data: DataConfig
    first_stage: FirstStageSource = field(default_factory=FirstStageSource)
    denoiser: DenoiserNetworkConfig
    process: NoiseProcess
    prediction: Prediction
    network_input: NetworkInput = TableIndex()
    weighting: Weighting
    density: TimeDensity = UniformSteps()
    loss: Literal["l2", "l1", "vlb"] = "l2"
    learned_variance: bool = False
    vlb_weight: float | None = None  # of the bound that teaches a learned variance, beside l2 or l1; 0.001 as published
    conditioning: dict[str, ConditionerConfig] = field(default_factory=dict)
    drop_all: float = 0.1  # probability that all conditions of a row are dropped together, besides each conditioner's own
    sampling: SamplingDefaults
    prompts: tuple[str, ...] = ()  # of the sample grids; empty = held-out captions
    train: TrainConfig
    init_from: str | None = None  # a checkpoint whose denoiser and conditioners to start from; without `denoiser`, see `completed`
    lora: Lora | None = None  # trains adapters beside that checkpoint's denoiser, and nothing else; None = all of it

    def __post_init__(self) -> None:
        check_run_name(self.name)
        if not 0 <= self.drop_all <= 1:
            raise UserError(f"drop_all must be a share from 0 to 1, got {self.drop_all}")
        for part in self.conditioning.values():
            if self.data.cache_latents and part.reads not in STORED:
                raise UserError(
                    f"{part.reads} are not stored in the latent cache, as they change with augmentation: set data.cache_latents=false"
                )
        if self.lora is not None and not self.init_from:
            raise UserError("lora needs init_from: adapters are trained beside a model that is there")
        if self.sampling.threshold is not None and self.first_stage.kind != "identity":
            raise UserError("sampling.threshold is for models on pixels, which lie in [-1, 1]; latents have no such range: set it to null")
        if not self.learned_variance and self.sampling.sampler == DDPM(variance="learned"):
            raise UserError("sampling.sampler: this model learns no variance: set ddpm's to small or large, or learned_variance to true")
        self.sampling.check(self.process)
        self.objective()  # refuses parts that make no sense together, before anything is opened

    def spec(
        self, first_stage: FirstStageConfig, normalization: LatentNormalization, conditioning: dict[str, ConditionerConfig]
    ) -> LatentDiffusionSpec:
        """The model that the run trains.

        Args:
            first_stage: that `first_stage` names.
            normalization: its latent normalization.
            conditioning: the config's, with what it leaves to the training data taken from them.
        """
        return LatentDiffusionSpec(
            name=self.name,
            size=self.data.size,
            buckets=self.data.buckets,
            fit=self.data.fit,
            first_stage=first_stage,
            normalization=normalization,
            denoiser=self.denoiser,
            process=self.process,
            prediction=self.prediction,
            network_input=self.network_input,
            learned_variance=self.learned_variance,
            conditioning=conditioning,
            sampling=self.sampling,
            background=self.data.background,
            depth=self.data.depth,
            levels=self.data.levels,
            map_void=self.data.map_void,
        )

    def objective(self) -> Objective:
        """The loss. Pixels of 8 bits lie on levels, for which the bound's last term is a probability; latents do not."""
        return Objective(
            process=self.process,
            prediction=self.prediction,
            weighting=self.weighting,
            density=self.density.begin(self.process),
            network_input=self.network_input,
            loss=self.loss,
            learned_variance=self.learned_variance,
            vlb_weight=self.vlb_weight,
            levels=PIXEL_LEVELS if self.first_stage.kind == "identity" and self.data.depth == 8 else None,
        )


def main(options: argparse.Namespace) -> None:
    """Trains a latent diffusion model."""
    config = load_config(options, TrainLDM, "train_ldm", completed)
    choose_kernels(config.train)
    world = join_world(config.train)
    with open_run(options.run_dir or Path("runs") / config.name, config, world) as run:
        _train(config, run, world, options.retry_lost)


def _train(config: TrainLDM, run: RunFolder, world: World, retry_lost: bool) -> None:
    first_stage, first_stage_config, normalization, weights = config.first_stage.open(config.data.channels)
    check_fit(config.data, first_stage_config)
    train_set, held_out = open_data(config.data, config.seed, world)
    conditioning = {name: _fitted(name, part, train_set) for name, part in config.conditioning.items()}

    torch.manual_seed(digest(config.seed, "weights"))
    spec = config.spec(first_stage_config, normalization, conditioning)
    conditioners = spec.build_conditioners()
    for name, part in conditioners.items():
        for images in filter(None, (train_set, held_out)):
            if part.reads in images.facts.has and conditioning[name].drop < 1:
                part.check(images.facts)
        if world.is_first and isinstance(train_set, IndexedDataset) and CAPTIONS in train_set.facts.has:
            for finding in part.remarks(islice(train_set.source.captions(), MOST_CAPTIONS)):
                of = f", of the first {MOST_CAPTIONS:,} pictures" if len(train_set) > MOST_CAPTIONS else ""
                print(f"{name}{of}: {finding.line()}", flush=True)
    spec = spec.with_frozen(conditioners.frozen_digests())
    lora = None
    if not config.init_from:
        network = spec.build_network(conditioners)
    else:
        start = load_latent_diffusion(config.init_from, torch.device("cpu"))
        if not start.spec.normalization.has_latents_of(normalization):
            raise UserError(
                f"init_from={config.init_from} was trained on another first stage ({start.spec.normalization.digest[:12]}) than "
                f"first_stage.checkpoint={config.first_stage.checkpoint} ({normalization.digest[:12]}), whose latents are others"
            )
        with torch.device("meta"):  # its weights come from the file: none need be drawn first
            network = spec.build_network(conditioners)
        load_strictly(network, start.network.state_dict(), f"init_from={config.init_from}")
        load_strictly(conditioners, start.conditioners.state_dict(), f"init_from={config.init_from}")
        if config.lora is not None:
            check_base(spec, start.spec)
            base_digest = denoiser_digest(config.init_from)
            lora = LoraSpec(name=config.name, base=start.spec, base_digest=base_digest, lora=config.lora)

    first_stage.to(world.device)
    keeps_pixels = any(part.reads == PIXELS for part in config.conditioning.values())
    cache = latent_cache(run.path / "latents", train_set, first_stage, config.data, world, keeps_pixels=keeps_pixels)
    parts = DiffusionParts(
        spec=spec, first_stage=first_stage, first_stage_weights=weights, network=network, conditioners=conditioners, lora=lora
    )
    data = LatentData(train_set=train_set, held_out=held_out, cache=cache, workers=config.data.workers)
    task = DiffusionTask(
        parts, config.objective(), data, config.train, drop_all=config.drop_all, prompts=config.prompts, seed=config.seed, world=world
    )
    finish(task, config.train, run, config.seed, world, retry_lost=retry_lost)


def _fitted(name: str, part: ConditionerConfig, data: ImageDataset) -> ConditionerConfig:
    """A conditioner with open fields inferred from the data, which must have what it reads, unless its condition is always dropped."""
    if part.drop == 1 and not part.is_open:
        return part
    try:
        return part.fitted(data.facts)
    except UserError as error:
        raise UserError(f"{error}; with conditioning.{name}.drop=1 it is unused") from error
