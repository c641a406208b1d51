"""A small picture of what is to be drawn large: brought to the latent's size and concatenated to the noisy latent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.conditioning.conditioner import Conditioner, ConditionerConfig
from ldm.conditioning.inputs import ConditionInputs
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.family import kind


@kind("low_resolution")
@dataclass(frozen=True, kw_only=True)
class LowResolutionConfig(ConditionerConfig):
    """
    Attributes:
        channels: of the picture.
    """

    channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels < 1:
            raise UserError(f"channels must be at least 1, got {self.channels}")

    def build(self, *, context_width: int | None, latent_channels: int) -> LowResolution:
        """See `ConditionerConfig.build`."""
        return LowResolution(self)


class LowResolution(Conditioner):
    """The picture itself, (B, channels, h, w); "nothing" = grey. Has no weights.

    A picture of the latent's size is told as it is, any other one resized (bicubic, without aliasing). So in training it is told the
    pictures that are to be drawn, and a first stage of ratio 4 makes a model for four times the size.

    Source: Rombach et al. 2022, sec. 4.4.
    """

    def __init__(self, config: LowResolutionConfig) -> None:
        super().__init__(config.drop)
        self.concat_channels = config.channels

    def forward(self, inputs: ConditionInputs, latent_size: tuple[int, int]) -> Condition:
        """Channels (B, channels, h, w).

        Raises:
            UserError: another number of channels.
        """
        pictures = self.blank(inputs, torch.zeros(inputs.count, dtype=torch.bool)).low_resolution
        assert pictures is not None
        if pictures.shape[1] != self.concat_channels:
            raise UserError(f"the small picture has {pictures.shape[1]} channels; this model takes {self.concat_channels}")
        pictures = pictures.to(self.device).float()
        if pictures.shape[2:] != latent_size:
            pictures = F.interpolate(pictures, size=latent_size, mode="bicubic", antialias=True).clamp(-1, 1)
        return Condition(concat=pictures)

    def blank(self, inputs: ConditionInputs, rows: Tensor) -> ConditionInputs:
        """Grey."""
        pictures = inputs.low_resolution
        if pictures is None:
            pictures = torch.zeros(inputs.count, self.concat_channels, 1, 1)
        return replace(inputs, low_resolution=pictures.masked_fill(rows.to(pictures.device)[:, None, None, None], 0))
