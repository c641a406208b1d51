"""The variance-preserving SDE: DDPM's chain in the limit of many steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ldm.core.family import kind
from ldm.diffusion.processes.linear_beta import LinearBeta


@kind("vp_sde")
@dataclass(frozen=True, kw_only=True, slots=True)
class VPSDE(LinearBeta):
    """dx = -beta x / 2 dt + sqrt(beta) dw, so alpha^2 = exp(-B) and sigma^2 = 1 - exp(-B). Song et al. 2021, eq. 11 and 29."""

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self.beta_sum(t))).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        total = self.beta_sum(t)
        return -total - (-torch.expm1(-total)).log()

    def time_at(self, log_snr: Tensor) -> Tensor:
        return self.time_of(softplus(-log_snr.double()))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, beta = self.alpha(t), self.beta(t)
        return -beta / 2 * alpha, beta / 2 * alpha.square() / self.sigma(t)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.beta(t)
