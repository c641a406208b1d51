"""`scripts/train_vae.py`: stage one."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ldm.app.frozen_first_stage import check_size
from ldm.app.training_run import choose_kernels, finish, join_world, load_config, open_data, open_run
from ldm.checkpoints.folder import load_strictly
from ldm.checkpoints.model import AutoencoderSpec, load_first_stage
from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.core.random import digest
from ldm.core.settings import as_config, in_pixels
from ldm.data.config import DataConfig
from ldm.first_stage.config import FirstStageConfig
from ldm.first_stage.identity import IdentityConfig
from ldm.first_stage.latent_normalization import LatentNormalization, encoder_weights
from ldm.losses.autoencoder_loss import AutoencoderLossConfig
from ldm.networks.patchgan import smallest_side
from ldm.training.autoencoder_task import AutoencoderTask, FrozenEncoder
from ldm.training.config import TrainConfig, check_run_name
from ldm.training.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class TrainVAE:
    """The config of a stage-one run."""

    name: str
    seed: int = 0
    data: DataConfig
    first_stage: FirstStageConfig
    loss: AutoencoderLossConfig
    train: TrainConfig
    init_from: str | None = None  # a checkpoint whose first stage to start from
    freeze: Literal["encoder"] | None = None  # what of it is not trained: with the encoder, latents stay as stage two knows them

    def __post_init__(self) -> None:
        check_run_name(self.name)
        if isinstance(self.first_stage, IdentityConfig):
            raise UserError("first_stage kind 'identity' has nothing to train; use it in stage two as first_stage.kind=identity")
        if self.data.channels != self.first_stage.image_channels:
            raise UserError(
                f"data.channels ({self.data.channels}) and first_stage.image_channels ({self.first_stage.image_channels}) must be equal"
            )
        if self.freeze is not None and self.init_from is None:
            raise UserError("freeze=encoder keeps the encoder of init_from: name the checkpoint, init_from=FOLDER")
        smallest = min(self.data.sizes, key=min)
        if self.loss.has_discriminator and min(smallest) < smallest_side(self.loss.disc_layers):
            what = f"data.size ({as_config(self.data.size)})" if self.data.buckets is None else f"the bucket {in_pixels(smallest)}"
            raise UserError(
                f"{what} is too small for a discriminator of loss.disc_layers={self.loss.disc_layers}, "
                f"which needs {smallest_side(self.loss.disc_layers)}: lower disc_layers, or set loss.disc_factor=0"
            )
        check_size(self.data, self.first_stage)


def main(options: argparse.Namespace) -> None:
    """Trains a first stage."""
    config = load_config(options, TrainVAE, "train_vae")
    choose_kernels(config.train)
    world = join_world(config.train)
    with open_run(options.run_dir or Path("runs") / config.name, config, world) as run:
        _train(config, run, world, options.retry_lost)


def _train(config: TrainVAE, run: RunFolder, world: World, retry_lost: bool) -> None:
    train_set, held_out = open_data(config.data, config.seed, world)

    torch.manual_seed(digest(config.seed, "weights"))
    first_stage = config.first_stage.build()
    frozen = None
    if config.init_from:
        start, _, weights = load_first_stage(config.init_from, torch.device("cpu"))
        load_strictly(first_stage, weights, f"init_from={config.init_from}")
        if config.freeze:
            frozen = FrozenEncoder(weights=encoder_weights(weights), normalization=start.normalization)
    spec = AutoencoderSpec(
        name=config.name,
        size=config.data.size,
        buckets=config.data.buckets,
        fit=config.data.fit,
        first_stage=config.first_stage,
        normalization=LatentNormalization(
            channels=config.first_stage.latent_channels, downsampling_factor=config.first_stage.downsampling_factor
        ),
        background=config.data.background,
        depth=config.data.depth,
        levels=config.data.levels,
    )
    loss = config.loss.build(config.data.channels)
    task = AutoencoderTask(spec, first_stage, loss, train_set, held_out, config.train, config.seed, world, frozen)
    finish(task, config.train, run, config.seed, world, retry_lost=retry_lost)
