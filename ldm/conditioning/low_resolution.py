"""A small picture of what is to be drawn large: brought to the latent's size and concatenated to the noisy latent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.conditioning.conditioner import Conditioner, ConditionerConfig, Examples
from ldm.conditioning.control import Control, ImageControl
from ldm.core.condition import Condition
from ldm.core.errors import UserError, described
from ldm.core.family import kind
from ldm.data.batch import Batch
from ldm.data.facts import PIXELS, DataFacts
from ldm.data.images import image_tensor, open_image

WHITE = (255, 255, 255)  # what a transparent image is laid on


@kind("low_resolution")
@dataclass(frozen=True, kw_only=True)
class LowResolutionConfig(ConditionerConfig):
    """
    Attributes:
        channels: of the picture.
    """

    reads: ClassVar[str] = PIXELS
    channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels < 1:
            raise UserError(f"channels must be at least 1, got {self.channels}")

    def build(self, *, context_width: int | None, latent_channels: int) -> LowResolution:
        """See `ConditionerConfig.build`."""
        return LowResolution(self)


class LowResolution(Conditioner[Tensor]):
    """The image itself, (B, channels, h, w). Has no weights. Its input: (B, channels, H, W) in [-1, 1] of any size; grey is the null input.

    An image of the latent's size is used as it is, any other one is resized (bicubic, without aliasing). So training gives it the
    pictures that are to be drawn, and a first stage of downsampling factor 4 makes a model for four times the size.

    Source: Rombach et al. 2022, sec. 4.4.
    """

    def __init__(self, config: LowResolutionConfig) -> None:
        super().__init__(config)
        self.concat_channels = config.channels

    def forward(self, value: Tensor, latent_size: tuple[int, int]) -> Condition:
        """Channels (B, channels, h, w).

        Raises:
            UserError: another number of channels.
        """
        if value.shape[1] != self.concat_channels:
            raise UserError(f"the small picture has {value.shape[1]} channels; this model takes {self.concat_channels}")
        return Condition(concat=_at(latent_size, value.to(self.device).float()))

    @property
    def controls(self) -> dict[str, Control]:
        return {"": ImageControl(channels=self.concat_channels)}

    def null(self, count: int, latent_size: tuple[int, int]) -> Tensor:
        return torch.zeros(count, self.concat_channels, 1, 1)

    def of_batch(self, batch: Batch, facts: DataFacts) -> Tensor:
        return batch.images

    def examples(self, batch: Batch, facts: DataFacts, count: int, prompts: tuple[str, ...], latent_size: tuple[int, int]) -> Examples:
        """The records' images, as small as they are given to the network."""
        images = batch.images[:count]
        return Examples(value=images, shown=_at(latent_size, images.float()))

    def of_user(self, value: Any) -> Tensor:
        """An image (1, C, H, W) in [-1, 1], or a file's path.

        Raises:
            UserError: something else; a file that cannot be read.
        """
        if isinstance(value, str | Path):
            return image_tensor(open_image(Path(value)), self.concat_channels, WHITE, str(value))[None]
        if not isinstance(value, Tensor) or value.ndim != 4 or len(value) != 1:
            raise UserError(f"a small picture is a file's path, or a tensor (1, C, H, W) in [-1, 1], got {described(value)}")
        return value


def _at(size: tuple[int, int], images: Tensor) -> Tensor:
    """(B, C, h, w) of that size."""
    return images if images.shape[2:] == size else F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
