"""Predictor-corrector sampling of the reverse SDE (Song et al. 2021, alg. 1, 4 and 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ldm.core.errors import UserError, unknown
from ldm.core.family import kind
from ldm.core.shapes import over
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.samplers.sampler import Noise, Past, Sampler

PREDICTORS = ("reverse_diffusion", "euler_maruyama")


@kind("pc")
@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorCorrector(Sampler):
    """A step of the reverse SDE, then Langevin steps at its end. 1 + corrections evaluations per step; the step to data returns x0.

    Attributes:
        predictor: `reverse_diffusion` = the forward step from s to t, reversed (eq. 46); `euler_maruyama` = drift and diffusion at t.
        corrections: Langevin steps (M); 0 = predictor only.
        snr: signal-to-noise ratio of a Langevin step (r).
    """

    predictor: Literal["reverse_diffusion", "euler_maruyama"] = "reverse_diffusion"
    corrections: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        if self.predictor not in PREDICTORS:
            raise unknown("pc predictor", self.predictor, PREDICTORS)
        if self.corrections < 0 or self.snr <= 0:
            raise UserError(f"pc needs corrections >= 0 and snr > 0, got {self.corrections} and {self.snr}")

    def check(self, process: NoiseProcess, grid: Tensor) -> None:
        if self.predictor == "euler_maruyama" and process.alpha(grid[0]) == 0:
            raise UserError("pc's euler_maruyama cannot start at zero SNR, where the drift is infinite: use reverse_diffusion")

    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Noise, denoise: Denoise
    ) -> Tensor:
        if process.sigma(s) == 0:
            return process.blend(now, s)
        if process.alpha(t) == 0:  # x_t does not depend on x_s, so the forward step cannot be reversed
            x = process.blend(now, s)
        else:
            x = self._predicted(x_t, t, s, _score(now, t, process), noise(), process)
        for k in range(1, self.corrections + 1):
            x = self._corrected(x, s, _score(denoise(x, s), s, process), noise(k), process)
        return x

    def _predicted(self, x_t: Tensor, t: Tensor, s: Tensor, score: Tensor, z: Tensor, process: NoiseProcess) -> Tensor:
        if self.predictor == "euler_maruyama":
            f, g2, dt = process.drift(t), process.diffusion(t), t - s
            return x_t - (f * x_t - g2 * score) * dt + (g2 * dt).sqrt() * z
        # Forward, x_t = a x_s + sqrt(beta) z; so x_t - x_s is (a - 1) x_s + sqrt(beta) z, and the reverse step puts x_t for x_s in it.
        a, beta = process.alpha(t) / process.alpha(s), process.step_variance(s, t)
        return (2 - a) * x_t + beta * score + beta.sqrt() * z

    def _corrected(self, x: Tensor, s: Tensor, score: Tensor, z: Tensor, process: NoiseProcess) -> Tensor:
        """Norms are per image, not the batch's mean, so that an image does not depend on its batch."""
        previous = (s - 1 / process.num_steps).clamp(min=0)
        one_minus_beta = (process.alpha(s) / process.alpha(previous)) ** 2  # 1 - beta_i for a VP chain, 1 for VE
        step = 2 * one_minus_beta * (self.snr * _norm(z) / _norm(score)) ** 2
        return x + over(step, x) * score + over((2 * step).sqrt(), x) * z


def _score(estimate: Estimate, t: Tensor, process: NoiseProcess) -> Tensor:
    """Gradient of log p_t."""
    return -estimate.eps / process.sigma(t)


def _norm(x: Tensor) -> Tensor:
    """(B, ...) -> (B,)."""
    norms: Tensor = x.flatten(1).norm(dim=1)
    return norms
