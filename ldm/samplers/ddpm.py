"""Ancestral sampling (Ho et al. 2020, alg. 2), with strides (Nichol & Dhariwal 2021, sec. 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ldm.core.errors import UserError, unknown
from ldm.core.family import kind
from ldm.diffusion.estimate import Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.samplers.sampler import Past, Sampler

VARIANCES = ("small", "large")


@kind("ddpm")
@dataclass(frozen=True, kw_only=True, slots=True)
class DDPM(Sampler):
    """Draws x_s from q(x_s | x_t, x0) with the estimated x0.

    Attributes:
        variance: `small` = the posterior's own (beta tilde), right for data at one point; `large` = that of q(x_t | x_s) (beta), right
            for N(0, I) data.
    """

    variance: Literal["small", "large"] = "small"

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise unknown("ddpm variance", self.variance, VARIANCES)

    def check(self, process: NoiseProcess, steps: int) -> None:
        if steps > process.num_steps:
            raise UserError(f"ddpm can take at most the process's {process.num_steps} steps, got {steps}")

    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Callable[[], Tensor]
    ) -> Tensor:
        mean = process.posterior_mean(now.x0, x_t, s, t)
        if process.sigma(s) == 0:
            return mean  # data reached: alg. 2 draws no noise at its last step
        variance = process.posterior_variance(s, t) if self.variance == "small" else process.step_variance(s, t)
        return mean + variance.sqrt() * noise()
