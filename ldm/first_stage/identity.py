"""Diffusion in pixel space: the first stage that does nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from ldm.core.errors import UserError
from ldm.core.family import kind
from ldm.first_stage.config import FirstStageConfig
from ldm.first_stage.posterior import Encoded
from ldm.first_stage.stage import FirstStage


@kind("identity")
@dataclass(frozen=True, kw_only=True, slots=True)
class IdentityConfig(FirstStageConfig):
    """The latent is the picture: ratio 1, no parameters, no noise."""

    image_channels: int = 3
    scale_per_channel: bool = False

    def __post_init__(self) -> None:
        if self.image_channels < 1:
            raise UserError(f"first_stage.image_channels must be at least 1, got {self.image_channels}")

    @property
    def latent_channels(self) -> int:
        return self.image_channels

    @property
    def downsampling_factor(self) -> int:
        return 1

    def build(self) -> Identity:
        return Identity(image_channels=self.image_channels, latent_channels=self.image_channels, downsampling_factor=1)


class Identity(FirstStage):
    """See IdentityConfig. Cannot be trained."""

    def _encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, torch.zeros_like(images)

    def _decode(self, raw_latent: Tensor) -> Tensor:
        return raw_latent

    def reconstruct(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Encoded]:
        _nothing_to_train()

    @property
    def last_layer(self) -> nn.Conv2d:
        _nothing_to_train()


def _nothing_to_train() -> NoReturn:
    raise UserError("first_stage kind 'identity' has nothing to train; choose kind: kl, or go straight to train_ldm")
