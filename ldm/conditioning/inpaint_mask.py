"""What is to be painted, and the latent of the rest: concatenated to the noisy latent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.conditioning.conditioner import Conditioner, ConditionerConfig, Encode, Examples
from ldm.conditioning.control import Control, Mask
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.family import kind
from ldm.core.random import Streams
from ldm.data.batch import Batch
from ldm.data.facts import PIXELS, DataFacts
from ldm.data.random_masks import random_mask

GREY, BLACK = 0.0, -1.0


@kind("inpaint_mask")
@dataclass(frozen=True, kw_only=True)
class InpaintMaskConfig(ConditionerConfig):
    """How a hole is encoded.

    Attributes:
        convention: whose. `stable_diffusion`: the hole is grey; the mask comes before the masked picture's latent, 1 in a cell with any
            pixel to paint, else 0. `inpainting_big`, as Rombach et al. 2022 published theirs: the hole is black; the mask comes after
            the latent, 1 in a cell whose first pixel is to be painted, else -1.
    """

    reads: ClassVar[str] = PIXELS
    convention: Literal["stable_diffusion", "inpainting_big"] = "stable_diffusion"

    def build(self, *, context_width: int | None, latent_channels: int) -> InpaintMask:
        """See `ConditionerConfig.build`."""
        return InpaintMask(self, latent_channels)

    @property
    def hole(self) -> float:
        """What masked pixels are, in [-1, 1]."""
        return GREY if self.convention == "stable_diffusion" else BLACK

    def masked(self, images: Tensor, masks: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] with a hole where masks (B, 1, H, W) are above 0."""
        return images.masked_fill(masks > 0, self.hole)


class MaskedImages(NamedTuple):
    """Input of `InpaintMask`.

    Attributes:
        masks: (B, 1, H, W) in pixels; above 0 = to be painted.
        latents: (B, Z, h, w), normalised latents of the images with a hole there.
    """

    masks: Tensor
    latents: Tensor


class InpaintMask(Conditioner[MaskedImages]):
    """1 channel of mask and the masked image's latent. Has no weights. The null input is a mask of ones over an image that is all hole."""

    keeps_under_guidance = True
    is_in_records = False
    encodes_images = True

    def __init__(self, config: InpaintMaskConfig, latent_channels: int) -> None:
        super().__init__(config)
        self.config = config
        self.concat_channels = 1 + latent_channels
        self._first_stage: _FirstStage | None = None

    @property
    def controls(self) -> dict[str, Control]:
        return {"": Mask()}

    def attach(self, encode: Encode, image_channels: int, downsampling_factor: int) -> None:
        """See `Conditioner.attach`."""
        self._first_stage = _FirstStage(encode, image_channels, downsampling_factor)

    def forward(self, value: MaskedImages, latent_size: tuple[int, int]) -> Condition:
        """Channels (B, 1 + Z, h, w), in the order of the convention."""
        latents = value.latents.to(self.device)
        assert latents.shape[1:] == (self.concat_channels - 1, *latent_size), f"masked latents of {tuple(latents.shape)}"
        if self.config.convention == "stable_diffusion":
            return Condition(concat=torch.cat([latent_mask(value.masks, latent_size).to(latents), latents], dim=1))
        first_pixels = F.interpolate((value.masks > 0).float(), size=latent_size, mode="nearest")
        return Condition(concat=torch.cat([latents, 2 * first_pixels.to(latents) - 1], dim=1))

    def null(self, count: int, latent_size: tuple[int, int]) -> MaskedImages:
        hole = self._lent.hole(self.config.hole, latent_size, self.device)
        return MaskedImages(torch.ones(count, 1, 1, 1), hole.expand(count, *hole.shape))

    def of_batch(self, batch: Batch, facts: DataFacts) -> None:
        """Records have no hole to be painted."""

    def for_training(self, batch: Batch, facts: DataFacts, kept: Tensor, streams: Streams) -> MaskedImages:
        """Random holes, see `random_mask`; only rows that keep theirs are drawn and encoded."""
        count, _, *size = batch.images.shape
        masks, latents = torch.ones(count, 1, *size), self.null(count, self._lent.latent_size(batch.images)).latents.clone()
        rows = kept.nonzero()[:, 0].tolist()
        if rows:
            generators = streams.generators("mask")
            for row in rows:
                masks[row] = random_mask((size[0], size[1]), None if batch.masks is None else batch.masks[row], generators[row])
            latents[rows] = self._encoded(self.config.masked(batch.images[rows], masks[rows]))
        return MaskedImages(masks, latents)

    def of_user(self, value: Any) -> MaskedImages:
        """An image (1, C, H, W) in [-1, 1] and its mask (1, 1, H, W), of the model's size.

        Raises:
            UserError: a mask alone.
        """
        if not isinstance(value, tuple) or len(value) != 2 or not all(isinstance(part, Tensor) for part in value):
            raise UserError(
                "a mask needs the picture that it lies on: scripts/inpaint.py --image PICTURE --mask MASK, or ldm.pipelines.edit.inpaint"
            )
        image, mask = value
        return MaskedImages(mask, self._encoded(self.config.masked(image, mask)))

    def examples(self, batch: Batch, facts: DataFacts, count: int, prompts: tuple[str, ...], latent_size: tuple[int, int]) -> Examples:
        """The middle half of each side is to be painted."""
        images = batch.images[:count]
        height, width = images.shape[2:]
        masks = torch.zeros(count, 1, height, width)
        masks[:, :, height // 4 : height - height // 4, width // 4 : width - width // 4] = 1
        masked = self.config.masked(images, masks)
        return Examples(value=MaskedImages(masks, self._encoded(masked)), shown=masked)

    @torch.no_grad()
    def _encoded(self, images: Tensor) -> Tensor:
        return self._lent.encode(images.to(self.device))

    @property
    def _lent(self) -> _FirstStage:
        assert self._first_stage is not None, "a model with inpaint_mask needs its first stage: attach it"
        return self._first_stage


class _FirstStage:
    """What is lent of the first stage. Copies of a conditioner share it."""

    def __init__(self, encode: Encode, image_channels: int, downsampling_factor: int) -> None:
        self.encode, self.image_channels, self.downsampling_factor = encode, image_channels, downsampling_factor
        self._holes: dict[tuple[float, tuple[int, int], torch.device], Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _FirstStage:
        return self

    @torch.no_grad()
    def hole(self, level: float, latent_size: tuple[int, int], device: torch.device) -> Tensor:
        """(Z, h, w): the normalised latent of an image that is all hole, encoded once a size."""
        key = (level, latent_size, device)
        if key not in self._holes:
            size = [self.downsampling_factor * side for side in latent_size]
            self._holes[key] = self.encode(torch.full((1, self.image_channels, *size), level, device=device))[0]
        return self._holes[key]

    def latent_size(self, images: Tensor) -> tuple[int, int]:
        """(h, w) of the latents of images (B, C, H, W)."""
        return images.shape[2] // self.downsampling_factor, images.shape[3] // self.downsampling_factor


def latent_mask(masks: Tensor, latent_size: tuple[int, int]) -> Tensor:
    """(B, 1, H, W) pixels to (B, 1, h, w) of {0, 1}: a latent cell is painted if any pixel in it is."""
    return F.adaptive_max_pool2d((masks > 0).float(), latent_size)
