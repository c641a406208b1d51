"""Inpainting without training: the known part of the picture is put, at each step's noise, in front of the denoiser's eyes.

Song et al. 2021 (Score SDE), appendix I.2; Lugmayr et al. 2022 (RePaint), eq. 8, without its jumps back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.guidance.ends import with_x0

TICKS = 2**30  # a time's key into the noise


def known_region(denoise: Denoise, known_x0: Tensor, known_mask: Tensor, process: NoiseProcess, noise: Callable[[int], Tensor]) -> Denoise:
    """A denoiser that knows part of the answer, for any sampler.

    Where the mask is 1 the wrapped denoiser sees alpha x0 + sigma noise, and what it says there is replaced by the certain answer: x0,
    and the eps by which the sampler's own x_t is made from it. So at t = 0 every sampler holds known_x0 there, to the bit.

    Args:
        denoise: the unaware one; may itself be guided.
        known_x0: (B, C, H, W); anything where it is not known.
        known_mask: (B, 1, H, W), 1 = known, 0 = to be painted.
        process: the denoiser's.
        noise: N(0, I) like known_x0 by a whole number that depends on t only; ignore the number to keep one noise throughout.
            All samples must be asked at one t, as samplers do.
    """
    known = known_mask > 0.5

    def knowing(x_t: Tensor, t: Tensor) -> Estimate:
        at_t = Estimate(x0=known_x0, eps=noise(round(t[0].item() * TICKS)))
        seen = torch.where(known, process.blend(at_t, t), x_t)
        guess = denoise(seen, t)

        certain = with_x0(guess, known_x0, x_t, t, process)
        return replace(guess, x0=torch.where(known, known_x0, guess.x0), eps=torch.where(known, certain.eps, guess.eps))

    return knowing
