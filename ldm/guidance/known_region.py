"""Inpainting without training: at each step the denoiser's input holds the known part of the image at that step's noise level.

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

TICKS = 2**30  # round(t * TICKS) is the key of the noise at t


def known_region(denoise: Denoise, known_x0: Tensor, known_mask: Tensor, process: NoiseProcess, noise: Callable[[int], Tensor]) -> Denoise:
    """A denoiser with a known part of x0, for any sampler.

    Where the mask is 1 the input of the wrapped denoiser is alpha x0 + sigma noise. Its estimate there is replaced by known_x0 and the eps
    that gives the sampler's own x_t. So at t = 0 the result of every sampler is known_x0 there, to the bit.

    Args:
        denoise: the denoiser to wrap; may itself be guided.
        known_x0: (B, C, H, W); any values where it is not known.
        known_mask: (B, 1, H, W), 1 = known, 0 = to be inpainted.
        process: the denoiser's.
        noise: gives N(0, I) like known_x0 for an integer key that depends on t only; ignore the key to use the same noise at all times.
            All samples of a call must have the same t, as samplers do.
    """
    known = known_mask > 0.5

    def denoise_known(x_t: Tensor, t: Tensor) -> Estimate:
        noised = process.blend(Estimate(x0=known_x0, eps=noise(round(t[0].item() * TICKS))), t)
        estimate = denoise(torch.where(known, noised, x_t), t)

        exact = with_x0(estimate, known_x0, x_t, t, process)
        return replace(estimate, x0=torch.where(known, known_x0, estimate.x0), eps=torch.where(known, exact.eps, estimate.eps))

    return denoise_known
