"""DDIM (Song, Meng & Ermon 2021): one family from the deterministic sampler to the ancestral one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.family import kind
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.samplers.sampler import Noise, Past, Sampler


@kind("ddim")
@dataclass(frozen=True, kw_only=True, slots=True)
class DDIM(Sampler):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c z with c = eta sqrt(beta tilde); eq. 12 and 16.

    Attributes:
        eta: fraction of the noise that is fresh, from 0 (deterministic, the probability flow) to 1 (DDPM with its small variance).
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"ddim needs 0 <= eta <= 1, got {self.eta}")

    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Noise, denoise: Denoise
    ) -> Tensor:
        if self.eta == 0 or process.sigma(s) == 0:
            return process.blend(now, s)
        fresh = self.eta**2 * process.posterior_variance(s, t)
        kept = (process.sigma(s) ** 2 - fresh).clamp(min=0)
        return process.alpha(s) * now.x0 + kept.sqrt() * now.eps + fresh.sqrt() * noise()
