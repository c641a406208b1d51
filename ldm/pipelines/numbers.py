"""Drawn pictures as the numbers of the files that their model was trained on."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ldm.checkpoints.model import AutoencoderSpec, LatentDiffusionSpec

FEWEST = 2**8 - 1  # between black and white, from which on rounding keeps what is drawn


def has_numbers(spec: AutoencoderSpec | LatentDiffusionSpec) -> bool:
    """Whether what a model draws is more than pictures of 8 bits hold."""
    return spec.depth > 8 or spec.first_stage.image_channels not in (1, 3)


def as_numbers(images: Tensor, spec: AutoencoderSpec | LatentDiffusionSpec) -> np.ndarray:
    """(B, C, H, W) in [-1, 1] -> (B, H, W, C) between what was black and white in training; values beyond are clipped.

    Whole numbers, uint8 or uint16 by the model's depth; float32 where levels of 16 bits are negative or lie close together.
    """
    largest = 2**spec.depth - 1
    black, white = (spec.levels if spec.depth > 8 else None) or (0, largest)
    values = (images.clamp(-1, 1).permute(0, 2, 3, 1).double().cpu().numpy() + 1) * ((white - black) / 2) + black
    if not (0 <= black and white <= largest and white - black >= FEWEST):
        floats: np.ndarray = values.astype(np.float32)
        return floats
    whole: np.ndarray = np.rint(values).astype(np.uint8 if spec.depth == 8 else np.uint16)
    return whole
