"""What is to be painted, and the latent of the rest: concatenated to the noisy latent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.conditioning.conditioner import Conditioner, ConditionerConfig
from ldm.conditioning.inputs import ConditionInputs
from ldm.core.condition import Condition
from ldm.core.family import kind


@kind("inpaint_mask")
@dataclass(frozen=True, kw_only=True)
class InpaintMaskConfig(ConditionerConfig):
    """Nothing of its own to set."""

    def build(self, *, context_width: int | None, latent_channels: int) -> InpaintMask:
        """See `ConditionerConfig.build`."""
        return InpaintMask(self, latent_channels)


class InpaintMask(Conditioner):
    """1 channel of mask (1 = paint), then the masked picture's latent. "Nothing" = paint everything, over grey. Has no weights."""

    def __init__(self, config: InpaintMaskConfig, latent_channels: int) -> None:
        super().__init__(config.drop)
        self.concat_channels = 1 + latent_channels

    def forward(self, inputs: ConditionInputs, latent_size: tuple[int, int]) -> Condition:
        """Channels (B, 1 + C, h, w)."""
        inputs = self.blank(inputs, torch.zeros(inputs.count, dtype=torch.bool))
        assert inputs.masks is not None and inputs.masked_latents is not None
        masked = inputs.masked_latents.to(self.device)
        assert masked.shape[1:] == (self.concat_channels - 1, *latent_size), f"masked latents of {tuple(masked.shape)}"
        return Condition(concat=torch.cat([latent_mask(inputs.masks, latent_size).to(masked), masked], dim=1))

    def blank(self, inputs: ConditionInputs, rows: Tensor) -> ConditionInputs:
        """Mask all ones, masked picture grey."""
        grey, masks, latents = inputs.grey_latent, inputs.masks, inputs.masked_latents
        if masks is None or latents is None:
            assert masks is None and latents is None, "a mask needs the masked picture's latent, and the other way round"
            assert grey is not None, "a model with inpaint_mask needs the latent of a grey picture"
            masks, latents = torch.ones(inputs.count, 1, 1, 1), grey.expand(inputs.count, *grey.shape)
        elif rows.any():
            assert grey is not None, "a model with inpaint_mask needs the latent of a grey picture"
            masks = masks.masked_fill(rows.to(masks.device)[:, None, None, None], 1)
            latents = torch.where(rows.to(latents.device)[:, None, None, None], grey.to(latents), latents)
        return replace(inputs, masks=masks, masked_latents=latents)


def latent_mask(masks: Tensor, latent_size: tuple[int, int]) -> Tensor:
    """(B, 1, H, W) pixels to (B, 1, h, w) of {0, 1}: a latent cell is painted if any pixel in it is."""
    return F.adaptive_max_pool2d((masks > 0).float(), latent_size)
