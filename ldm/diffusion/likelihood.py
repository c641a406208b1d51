"""Likelihood of data under a denoiser, in bits/dim: the chain's variational bound term by term, and the probability flow's density.

Both take any Denoise, so guidance, clipping and any network can be measured; the flow's density also needs gradients through it. For
latents these are bits per latent number: `ldm.metrics.latent_bound` adds the first stage's terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from ldm.core.device import finest_float
from ldm.core.errors import UserError, unknown
from ldm.core.random import Streams
from ldm.diffusion import bound
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.grid import Trailing
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.diffusion.settings import FIRST_NOISE, Probe

BIN = 2 / (bound.PIXEL_LEVELS - 1)  # between two levels of a pixel in [-1, 1]
LAST_NOISE = 1e-2  # sigma / alpha at which the bound's last step to the data starts: that of the first of Ho et al.'s 1000 steps


def first_time(process: NoiseProcess, noise: float = FIRST_NOISE) -> float:
    """The time at which sigma / alpha is `noise`. There the flow counts as having reached the data.

    For the VP-SDE it is the published 1e-5. For a chain of N steps it must lie below 1 / N: step 1 has more noise than the width of a bin,
    so the likelihood of sharper data would include bits of that noise, which no sample of the chain has. Below 1 / N, networks with a
    `TableIndex` input get the same network time as at 1 / N.
    """
    return process.time_of_noise(noise)


def bound_times(process: NoiseProcess, steps: int | None = None) -> Tensor:
    """The time grid of `variational_bound`: (steps + 1,) times falling from 1 to 0.

    For a table these are its own steps, or an even selection of them. For a continuous process the times are evenly spaced in
    sigma / (alpha + sigma) down to sigma / alpha = LAST_NOISE, then 0: smaller noise would only resolve a pixel's value within its level.

    Args:
        process: the denoiser's.
        steps: None = the process's num_steps.

    Raises:
        UserError: more steps than a table has, or fewer than 2.
    """
    steps = process.num_steps if steps is None else steps
    if steps < 2:
        raise UserError(f"the variational bound needs at least 2 steps, got {steps}")
    if isinstance(process, DiscreteVP):
        return Trailing().times(process, steps)
    ends = process.noise_share(torch.tensor([process.t_last, first_time(process, LAST_NOISE)], dtype=torch.float64))
    times = process.time_at(-2 * torch.lerp(ends[0], ends[1], torch.linspace(0, 1, steps, dtype=torch.float64)).logit())
    times[0] = process.t_last  # to the bit
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The variational bound of each sample, bits/dim.

    Attributes:
        prior: (B,), L_T.
        steps: (B, steps), from the noisiest; the last is L_0.
    """

    prior: Tensor
    steps: Tensor

    @property
    def total(self) -> Tensor:
        """(B,): an upper bound of -log2 p(x0) per number, on average over the noise."""
        return self.prior + self.steps.sum(1)


@torch.no_grad()
def variational_bound(
    denoise: Denoise,
    x0: Tensor,
    times: Tensor,
    process: NoiseProcess,
    noise: Callable[[int], Tensor],
    levels: int | None = bound.PIXEL_LEVELS,
    fixed_logits: float = 0.0,
) -> Bound:
    """The bound of the chain through `times`. Any chain gives a bound; the full table gives the published one.

    Args:
        denoise: called once per step.
        x0: (B, ...), in [-1, 1] if it has levels.
        times: (steps + 1,) falling from 1 to 0, see `bound_times`; at least 2 steps.
        process: the denoiser's.
        noise: noise(i) gives N(0, I) like x0 for step i (from 0).
        levels: see `bound.term`.
        fixed_logits: variance logits to use if they are not learned: 0 = the posterior's variance, 1 = that of q(x_t | x_s).

    Raises:
        UserError: a single step, for which no variance is defined; times that do not go from 1 to 0.
    """
    times = times.detach().double().cpu()
    if len(times) < 3 or times[0] != process.t_last or times[-1] != 0:
        raise UserError(f"the variational bound needs at least 2 steps, from t = 1 to t = 0, got {len(times) - 1} from {times[0]:g}")
    terms = []
    for i in range(len(times) - 1):
        t, s = times[i].expand(len(x0)), times[i + 1].expand(len(x0))
        now = denoise(process.blend(Estimate(x0=x0, eps=noise(i)), t), t)
        if now.variance_logits is None:
            now = replace(now, variance_logits=torch.full_like(x0, fixed_logits))
        terms.append(bound.term(now, x0, s, t, process, levels))
    return Bound(prior=bound.prior_term(x0, process), steps=torch.stack(terms, dim=1))


@dataclass(frozen=True, kw_only=True)
class FlowDensity:
    """Likelihood of each sample by the probability flow.

    Attributes:
        bits: (B,), -log2 of the density per number; for pixels, of a level's probability.
        evaluations: number of denoiser calls.
    """

    bits: Tensor
    evaluations: int


def pixel_flow_density(
    denoise: Denoise,
    x0: Tensor,
    process: NoiseProcess,
    streams: Streams,
    probe: Probe = "rademacher",
    first: float | None = None,
    tolerance: float = 1e-5,
) -> FlowDensity:
    """bits/dim of pixels on 256 levels in [-1, 1], by uniform dequantisation.

    Each pixel gets a random value within its bin, level +- 1/255, and the density there stands for the whole bin. On average this is an
    upper bound of -log2 of the bin's probability. Theis et al. 2016, sec. 3.1.

    Args:
        denoise: see `flow_density`.
        x0: (B, ...), on the levels.
        process: the denoiser's.
        streams: one per sample; gives the values within the bins and the probes.
        probe: distribution of the vector that the trace is estimated with.
        first: the least noisy time; None = `first_time`.
        tolerance: of the solver.

    Raises:
        UserError: unknown probe.
    """
    drawn = draw_probe(probe, streams, x0)
    place = streams.uniform("dequantise", x0.shape[1:]).to(x0)
    found = flow_density(denoise, x0 + BIN * (place - 0.5), process, drawn, first, tolerance)
    return replace(found, bits=found.bits - math.log2(BIN))


def draw_probe(probe: Probe, streams: Streams, x: Tensor) -> Tensor:
    """The random vector with which `flow_density` estimates the divergence: like x (B, ...), of mean 0 and covariance I.

    Raises:
        UserError: unknown probe.
    """
    if probe not in get_args(Probe):
        raise unknown("probe", probe, get_args(Probe))
    drawn = streams.normal("probe", x.shape[1:]).to(x)
    if probe == "gaussian":
        return drawn
    return torch.where(drawn < 0, -torch.ones_like(drawn), torch.ones_like(drawn))


@torch.no_grad()
def flow_density(
    denoise: Denoise, x: Tensor, process: NoiseProcess, probe: Tensor, first: float | None = None, tolerance: float = 1e-5
) -> FlowDensity:
    """The density of continuous data by the instantaneous change of variables along the probability flow.

    With y = x / (alpha + sigma) and the time variable u = sigma / (alpha + sigma) the flow is dy/du = eps - x0 =: F, which is singular at
    neither end, and d log p / du = -div F. The divergence is estimated by probe . (dF/dy) probe (Hutchinson).

    Args:
        denoise: must be differentiable from x_t to x0 and eps, so it must not use `no_grad` itself.
        x: (B, ...), read as x_t at t = first.
        process: the denoiser's.
        probe: like x, of mean 0 and covariance I; the same along the whole flow.
        first: the least noisy time, in (0, 1); None = `first_time`. Smaller is closer to the data but further from the trained times.
        tolerance: absolute and relative tolerance of dopri5, for y and for the log-density per number.

    Source: Song et al. 2021, sec. 4.3 and appendix D.2; Grathwohl et al. 2019, eq. 7.
    """
    ends = torch.tensor([first_time(process) if first is None else first, process.t_last], dtype=torch.float64)
    share = process.noise_share(ends)
    scale = process.alpha(ends) + process.sigma(ends)
    numbers = x[0].numel()
    evaluations = 0

    def slope(u: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        nonlocal evaluations
        evaluations += 1
        # u = sigma / (alpha + sigma), so ln(sigma / alpha) = logit(u)
        t = process.time_at(-2 * u.detach().cpu().double().clamp(*share.tolist()).logit())
        with torch.enable_grad():
            y = state[0].detach().requires_grad_()
            alpha, sigma = process.scales(t, y)
            estimate = denoise((alpha + sigma) * y, t.expand(len(y)))
            velocity = estimate.eps - estimate.x0
            (pulled,) = torch.autograd.grad((velocity * probe).sum(), y)
        return velocity.detach(), (pulled * probe).flatten(1).sum(1) / numbers

    start = (x / scale[0].to(x), torch.zeros(len(x), dtype=x.dtype, device=x.device))
    from torchdiffeq import odeint  # it loads scipy, which drawing does not need

    u = share.to(x.device, finest_float(x.device))
    options = {"step_t": u[1:], "dtype": u.dtype}
    y, gained = odeint(slope, start, u, rtol=tolerance, atol=tolerance, method="dopri5", options=options)
    end = y[-1] * scale[1].to(x) / process.prior_std
    # log p(x) per number: the prior's, plus the log-volume changes of the flow and of the two rescalings.
    prior = -end.square().flatten(1).mean(1) / 2 - math.log(2 * math.pi) / 2 - math.log(process.prior_std)
    log_density = prior + gained[-1] + (scale[1] / scale[0]).log().item()
    return FlowDensity(bits=-log_density / math.log(2), evaluations=evaluations)


def mean_and_error(bits: Tensor) -> tuple[float, float]:
    """The mean over samples (B,) and its standard error, which includes the noise of probes, dequantisation and the bound.

    Raises:
        UserError: fewer than 2 samples.
    """
    if len(bits) < 2:
        raise UserError("a standard error needs at least 2 samples")
    return bits.double().mean().item(), (bits.double().std() / math.sqrt(len(bits))).item()
