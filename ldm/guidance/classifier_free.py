"""Classifier-free guidance (Ho & Salimans 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.core.condition import Condition
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.estimate import Denoise, Estimate


def classifier_free(denoiser: Denoiser, told: Condition, untold: Condition, scale: float) -> Denoise:
    """untold + scale (told - untold), by one pass of twice the batch.

    Args:
        denoiser: asked with both conditions stacked.
        told: what is wanted; of B.
        untold: "nothing", or what is not wanted (a negative prompt); of B, with the same channels and number of tokens.
        scale: 0 = untold, 1 = told (no second half is computed), beyond 1 = away from untold.
    """
    if scale == 1:
        return denoiser.bind(told)
    both = denoiser.bind(Condition.stack([untold, told]))

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        estimate = both(torch.cat([x_t, x_t]), torch.cat([t, t]))
        (x0_untold, x0_told), (eps_untold, eps_told) = estimate.x0.chunk(2), estimate.eps.chunk(2)
        return Estimate(x0_untold, eps_untold).toward(Estimate(x0_told, eps_told), scale)

    return denoise
