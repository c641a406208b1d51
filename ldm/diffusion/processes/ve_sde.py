"""The variance-exploding SDE: noise is only added."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.core.family import kind
from ldm.diffusion.processes.exploding import Exploding
from ldm.diffusion.processes.linear_beta import T_FIRST


@kind("ve_sde")
@dataclass(frozen=True, kw_only=True, slots=True)
class VESDE(Exploding):
    """dx = sigma_min r^t sqrt(2 log r) dw with r = sigma_max / sigma_min, so alpha = 1 and sigma^2 = sigma_min^2 (r^(2t) - 1).

    That is the SDE's own variance, 0 at t = 0. Song et al. 2021 (eq. 30 and appendix C) omit the -1, as if the data had noise of sigma_min
    beforehand; for sigma of a few sigma_min and more the two agree.

    Attributes:
        sigma_min: scale of the noise's growth at t = 0, in the data's unit.
        sigma_max: noise level at t = 1, but for the -1.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    @property
    def t_first(self) -> float:
        return T_FIRST

    @property
    def growth(self) -> float:
        """2 log r: how fast r^(2t) grows."""
        return 2 * math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.expm1(self.growth * t.double()).sqrt()

    def time_at(self, log_snr: Tensor) -> Tensor:
        return (torch.log1p((-log_snr.double()).exp() / self.sigma_min**2) / self.growth).clamp(max=1)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t, dtype=torch.float64), self.diffusion(t) / (2 * self.sigma(t))

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma_min**2 * self.growth * (self.growth * t.double()).exp()
