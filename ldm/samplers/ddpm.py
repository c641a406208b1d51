"""Ancestral sampling (Ho et al. 2020, alg. 2), with strides (Nichol & Dhariwal 2021, sec. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ldm.core.errors import UserError, unknown
from ldm.core.family import kind
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.samplers.sampler import Noise, Past, Sampler

VARIANCES = ("small", "large", "learned")


@kind("ddpm")
@dataclass(frozen=True, kw_only=True, slots=True)
class DDPM(Sampler):
    """Draws x_s from q(x_s | x_t, x0) with the estimated x0.

    Attributes:
        variance: `small` = the posterior's own (beta tilde), exact for data at one point; `large` = that of q(x_t | x_s) (beta), exact
            for N(0, I) data; `learned` = between both, by the network's variance logits (Nichol & Dhariwal 2021, eq. 15); None = learned if
            the network has variance logits, else small.
    """

    variance: Literal["small", "large", "learned"] | None = None

    def __post_init__(self) -> None:
        if self.variance not in (None, *VARIANCES):
            raise unknown("ddpm variance", self.variance, VARIANCES)

    def check(self, process: NoiseProcess, grid: Tensor) -> None:
        steps = len(grid) - 1
        if steps > process.num_steps:
            raise UserError(f"ddpm can take at most the process's {process.num_steps} steps, got {steps}")

    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Noise, denoise: Denoise
    ) -> Tensor:
        mean = process.posterior_mean(now.x0, x_t, s, t)
        if process.sigma(s) == 0:
            return mean  # data reached: alg. 2 draws no noise at its last step
        return mean + self._std(now, s, t, process) * noise()

    def _std(self, now: Estimate, s: Tensor, t: Tensor, process: NoiseProcess) -> Tensor:
        match self.variance or ("small" if now.variance_logits is None else "learned"):
            case "small":
                return process.posterior_variance(s, t).sqrt()
            case "large":
                return process.step_variance(s, t).sqrt()
            case "learned":
                if now.variance_logits is None:
                    raise UserError("this model's prediction has no learned variance: use ddpm with variance small or large")
                return (process.log_variance(now.variance_logits, s, t) / 2).exp()
