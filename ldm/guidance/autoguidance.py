"""Autoguidance (Karras et al. 2024, "Guiding a diffusion model with a bad version of itself"), eq. 4."""

from __future__ import annotations

from torch import Tensor

from ldm.diffusion.estimate import Denoise, Estimate


def autoguidance(good: Denoise, bad: Denoise, scale: float) -> Denoise:
    """bad + scale (good - bad), two passes.

    Args:
        good: the model; may itself be guided.
        bad: a weaker model of the same task with the same condition: smaller, or trained for fewer steps.
        scale: 1 = good (bad is not evaluated), above 1 = away from bad.
    """
    if scale == 1:
        return good

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        return bad(x_t, t).toward(good(x_t, t), scale)

    return denoise
