"""What training on a frozen first stage starts with: the stage itself, and the training set's latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ldm.checkpoints.folder import checkpoint_folder
from ldm.checkpoints.model import load_first_stage
from ldm.core.distributed import World
from ldm.core.errors import UserError
from ldm.core.settings import as_config, height_width
from ldm.data.config import DataConfig
from ldm.data.image_dataset import ImageDataset, IndexedDataset
from ldm.data.latent_cache import LatentCache
from ldm.first_stage.config import FirstStageConfig
from ldm.first_stage.identity import IdentityConfig
from ldm.first_stage.latent_normalization import LatentNormalization
from ldm.first_stage.stage import FirstStage

ENCODE_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class FirstStageSource:
    """Where the frozen first stage comes from: a checkpoint, or none at all (`kind: identity`, pixel space).

    Attributes:
        checkpoint: its folder.
        config: the stage-one config that makes the checkpoint, for as long as it is not there: what to train then, and what to count.
        scale: of the latents, stated as published models do (0.18215; 1.0 where they do not scale), with shift 0; None = as the
            checkpoint's latent normalization has them.
    """

    kind: Literal["checkpoint", "identity"] = "checkpoint"
    checkpoint: str | None = "checkpoints/emoji"
    config: str | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and self.scale <= 0:
            raise UserError(f"first_stage.scale must be positive, got {self.scale}")
        if self.kind == "identity" and self.scale is not None:
            raise UserError("first_stage.scale is of latents; pixels are used as they are: set it to null")

    def open(self, channels: int) -> tuple[FirstStage, FirstStageConfig, LatentNormalization, dict[str, Tensor]]:
        """The first stage, what rebuilds it, its latent normalization, and its weights as stored."""
        if self.kind == "identity":
            config = IdentityConfig(image_channels=channels)
            identity = config.build().eval()
            return identity, config, identity.normalization, {}
        if self.checkpoint is None:
            raise UserError("first_stage.checkpoint is null: name a checkpoint folder, or set first_stage.kind=identity for pixel space")
        if self.config is not None and not self.is_there:
            raise UserError(
                f"first_stage.checkpoint {self.checkpoint}: no such folder yet; train it with: python scripts/train_vae.py "
                f"--config {self.config}, or name another first stage"
            )
        first_stage, spec, weights = load_first_stage(self.checkpoint, torch.device("cpu"))
        if self.scale is not None:
            first_stage.normalization = spec.normalization.stated(self.scale)
        return first_stage, spec.first_stage, first_stage.normalization, weights

    @property
    def is_there(self) -> bool:
        """Whether the checkpoint's folder is."""
        return self.checkpoint is not None and checkpoint_folder(self.checkpoint).is_dir()


def check_fit(data: DataConfig, first_stage: FirstStageConfig) -> None:
    """Refuses, by UserError, pictures that the first stage cannot encode."""
    if data.channels != first_stage.image_channels:
        raise UserError(f"data.channels is {data.channels}, but the first stage takes {first_stage.image_channels}")
    check_size(data, first_stage)


def check_size(data: DataConfig, first_stage: FirstStageConfig) -> None:
    """Refuses, by UserError, images whose sides the first stage cannot divide."""
    factor = first_stage.downsampling_factor
    if any(side % factor for side in height_width(data.size)):
        raise UserError(f"data.size ({as_config(data.size)}) must be a multiple of the first stage's downsampling factor ({factor})")
    if any(side % factor for size in data.sizes for side in size):
        raise UserError(f"data.buckets.step must be a multiple of the first stage's downsampling factor ({factor})")


def latent_cache(
    folder: Path, train_set: ImageDataset, first_stage: FirstStage, data: DataConfig, world: World, *, keeps_pixels: bool
) -> LatentCache | None:
    """The moments of the training set's latents, made by all processes, each its share; None if the config wants none.

    Args:
        folder: of the cache.
        first_stage: on the world's device.
        keeps_pixels: whether the pictures are kept beside their latents.

    Raises:
        UserError: remote pictures cannot be cached.
    """
    if not data.cache_latents:
        return None
    if not isinstance(train_set, IndexedDataset):
        raise UserError(
            "latents of remote shards cannot be cached: set data.cache_latents=false, or fetch the shards and train on the folder"
        )

    @torch.no_grad()
    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = first_stage.moments(images.to(world.device))
        return mean.cpu(), std.cpu()

    cache = LatentCache.open_or_build(
        folder,
        train_set,
        encode,
        first_stage_digest=first_stage.normalization.digest,
        views=data.cache_views,
        keeps_pixels=keeps_pixels,
        batch_size=ENCODE_BATCH,
        processes=world,
    )
    if world.is_first and train_set.unreadable.records:
        print(train_set.unreadable.line(), flush=True)
    return cache
