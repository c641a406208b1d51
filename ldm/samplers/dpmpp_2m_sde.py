"""SDE-DPM-Solver++ (2M) (Lu et al. 2022), the midpoint form of k-diffusion: ancestral sampling with an extrapolated x0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ldm.core.family import kind
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.samplers.dpmpp_2m import x0_of_middle
from ldm.samplers.sampler import Noise, Past, Sampler


@kind("dpmpp_2m_sde")
@dataclass(frozen=True, kw_only=True, slots=True)
class DPMpp2MSDE(Sampler):
    """x_s drawn from q(x_s | x_t, x0), whose mean is sigma_s / sigma_t e^-h x_t + alpha_s (1 - e^-2h) x0, variance sigma_s^2 (1 - e^-2h).

    `ddpm` with its small variance is its first-order form.
    """

    memory: ClassVar[int] = 1

    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Noise, denoise: Denoise
    ) -> Tensor:
        mean = process.posterior_mean(x0_of_middle(t, s, now, past, process), x_t, s, t)
        if process.sigma(s) == 0:
            return mean
        return mean + process.posterior_variance(s, t).sqrt() * noise()
