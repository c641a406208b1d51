"""What is to be painted, and the latent of the rest: concatenated to the noisy latent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.conditioning.conditioner import Conditioner, ConditionerConfig
from ldm.conditioning.inputs import ConditionInputs
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.family import kind

GREY, BLACK = 0.0, -1.0


@kind("inpaint_mask")
@dataclass(frozen=True, kw_only=True)
class InpaintMaskConfig(ConditionerConfig):
    """How a hole is told.

    Attributes:
        convention: whose. `stable_diffusion`: the hole is grey; the mask comes before the masked picture's latent, 1 in a cell with any
            pixel to paint, else 0. `inpainting_big`, as Rombach et al. 2022 published theirs: the hole is black; the mask comes after
            the latent, 1 in a cell whose first pixel is to be painted, else -1.
    """

    convention: Literal["stable_diffusion", "inpainting_big"] = "stable_diffusion"

    def build(self, *, context_width: int | None, latent_channels: int) -> InpaintMask:
        """See `ConditionerConfig.build`."""
        return InpaintMask(self, latent_channels)

    @property
    def hole(self) -> float:
        """What masked pixels are, in [-1, 1]."""
        return GREY if self.convention == "stable_diffusion" else BLACK

    def masked(self, pictures: Tensor, masks: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] with a hole where masks (B, 1, H, W) are above 0."""
        return pictures.masked_fill(masks > 0, self.hole)


class InpaintMask(Conditioner):
    """1 channel of mask and the masked picture's latent. "Nothing" = paint everything: the picture is all hole. Has no weights."""

    def __init__(self, config: InpaintMaskConfig, latent_channels: int) -> None:
        super().__init__(config.drop)
        self.config = config
        self.concat_channels = 1 + latent_channels

    def forward(self, inputs: ConditionInputs, latent_size: tuple[int, int]) -> Condition:
        """Channels (B, 1 + C, h, w), in the order of the convention."""
        inputs = self.blank(inputs, torch.zeros(inputs.count, dtype=torch.bool))
        assert inputs.masks is not None and inputs.masked_latents is not None
        masked = inputs.masked_latents.to(self.device)
        assert masked.shape[1:] == (self.concat_channels - 1, *latent_size), f"masked latents of {tuple(masked.shape)}"
        if self.config.convention == "stable_diffusion":
            return Condition(concat=torch.cat([latent_mask(inputs.masks, latent_size).to(masked), masked], dim=1))
        first_pixels = F.interpolate((inputs.masks > 0).float(), size=latent_size, mode="nearest")
        return Condition(concat=torch.cat([masked, 2 * first_pixels.to(masked) - 1], dim=1))

    def blank(self, inputs: ConditionInputs, rows: Tensor) -> ConditionInputs:
        """Mask all ones, masked picture all hole."""
        hole, masks, latents = inputs.hole_latent, inputs.masks, inputs.masked_latents
        if masks is None or latents is None:
            assert masks is None and latents is None, "a mask needs the masked picture's latent, and the other way round"
            assert hole is not None, "a model with inpaint_mask needs the latent of a picture that is all hole"
            masks, latents = torch.ones(inputs.count, 1, 1, 1), hole.expand(inputs.count, *hole.shape)
        elif rows.any():
            assert hole is not None, "a model with inpaint_mask needs the latent of a picture that is all hole"
            masks = masks.masked_fill(rows.to(masks.device)[:, None, None, None], 1)
            latents = torch.where(rows.to(latents.device)[:, None, None, None], hole.to(latents), latents)
        return replace(inputs, masks=masks, masked_latents=latents)


def mask_told(conditioners: Iterable[Conditioner]) -> InpaintMaskConfig | None:
    """How a model is told of holes; None = it is not.

    Raises:
        UserError: in several ways at once.
    """
    found = [part.config for part in conditioners if isinstance(part, InpaintMask)]
    if len({config.convention for config in found}) > 1:
        raise UserError("all conditioners inpaint_mask of a model must have one convention: a picture is masked once")
    return found[0] if found else None


def latent_mask(masks: Tensor, latent_size: tuple[int, int]) -> Tensor:
    """(B, 1, H, W) pixels to (B, 1, h, w) of {0, 1}: a latent cell is painted if any pixel in it is."""
    return F.adaptive_max_pool2d((masks > 0).float(), latent_size)
