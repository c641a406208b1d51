"""Both conventions of masked images."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from ldm.conditioning.inpaint_mask import InpaintMaskConfig, MaskedImages

GREY, BLACK = InpaintMaskConfig(), InpaintMaskConfig(convention="inpainting_big")


@pytest.mark.parametrize("config, hole", [(GREY, 0.0), (BLACK, -1.0)])
def test_masked_pixels_are_hole_and_all_others_stay(config: InpaintMaskConfig, hole: float):
    pictures = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 1, 4, 4)
    masks[1, :, 2, 3] = 1
    masked = config.masked(pictures, masks)
    assert masked[1, :, 2, 3].tolist() == [hole] * 3
    pictures[1, :, 2, 3] = hole
    assert torch.equal(masked, pictures)


def test_channels_of_inpainting_big():
    """The latent, then the mask: 1 where a cell's first pixel is to be painted, else -1. The null input: hole, and 1."""
    masks = torch.zeros(1, 1, 8, 8)
    masks[0, 0, 4, 4] = masks[0, 0, 1, 1] = 1  # first of cell (2, 2); last of cell (0, 0)
    latents, hole = torch.arange(32.0).reshape(1, 2, 4, 4), torch.full((2, 4, 4), 7.0)
    part = BLACK.build(context_width=None, latent_channels=2)
    part.attach(lambda images: hole[None], 3, 2)
    found = part(MaskedImages(masks, latents), (4, 4)).concat
    cells = torch.full((1, 1, 4, 4), -1.0)
    cells[0, 0, 2, 2] = 1
    assert_close(found, torch.cat([latents, cells], dim=1), rtol=0, atol=0)
    null = part(part.null(1, (4, 4)), (4, 4)).concat
    assert_close(null, torch.cat([hole[None], torch.ones(1, 1, 4, 4)], dim=1), rtol=0, atol=0)
