"""DDPM's chain of N steps, alpha^2 + sigma^2 = 1, as a process in continuous time.

Step i of N (from 1) is at t = i / N, so a published table's index k (from 0) is at t = (k + 1) / N. Between steps log-SNR is linear in t.
In an interval with an infinite log-SNR at one end, the scale that goes to 0 is linear instead: sigma from step 1 down to t = 0, and alpha
in the last interval if the terminal SNR is zero.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldm.core.errors import UserError, unknown
from ldm.core.family import kind
from ldm.diffusion.process import NoiseProcess, refuse_few_steps

SPACINGS = ("linear", "sqrt_linear", "cosine")
COSINE_OFFSET, COSINE_CLIP = 0.008, 0.999  # Nichol & Dhariwal 2021, eq. 17 and sec. 3.2


@kind("discrete_vp")
@dataclass(frozen=True, kw_only=True, slots=True)
class DiscreteVP(NoiseProcess):
    """Variance-preserving chain by a table of betas.

    Attributes:
        spacing: how beta grows: `linear` (Ho et al. 2020: 1e-4 to 0.02), `sqrt_linear` = linear in sqrt(beta) (Rombach et al. 2022,
            "scaled linear"), `cosine` (Nichol & Dhariwal 2021; beta_first and beta_last are not used).
        num_steps: N.
        beta_first: variance added by the first step.
        beta_last: variance added by the last step.
        zero_terminal_snr: shift and scale sqrt(alpha_bar) so that step N is pure noise (Lin et al. 2023, alg. 1).
    """

    spacing: Literal["linear", "sqrt_linear", "cosine"] = "sqrt_linear"
    num_steps: int = 1000
    beta_first: float = 8.5e-4
    beta_last: float = 1.2e-2
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.spacing not in SPACINGS:
            raise unknown("beta spacing", self.spacing, SPACINGS)
        refuse_few_steps(self.num_steps)
        if not 0 < self.beta_first <= self.beta_last < 1:
            raise UserError(f"need 0 < beta_first <= beta_last < 1, got {self.beta_first} and {self.beta_last}")

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_snr(t).sigmoid().sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (-self.log_snr(t)).sigmoid().sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        table = self.table(t.device)
        place = (t.double() * self.num_steps).clamp(0, self.num_steps)  # in steps
        i = place.long().clamp(1, self.num_steps - 1)
        between = torch.lerp(table[i - 1], table[i], place - i)

        sigma = place * (-table[0]).sigmoid().sqrt()
        between = torch.where(place < 1, torch.log1p(-sigma.square()) - 2 * sigma.log(), between)
        if self.zero_terminal_snr:
            alpha = (self.num_steps - place) * table[-2].sigmoid().sqrt()
            between = torch.where(place >= self.num_steps - 1, 2 * alpha.log() - torch.log1p(-alpha.square()), between)
        return between

    def time_at(self, log_snr: Tensor) -> Tensor:
        table = self.table(log_snr.device)
        wanted = log_snr.double()
        i = torch.searchsorted(-table, -wanted).clamp(1, self.num_steps - 1)  # table[i - 1] >= wanted >= table[i]
        place = i + ((table[i - 1] - wanted) / (table[i - 1] - table[i])).clamp(max=1)

        sigma = (-wanted).sigmoid().sqrt()
        place = torch.where(wanted > table[0], sigma / (-table[0]).sigmoid().sqrt(), place)
        if self.zero_terminal_snr:
            alpha = wanted.sigmoid().sqrt()
            place = torch.where(wanted < table[-2], self.num_steps - alpha / table[-2].sigmoid().sqrt(), place)
        return place / self.num_steps

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes jump at the table's steps; at a step they are those of its noisier side."""
        table = self.table(t.device)
        place = (t.double() * self.num_steps).clamp(0, self.num_steps)
        i = place.long().clamp(1, self.num_steps - 1)
        half_slope = self.num_steps * (table[i] - table[i - 1]) / 2
        alpha, sigma = self.alpha(t), self.sigma(t)
        d_alpha, d_sigma = half_slope * alpha * sigma.square(), -half_slope * sigma * alpha.square()

        # Where one scale is linear, alpha alpha' + sigma sigma' = 0 gives the other's slope.
        first = self.num_steps * (-table[0]).sigmoid().sqrt()
        d_sigma = torch.where(place < 1, first, d_sigma)
        d_alpha = torch.where(place < 1, -sigma * first / alpha, d_alpha)
        if self.zero_terminal_snr:
            last = -self.num_steps * table[-2].sigmoid().sqrt()
            d_alpha = torch.where(place >= self.num_steps - 1, last, d_alpha)
            d_sigma = torch.where(place >= self.num_steps - 1, -alpha * last / sigma, d_sigma)
        return d_alpha, d_sigma

    def table(self, device: torch.device) -> Tensor:
        """log-SNR of steps 1 to N, (N,) float64."""
        return _table(self, device)


@functools.lru_cache(maxsize=64)
def _table(process: DiscreteVP, device: torch.device) -> Tensor:
    # In logarithms: a long chain's alpha_bar is below the smallest normal float64.
    log_alpha_bar = torch.log1p(-_betas(process)).cumsum(0)
    if process.zero_terminal_snr:
        root = (log_alpha_bar / 2).exp()
        log_alpha_bar = 2 * ((root - root[-1]) * root[0] / (root[0] - root[-1])).log()
    return (log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))).to(device)


def _betas(process: DiscreteVP) -> Tensor:
    n = process.num_steps
    match process.spacing:
        case "linear":
            return torch.linspace(process.beta_first, process.beta_last, n, dtype=torch.float64)
        case "sqrt_linear":
            return torch.linspace(process.beta_first**0.5, process.beta_last**0.5, n, dtype=torch.float64).square()
        case "cosine":
            u = torch.arange(n + 1, dtype=torch.float64) / n
            alpha_bar = ((u + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2).cos().square()
            return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=COSINE_CLIP)
