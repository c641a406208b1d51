"""Euler's method with ancestral noise, as in k-diffusion: step to less noise than wanted, then add fresh noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.family import kind
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.samplers.frame import RATIO
from ldm.samplers.sampler import Noise, Past, Sampler


@kind("euler_ancestral")
@dataclass(frozen=True, kw_only=True, slots=True)
class EulerAncestral(Sampler):
    """In noise ratios r = sigma / alpha: Euler to r_down, then noise r_up, with r_down^2 + r_up^2 = r_s^2. It is `ddim` with the same eta.

    It has no `frame`: a straight step between two times is the same in both (see `Euler`).

    Attributes:
        eta: fraction of the noise that is fresh, from 0 (Euler) to 1 (the ancestral sampler).
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UserError(f"euler_ancestral needs 0 <= eta <= 1, got {self.eta}")

    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Noise, denoise: Denoise
    ) -> Tensor:
        if process.sigma(s) == 0:
            return process.blend(now, s)
        r_t, r_s = RATIO.position(process, t), RATIO.position(process, s)
        r_up = self.eta * r_s * (1 - (r_s / r_t) ** 2).sqrt()
        r_down = (r_s**2 - r_up**2).clamp(min=0).sqrt()
        return process.alpha(s) * (now.x0 + r_down * now.eps + r_up * noise())
