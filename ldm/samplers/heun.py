"""Heun's method with churn: the deterministic and the stochastic sampler of Karras et al. 2022 (EDM), alg. 1 and 2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ldm.core.errors import UserError, unknown
from ldm.core.family import kind
from ldm.core.settings import Limit
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.samplers.frame import FRAMES, RATIO
from ldm.samplers.sampler import Noise, Past, Sampler

GAMMA_MAX = math.sqrt(2) - 1  # no more new noise than there is already


@kind("heun")
@dataclass(frozen=True, kw_only=True, slots=True)
class Heun(Sampler):
    """Euler's step, repeated with the mean of the slopes at both ends: second order, two evaluations per step, one in the step to data.

    Attributes:
        frame: see `ldm.samplers.frame`. `ratio` is the paper's. Avoid it on grids whose first step reduces sigma / alpha many times (the
            cosine table with trailing steps): it magnifies the difference of the two slopes by the same factor.
        s_churn: S_churn: the noise added before each step raises the noise ratio sigma / alpha by the factor 1 + s_churn / steps, at most
            sqrt(2), and never beyond the process's noisiest time. 0 = deterministic.
        s_tmin: smallest sigma / alpha at which noise is added.
        s_tmax: largest sigma / alpha at which noise is added.
        s_noise: standard deviation of the added noise, about 1.
    """

    frame: Literal["flow", "ratio"] = "flow"
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: Limit = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.frame not in FRAMES:
            raise unknown("heun frame", self.frame, FRAMES)
        if not (self.s_churn >= 0 and 0 <= self.s_tmin <= self.s_tmax and self.s_noise > 0):
            values = f"s_churn {self.s_churn}, s_tmin {self.s_tmin}, s_tmax {self.s_tmax}, s_noise {self.s_noise}"
            raise UserError(f"heun needs s_churn >= 0, 0 <= s_tmin <= s_tmax and s_noise > 0, got {values}")

    def check(self, process: NoiseProcess, grid: Tensor) -> None:
        FRAMES[self.frame].check(process, grid)

    def churn(self, x_t: Tensor, t: Tensor, steps: int, process: NoiseProcess, noise: Noise) -> tuple[Tensor, Tensor]:
        if self.s_churn == 0 or not self.s_tmin <= RATIO.position(process, t) <= self.s_tmax:
            return x_t, t
        gamma = min(self.s_churn / steps, GAMMA_MAX)
        t_hat = process.time_at(process.log_snr(t) - 2 * math.log1p(gamma))  # where sigma / alpha is 1 + gamma times as large
        if t_hat <= t:
            return x_t, t
        added = self.s_noise * process.step_variance(t, t_hat).sqrt()
        return process.alpha(t_hat) / process.alpha(t) * x_t + added * noise(), t_hat

    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Noise, denoise: Denoise
    ) -> Tensor:
        if process.sigma(s) == 0:
            return process.blend(now, s)  # there is no slope at s = 0 to correct with
        frame = FRAMES[self.frame]
        slope = frame.slope(now)
        x_s = frame.move(x_t, t, s, slope, process)
        return frame.move(x_t, t, s, (slope + frame.slope(denoise(x_s, s))) / 2, process)
