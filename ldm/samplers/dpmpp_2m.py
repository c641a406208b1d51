"""DPM-Solver++ (2M) (Lu et al. 2022, alg. 2): second order from one evaluation a step, by what the step before saw."""

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
    """x0 extrapolated in half log-SNR to the middle of the step; first order in the first step and in the one that lands on data."""

    memory: ClassVar[int] = 1

    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Noise, denoise: Denoise
    ) -> Tensor:
        alpha, sigma = process.alpha(s), process.sigma(s)
        x0 = x0_of_middle(t, s, now, past, process)
        shrink = process.alpha(t) * sigma / (alpha * process.sigma(t))  # exp(-h)
        return sigma / process.sigma(t) * x_t + alpha * (1 - shrink) * x0


def x0_of_middle(t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess) -> Tensor:
    """x0 on the line through the last two estimates in log-SNR, half-way from t to s; the latest where the line is not known."""
    if not past or process.sigma(s) == 0:
        return now.x0
    before, seen = past[-1]
    # r = h_before / h; infinite after a start without any signal, where the step before tells no slope.
    r = (process.log_snr(t) - process.log_snr(before)) / (process.log_snr(s) - process.log_snr(t))
    return now.x0 + (now.x0 - seen.x0) / (2 * r)
