"""A given picture changed: inpainted where a mask is bright, or noised and denoised as a whole."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.conditioning.inpaint_mask import latent_mask
from ldm.conditioning.inputs import ConditionInputs
from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.core.settings import height_width
from ldm.data.profiles import in_srgb
from ldm.diffusion.estimate import Denoise
from ldm.guidance.known_region import known_region
from ldm.pipelines.canvas import Window, as_tensor, blended, check_image, hole_of, known_at, ordinary, pasted, resized, to_pil
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.sampling import Sampling, is_number
from ldm.samplers.sampler import step_noise


@torch.no_grad()
def inpaint(
    model: LatentDiffusion, image: Image.Image, mask: Image.Image, how: Sampling, prompt: str | None = None, negative_prompt: str = ""
) -> list[Image.Image]:
    """The picture with its masked part painted anew.

    The model paints a window around the hole, at its own size; the window is resized back and pasted into the hole only. A model trained
    on masks is conditioned on mask and surroundings; in any other, the known region is put back at each step. What was in the hole has no
    influence.

    Args:
        model: with or without mask conditioning.
        image: of any size and mode.
        mask: of the same size; bright (128 and above) and opaque = paint.
        how: sampling; `num_images` different paintings.
        prompt: what to paint; None = whatever fits.
        negative_prompt: what guidance leads away from; empty = nothing in particular.

    Returns:
        Pictures of the input's size and (for grey, RGB and either with alpha) mode, with its colour profile; pixels outside the mask are
        bit-identical.

    Raises:
        UserError: no PIL images; mask of another size, or with nothing to paint; empty prompt, or one for a model that reads no text.
    """
    check_image(image, "the picture")
    check_image(mask, "the mask")
    if mask.size != image.size:
        sizes = f"the mask is {mask.width}x{mask.height}, the picture {image.width}x{image.height}"
        raise UserError(f"{sizes}: make them the same size")
    hole = hole_of(mask)
    if not hole.any():
        raise UserError("the mask has no bright pixel, so there is nothing to paint: white = paint, black = keep")

    image = ordinary(image)
    size = height_width(model.spec.size)
    window = Window.around(hole, size)
    crop = as_tensor(Image.fromarray(window.cut(np.array(in_srgb(image)))), model.first_stage.image_channels)
    crop_hole = torch.from_numpy(window.cut(hole))[None, None].float()
    known, small_hole = known_at(crop, crop_hole, size)
    cond, uncond = model.uncond() if prompt is None else model.text_inputs(prompt), model.uncond(negative_prompt)
    masks = {name: part.of_user((known, small_hole)) for name, part in model.conditioners.controlled_by("mask").items()}
    if masks:
        paintings = model.generate(cond.beside(masks), how, uncond.beside(masks))
    else:
        paintings = _with_known_put_back(model, known, small_hole, how, cond, uncond)
    fitted = (blended(crop, resized(painting[None], window.size), crop_hole)[0] for painting in paintings)
    return [pasted(image, painting, window, hole) for painting in fitted]


def _with_known_put_back(
    model: LatentDiffusion, known: Tensor, hole: Tensor, how: Sampling, cond: ConditionInputs, uncond: ConditionInputs
) -> Tensor:
    """Paintings of a window (1, C, H, W) of the model's size with its hole (1, 1, H, W), training-free."""
    latent = model.first_stage.encode(known.to(model.device))
    kept = 1 - latent_mask(hole, model.latent_size).to(latent)

    def knowing(denoise: Denoise, streams: Streams) -> Denoise:
        rows = (len(streams), -1, -1, -1)
        noise = step_noise(streams.under("known"), latent)
        at_time = (lambda time: noise(0)) if how.sampler.adaptive else noise
        return known_region(denoise, latent.expand(rows), kept.expand(rows), model.spec.process, at_time)

    return model.generate(cond, how, uncond, wrap=knowing)


@torch.no_grad()
def image_to_image(
    model: LatentDiffusion, image: Image.Image, strength: float, how: Sampling, prompt: str | None = None, negative_prompt: str = ""
) -> list[Image.Image]:
    """The picture noised to `strength` and denoised: near 0 = hardly changed, 1 = only the prompt counts (Meng et al. 2022, SDEdit).

    At 1 a process without zero terminal SNR still keeps a trace of the picture, as its training did.

    Args:
        model: any.
        image: of any size; its centre is taken, of the model's shape and at its size.
        strength: noise level in (0, 1]; this share of the steps is taken, at least one.
        how: sampling.
        prompt: what guidance leads to; None = nothing in particular.
        negative_prompt: what guidance leads away from; empty = nothing in particular.

    Raises:
        UserError: no PIL image; strength out of range; empty prompt, or one for a model that reads no text.
    """
    if not is_number(strength) or not 0 < strength <= 1:
        raise UserError(f"strength must be above 0 and at most 1, got {strength}")
    latent = latent_of(model, image)
    cond = model.uncond() if prompt is None else model.text_inputs(prompt)
    return to_pil(model.generate(cond, how, model.uncond(negative_prompt), start=strength, start_latent=latent))


@torch.no_grad()
def latent_of(model: LatentDiffusion, image: Image.Image) -> Tensor:
    """(1, C, h, w): the latent of a picture's centre, of the model's shape and at its size.

    Raises:
        UserError: no PIL image.
    """
    check_image(image, "the picture")
    image, size = ordinary(image), height_width(model.spec.size)
    times = min(image.height / size[0], image.width / size[1])
    height, width = (max(1, round(times * side)) for side in size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    centre = as_tensor(image.crop((left, top, left + width, top + height)), model.first_stage.image_channels)
    latent: Tensor = model.first_stage.encode(resized(centre, size).to(model.device))
    return latent
