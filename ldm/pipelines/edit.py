"""A given picture changed: painted where a mask says, or all over by noising and denoising."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from ldm.conditioning.inpaint_mask import latent_mask
from ldm.conditioning.inputs import ConditionInputs
from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.diffusion.estimate import Denoise
from ldm.guidance.known_region import known_region
from ldm.pipelines.canvas import Square, as_pictures, as_tensor, blended, pasted, resized, resized_mask
from ldm.pipelines.latent_diffusion import LatentDiffusion, Sampling
from ldm.samplers.sampler import step_noise


@torch.no_grad()
def inpaint(model: LatentDiffusion, picture: Image.Image, mask: Image.Image, how: Sampling, prompt: str = "") -> list[Image.Image]:
    """The picture with its masked part painted anew.

    The model paints a square around the hole, at its own size; the square is resized back and pasted into the hole only. A model trained
    with `inpaint_mask` is told mask and surroundings; any other has the surroundings put before its eyes at each step.

    Args:
        model: with or without mask conditioning.
        picture: of any size and mode.
        mask: of the same size; bright (128 and above) = paint.
        how: sampling; `num_images` different paintings.
        prompt: what to paint; empty = whatever fits.

    Returns:
        Pictures of the input's size and (for grey, RGB and either with alpha) mode; pixels outside the mask are bit-identical.

    Raises:
        UserError: mask of another size, or empty.
    """
    if mask.size != picture.size:
        raise UserError(f"the mask is {mask.size[0]}x{mask.size[1]}, the picture {picture.size[0]}x{picture.size[1]}: make them the same size")
    hole = np.array(mask.convert("L")) >= 128
    if not hole.any():
        raise UserError("the mask has no bright pixel, so there is nothing to paint: white = paint, black = keep")

    image = as_tensor(_shown(picture), model.first_stage.image_channels)
    square = Square.around(torch.from_numpy(hole), model.spec.size)
    crop, crop_hole = square.cut(image), square.cut(torch.from_numpy(hole)[None, None].float())
    small, small_hole = resized(crop, model.spec.size), resized_mask(crop_hole, model.spec.size)

    told, known = _surroundings(model, small, small_hole, prompt)
    untold = ConditionInputs(count=1, masks=told.masks, masked_latents=told.masked_latents, grey_latent=told.grey_latent)
    paintings = model.generate(told, how, untold, known=known)

    results = []
    for painting in paintings:
        fitted = blended(crop, resized(painting[None], square.side), crop_hole)
        results.append(pasted(picture, square.put(image, fitted)[0], hole))
    return results


def _surroundings(model: LatentDiffusion, small: Tensor, hole: Tensor, prompt: str):  # noqa: ANN202
    """What the model is told of the known part, and what wraps its denoiser where it was not trained for that."""
    captions = model.text_inputs(prompt).captions if prompt else None
    if model.paints_masks:
        masked = model.first_stage.encode((small * (1 - hole)).to(model.device))
        return ConditionInputs(count=1, captions=captions, masks=hole, masked_latents=masked, grey_latent=model.grey_latent()), None

    latent = model.first_stage.encode(small.to(model.device))
    kept = (1 - latent_mask(hole, model.latent_size)).to(latent)

    def known(denoise: Denoise, streams: Streams) -> Denoise:
        rows = len(streams)
        noise = step_noise(streams.under("known"), latent)
        return known_region(denoise, latent.expand(rows, -1, -1, -1), kept.expand(rows, -1, -1, -1), model.spec.process, noise)

    return ConditionInputs(count=1, captions=captions), known


@torch.no_grad()
def image_to_image(
    model: LatentDiffusion, picture: Image.Image, strength: float, how: Sampling, prompt: str = "", negative_prompt: str = ""
) -> list[Image.Image]:
    """The picture noised to `strength` and denoised: 0 = hardly changed, 1 = only the prompt counts (Meng et al. 2022, SDEdit).

    Args:
        model: any.
        picture: of any size; its centre square is taken, at the model's size.
        strength: noise level in (0, 1]; this share of the steps is taken.
        how: sampling.
        prompt, negative_prompt: what to lead to and away from; empty = nothing.

    Raises:
        UserError: strength out of range.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength must be above 0 and at most 1, got {strength}")
    shown = _shown(picture)
    image = resized(center_crop(as_tensor(shown, model.first_stage.image_channels), [min(shown.size)] * 2), model.spec.size)
    latent = model.first_stage.encode(image.to(model.device))
    told = model.text_inputs(prompt) if prompt else ConditionInputs(count=1, grey_latent=model.grey_latent())
    return as_pictures(model.generate(told, how, model.untold(negative_prompt), start=strength, start_latent=latent))


def _shown(picture: Image.Image) -> Image.Image:
    """The picture as it looks on white."""
    if "A" not in picture.getbands():
        return picture
    ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")
