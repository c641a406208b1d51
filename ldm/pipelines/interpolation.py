"""From one picture, prompt or seed to another, and from a picture back to its noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ldm.conditioning.inputs import ConditionInputs
from ldm.core.errors import UserError
from ldm.pipelines.edit import latent_of
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.pipelines.sampling import Sampling, start_std
from ldm.samplers import inversion
from ldm.samplers.ddim import DDIM


@dataclass(frozen=True, kw_only=True)
class End:
    """One end of an interpolation.

    Attributes:
        noise: (1, C, h, w) of N(0, 1) that it starts from: of a seed (`model.start_noise`), or of a picture (`noise_of`).
        cond: what it is conditioned on.
    """

    noise: Tensor
    cond: ConditionInputs


@torch.no_grad()
def noise_of(model: LatentDiffusion, image: Image.Image, how: Sampling, prompt: str | None = None, iterations: int = 3) -> Tensor:
    """The noise from which the model draws a picture: DDIM inversion.

    Drawn again with the same prompt, solver, steps and guidance 1 it gives the picture's latent back; how well, is measured in
    docs/latents.md. Above 1, guidance magnifies what the solution misses.

    Args:
        model: any.
        image: of any size; its centre is taken, of the model's shape and at its size.
        how: sampling; its solver is `DDIM()`.
        prompt: what the picture shows; None = nothing in particular.
        iterations: network evaluations a step.

    Returns:
        (1, C, h, w), of about standard deviation 1 if the model knows such pictures.

    Raises:
        UserError: no PIL image; another solver; empty prompt, or one for a model that reads no text.
    """
    check_invertible(how)
    latent = latent_of(model, image)
    cond = model.encode_condition(model.uncond() if prompt is None else model.text_inputs(prompt))
    uncond = cond if how.guidance == 1 else model.encode_condition(model.uncond())
    process = model.spec.process
    times = how.grid.times(process, how.steps)
    x = inversion.invert(model.guided(cond, uncond, how, range(1)), latent, times, process, iterations, how.on_step)
    return x / start_std(process, times[0])


def check_invertible(how: Sampling) -> None:
    """Refuses, by UserError, a solver that is not deterministic DDIM."""
    if how.sampler != DDIM():
        raise UserError(f"inversion is DDIM's: use the sampler ddim with eta=0, got {how.sampler}")


@torch.no_grad()
def drawn_from(model: LatentDiffusion, noise: Tensor, conds: Sequence[ConditionInputs], how: Sampling) -> Tensor:
    """A picture of each condition (N, C, H, W) in [-1, 1], not clipped, on the CPU; all from the same noise (1, C, h, w)."""
    uncond = model.encode_condition(model.uncond())
    cond = [model.encode_condition(each) for each in conds]
    return model.render(cond, [uncond] * len(cond), how, start_noise=noise.expand(len(cond), -1, -1, -1))


@torch.no_grad()
def interpolate(model: LatentDiffusion, first: End, last: End, how: Sampling) -> Tensor:
    """Pictures (num_images, C, H, W) in [-1, 1], not clipped, on the CPU: the first is that of the first end, the last of the last.

    Noise goes along the great circle between the two (`slerp`), since a mean of two Gaussian noises is too small; encoded conditions
    along the line.

    Raises:
        UserError: fewer than 2 pictures.
    """
    if how.num_images < 2:
        raise UserError(f"an interpolation needs at least 2 pictures, got {how.num_images}")
    shares = [number / (how.num_images - 1) for number in range(how.num_images)]
    one, other = model.encode_condition(first.cond), model.encode_condition(last.cond)
    uncond = model.encode_condition(model.uncond())
    noise = torch.cat([slerp(first.noise, last.noise, share) for share in shares])
    return model.render([one.toward(other, share) for share in shares], [uncond] * len(shares), how, start_noise=noise)


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Spherical interpolation of two noises, each as one vector: 0 = one, 1 = other, each to the bit (Shoemake 1985).

    Vectors that are parallel are interpolated linearly.
    """
    if share in (0, 1):
        return other if share else one
    a, b = one.double().cpu(), other.double().cpu()
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = cosine.clamp(-1, 1).acos()
    if angle.sin() < 1e-6:
        return torch.lerp(one, other, share)
    between: Tensor = (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()
    return between.to(one)
