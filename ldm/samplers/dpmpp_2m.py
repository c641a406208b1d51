"""DPM-Solver++ (2M) (Lu et al. 2022, alg. 2): second order from one evaluation per step, using the previous step's estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ldm.core.family import kind
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.samplers.sampler import Noise, Past, Sampler


@kind("dpmpp_2m")
@dataclass(frozen=True, kw_only=True, slots=True)
class DPMpp2M(Sampler):
    """x0 is extrapolated in half log-SNR to the middle of the step. The first step and the step to data are first order."""

    memory: ClassVar[int] = 1

    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Noise, denoise: Denoise
    ) -> Tensor:
        alpha, sigma = process.alpha(s), process.sigma(s)
        x0 = x0_of_middle(t, s, now, past, process)
        shrink = process.alpha(t) * sigma / (alpha * process.sigma(t))  # exp(-h)
        return sigma / process.sigma(t) * x_t + alpha * (1 - shrink) * x0


def x0_of_middle(t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess) -> Tensor:
    """x0 half-way from t to s in log-SNR, on the line through the last two estimates; the latest estimate if there is only one."""
    if not past or process.sigma(s) == 0:
        return now.x0
    previous_t, previous = past[-1]
    # r = h_previous / h; infinite after a start at zero SNR, so that the previous estimate drops out.
    r = (process.log_snr(t) - process.log_snr(previous_t)) / (process.log_snr(s) - process.log_snr(t))
    return now.x0 + (now.x0 - previous.x0) / (2 * r)
