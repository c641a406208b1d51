"""The sub-VP SDE: the signal of the variance-preserving SDE with at most its noise, made for likelihoods."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.core.family import kind
from ldm.diffusion.processes.linear_beta import LinearBeta


@kind("sub_vp_sde")
@dataclass(frozen=True, kw_only=True, slots=True)
class SubVPSDE(LinearBeta):
    """dx = -beta x / 2 dt + sqrt(beta (1 - exp(-2B))) dw, so alpha^2 = exp(-B), sigma = 1 - exp(-B). Song et al. 2021, eq. 12 and 29."""

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.beta_sum(t))

    def log_snr(self, t: Tensor) -> Tensor:
        total = self.beta_sum(t)
        return -total - 2 * (-torch.expm1(-total)).log()

    def time_at(self, log_snr: Tensor) -> Tensor:
        # sigma / alpha = 2 sinh(B / 2)
        return self.time_of(2 * ((-log_snr.double() / 2).exp() / 2).asinh())

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, beta = self.alpha(t), self.beta(t)
        return -beta / 2 * alpha, beta * alpha.square()
