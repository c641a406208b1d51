"""The variational bound on -log p(x0), one term per step: the cost of the reverse chain x_1 -> ... -> x_0. All in bits/dim.

-log p(x0) <= L_T + sum of L_{t-1} + L_0, with L_T = KL(q(x_1 | x0) || prior), L_{t-1} = KL(q(x_s | x_t, x0) || p(x_s | x_t)) and
L_0 = -log p(x0 | x_t) at the last step, s = 0 (Ho et al. 2020, eq. 5). p(x_s | x_t) is a Gaussian about the posterior's mean with the
estimated x0, and its variance is `NoiseProcess.log_variance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.special import log_ndtr

from ldm.diffusion.estimate import Estimate
from ldm.diffusion.process import NoiseProcess

PIXEL_LEVELS = 256


def term(estimate: Estimate, x0: Tensor, s: Tensor, t: Tensor, process: NoiseProcess, levels: int | None) -> Tensor:
    """L_{t-1}, or L_0 where s = 0: (B,) bits/dim, at x_t drawn from q(x_t | x0).

    Args:
        estimate: of x_t (B, ...). variance_logits None counts as 0: the variance is the posterior's own.
        x0: (B, ...), the data.
        s: (B,) float64 on the CPU, s < t; t likewise.
        process: the denoiser's.
        levels: number of levels of the data, from -1 to 1; L_0 is then a probability. None = the data are continuous and L_0 is a density.
    """
    variance_logits = torch.zeros_like(x0) if estimate.variance_logits is None else estimate.variance_logits
    log_p = process.log_variance(variance_logits, s, t)
    log_q = process.log_variance(torch.zeros_like(variance_logits), s, t)
    off = process.posterior_mean(x0 - estimate.x0, torch.zeros_like(x0), s, t)
    nats = (log_p - log_q + (log_q - log_p).exp() - 1 + off.square() * (-log_p).exp()) / 2

    last = (process.sigma(s) == 0).nonzero()[:, 0].to(x0.device)
    if len(last):
        nats = nats.index_put((last,), -log_likelihood(x0[last], estimate.x0[last], log_p[last] / 2, levels))
    return bits_per_dim(nats)


def prior_term(x0: Tensor, process: NoiseProcess) -> Tensor:
    """L_T = KL(q(x_1 | x0) || N(0, prior_std^2)): (B,) bits/dim. 0 for zero SNR at t = 1."""
    t = torch.tensor(process.t_last, dtype=torch.float64)
    off = process.alpha(t) / process.prior_std
    more = (process.sigma(t) / process.prior_std) ** 2 - 1
    nats = (more - torch.log1p(more)) / 2 + (off * x0.cpu().double()).square() / 2
    return bits_per_dim(nats).to(x0)


def log_likelihood(x0: Tensor, mean: Tensor, log_std: Tensor, levels: int | None) -> Tensor:
    """log of the probability, or density, of each number under a Gaussian, in nats; of x0's shape.

    Args:
        x0: the data.
        mean: of the Gaussian.
        log_std: likewise.
        levels: number of levels of x0, from -1 to 1. A level's probability is the Gaussian's mass nearest to it, and an outer level's
            includes all the mass beyond it (Ho et al. 2020, eq. 13). None = the density at x0.
    """
    off, scale = x0 - mean, (-log_std).exp()
    if levels is None:
        return -(off * scale).square() / 2 - log_std - math.log(2 * math.pi) / 2
    return level_log_probability(x0, off, scale, levels, log_ndtr)


def level_log_probability(x0: Tensor, off: Tensor, scale: Tensor, levels: int, log_cdf: Callable[[Tensor], Tensor]) -> Tensor:
    """log of the probability of each level under a symmetric distribution, in nats; of x0's shape.

    Args:
        x0: on `levels` levels from -1 to 1. A level's probability is the mass nearest to it; an outer level's includes all mass beyond it.
        off: x0 minus the distribution's centre.
        scale: factor from `off` to the distribution's own unit.
        levels: number of levels.
        log_cdf: log of the distribution function about 0 in that unit, accurate for negative arguments.
    """
    half = 1 / (levels - 1)
    above, below = (off + half) * scale, (off - half) * scale
    # Both limits are mirrored to the side where log_cdf is accurate.
    mirrored = off > 0
    high = log_cdf(torch.where(mirrored, -below, above))
    low = log_cdf(torch.where(mirrored, -above, below))
    between = high + (-torch.expm1(low - high)).log()
    return torch.where(x0 < half - 1, log_cdf(above), torch.where(x0 > 1 - half, log_cdf(-below), between))


def bits_per_dim(nats: Tensor) -> Tensor:
    """Nats per number, (B, ...), averaged to bits per number, (B,)."""
    return nats.flatten(1).mean(1) / math.log(2)
