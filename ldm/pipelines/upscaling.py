"""A small picture drawn large, by a model that was trained with `low_resolution`."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.conditioning.inputs import ConditionInputs
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.first_stage.tiling import in_tiles
from ldm.guidance.classifier_free import classifier_free
from ldm.pipelines.canvas import as_tensor, check_image, to_pil
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.sampling import Sampling, shifted, start_std
from ldm.samplers.sampler import step_noise

OVERLAP = 0.25  # of neighbouring tiles, as a share of their side


@torch.no_grad()
def upscale(model: LatentDiffusion, image: Image.Image, how: Sampling) -> list[Image.Image]:
    """The picture at the first stage's downsampling factor times its size.

    The network is given tiles of the size that it was trained at, and where they overlap its estimates are blended at each step (Bar-Tal et
    al. 2023, MultiDiffusion): all tiles draw one picture, and the network's memory does not grow with it.

    Args:
        model: trained with `low_resolution`.
        image: of any size; a transparent one is laid on white, one smaller than a tile is continued by its edge, which is cut off again.
        how: sampling; `num_images` different pictures.

    Returns:
        Pictures of that many times the input's height and width.

    Raises:
        UserError: another model; one whose first stage does not scale down, so that there is nothing to scale up; a picture that is not
            finite.
    """
    check_image(image, "the picture")
    parts = model.require("image")
    factor, side = model.first_stage.downsampling_factor, min(model.latent_size)
    if factor == 1:
        raise UserError(
            "this model draws at the size that it is given (its first stage has downsampling factor 1), so it makes nothing larger"
        )
    small = as_tensor(image, model.first_stage.image_channels)
    small = F.pad(small, (0, max(0, side - image.width), 0, max(0, side - image.height)), mode="replicate")
    plane = small.shape[2], small.shape[3]
    values = {name: part.of_user(small) for name, part in parts.items()}
    cond = model.encode_condition(ConditionInputs(count=1, values=values), plane)
    denoise = _in_tiles(model, cond, model.encode_condition(model.uncond(), plane), how)

    process, images = model.spec.process, []
    times = how.grid.times(process, how.steps)
    for number in range(how.num_images):
        streams = Streams.of(how.seed, "image", samples=range(number, number + 1))
        noise = streams.normal("start", (model.first_stage.latent_channels, *plane)).to(model.device)
        on_step = shifted(how.on_step, number, how.num_images)
        start = start_std(process, times[0]) * noise
        latent = how.sampler.sample(denoise, start, times, process, step_noise(streams, noise), on_step)
        drawn = model.decode(latent, tile=factor * side)
        if not drawn.isfinite().all():
            raise UserError(f"the picture came out as NaN or infinity in {model.precision}: use bf16 or fp32, or train the model longer")
        images += to_pil(drawn[:, :, : factor * image.height, : factor * image.width])
    return images


def _in_tiles(model: LatentDiffusion, cond: Condition, uncond: Condition, how: Sampling) -> Denoise:
    """The guided denoiser of a picture larger than the network's: each tile is given its own part of what is concatenated."""
    assert cond.concat is not None and uncond.concat is not None
    beside = torch.cat([cond.concat, uncond.concat], dim=1)
    channels, side = model.first_stage.latent_channels, min(model.latent_size)

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        def tile(part: Tensor) -> Tensor:
            x, wanted, unwanted = part.split([channels, cond_channels, cond_channels], dim=1)
            conditions = replace(cond, concat=wanted), replace(uncond, concat=unwanted)
            guided = classifier_free(model.denoiser, *conditions, how.guidance, how.guidance_interval, how.guidance_rescale)
            found = guided(x, t)
            return torch.cat(
                [found.x0, found.eps] if found.variance_logits is None else [found.x0, found.eps, found.variance_logits], dim=1
            )

        whole = torch.cat([x_t, beside.to(x_t)], dim=1)
        x0, eps, *variance_logits = in_tiles(whole, tile, tile=side, overlap=round(OVERLAP * side), before=1, after=1).split(
            channels, dim=1
        )
        return Estimate(x0=x0, eps=eps, variance_logits=variance_logits[0] if variance_logits else None)

    cond_channels = cond.concat.shape[1]
    return denoise
