"""Classifier-free guidance (Ho & Salimans 2022), optionally only within an interval of noise levels and with rescaled contrast."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.shapes import over
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.guidance.ends import with_x0


def classifier_free(
    denoiser: Denoiser,
    cond: Condition,
    uncond: Condition,
    scale: float,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Denoise:
    """uncond + scale (cond - uncond), by one pass of twice the batch.

    Args:
        denoiser: called with both conditions stacked.
        cond: the condition; of B.
        uncond: the null condition, or a negative prompt; of B, with the same inputs and number of tokens.
        scale: 0 = uncond, 1 = cond (uncond is not computed), above 1 = away from uncond.
        interval: smallest and largest noise level, in sigma / alpha, at which guidance acts. Outside, the result is cond's (Kynkaanniemi et
            al. 2024); if no sample of the batch is inside, uncond is not computed. None = all levels.
        rescale: 0 to 1: how far the standard deviation of each sample's x0 is brought back to that of cond's x0 (phi of Lin et al. 2023,
            sec. 3.4; theirs rescales the network's output, which at zero SNR is the same).

    Raises:
        UserError: an invalid interval; a scale or rescale out of range.
    """
    check_limits(scale, interval, rescale)
    low, high = interval or (0.0, math.inf)
    cond_only = denoiser.bind(cond)
    if scale == 1:
        return cond_only
    both, process = denoiser.bind(Condition.stack([uncond, cond])), denoiser.process

    def denoise(x_t: Tensor, t: Tensor) -> Estimate:
        level = process.sigma(t) / process.alpha(t)
        inside = (low <= level) & (level <= high)
        if not inside.any():
            return cond_only(x_t, t)
        uncond_estimate, cond_estimate = _halves(both(torch.cat([x_t, x_t]), torch.cat([t, t])))
        guided = uncond_estimate.toward(cond_estimate, scale)
        if rescale:
            guided = with_x0(guided, _rescaled(guided.x0, cond_estimate.x0, rescale), x_t, t, process)
        rows = over(inside, x_t)
        x0, eps = torch.where(rows, guided.x0, cond_estimate.x0), torch.where(rows, guided.eps, cond_estimate.eps)
        return replace(cond_estimate, x0=x0, eps=eps)

    return denoise


def check_limits(scale: float, interval: tuple[float, float] | None, rescale: float) -> None:
    """Raises UserError for an invalid interval, or a scale or rescale out of range."""
    if not (scale >= 0 and math.isfinite(scale)):
        raise UserError(f"guidance must be a number from 0 up (1 = no guidance, 4 = usual), got {scale}")
    low, high = interval or (0.0, math.inf)
    if not 0 <= low <= high:
        raise UserError(f"a guidance interval is two noise levels sigma / alpha, 0 <= low <= high, got {low} and {high}")
    if not 0 <= rescale <= 1:
        raise UserError(f"guidance rescale must be from 0 (none) to 1 (all), got {rescale}")


def _halves(estimate: Estimate) -> tuple[Estimate, Estimate]:
    (x0, more_x0), (eps, more_eps) = estimate.x0.chunk(2), estimate.eps.chunk(2)
    variance_logits, more_logits = (None, None) if estimate.variance_logits is None else estimate.variance_logits.chunk(2)
    return Estimate(x0, eps, variance_logits), Estimate(more_x0, more_eps, more_logits)


def _rescaled(x0: Tensor, target: Tensor, share: float) -> Tensor:
    """x0 with each sample's standard deviation moved a share of the way to that of the target."""
    tiny = torch.finfo(x0.dtype).tiny  # a constant x0 has no contrast to rescale
    factor = target.flatten(1).std(1) / x0.flatten(1).std(1).clamp(min=tiny)
    return over(share * factor + 1 - share, x0) * x0
