"""Annealed Langevin dynamics (Song & Ermon 2019, alg. 1): at each noise level a random walk along the score, then the next level."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.family import kind
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.samplers.sampler import Noise, Past, Sampler


@kind("langevin")
@dataclass(frozen=True, kw_only=True, slots=True)
class AnnealedLangevin(Sampler):
    """y <- y + (delta r^2 / 2) score + sqrt(delta) r z in y = x / alpha, with r = sigma / alpha: so delta r^2 is the paper's alpha_i.

    The grid's times are the noise levels; many levels, evenly spaced in log-SNR (grid `log_snr`), work best. `rounds` evaluations per
    level, and one for x0 at the end.

    It is biased, as the paper's is: the walk raises the variance v of N(m, v) by up to delta / 4 of it, and short walks keep noise of
    higher levels. At zero SNR no walk is possible, so DDIM's step is taken there.

    Attributes:
        rounds: Langevin steps per level (T; the paper: 100 at each of 10 levels).
        step_size: delta, the step in units of the level's variance; 0.2 in the paper (epsilon = 2e-5 over sigma_L^2 = 0.01^2).
    """

    rounds: int = 10
    step_size: float = 0.2

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 < self.step_size < 2:
            raise UserError(f"langevin needs rounds >= 1 and 0 < step_size < 2, got {self.rounds} and {self.step_size}")

    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Noise, denoise: Denoise
    ) -> Tensor:
        alpha, sigma = process.alpha(t), process.sigma(t)
        if alpha == 0:
            return process.blend(now, s)
        x, delta = x_t, self.step_size
        for k in range(1, self.rounds + 1):
            x = x - delta / 2 * sigma * now.eps + delta**0.5 * sigma * noise(k)
            if k < self.rounds or process.sigma(s) == 0:
                now = denoise(x, t)
        return process.blend(now, s) if process.sigma(s) == 0 else process.alpha(s) / alpha * x
