"""EDM's process: the noise level is proportional to t."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.core.family import kind
from ldm.diffusion.processes.exploding import Exploding


@kind("edm")
@dataclass(frozen=True, kw_only=True, slots=True)
class EDM(Exploding):
    """alpha = 1, sigma = sigma_max t. Karras et al. 2022, table 1, where the time is sigma itself.

    Attributes:
        sigma_min: the last noise level of sampling before the data, in the data's unit.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    @property
    def t_first(self) -> float:
        return self.sigma_min / self.sigma_max

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t.double()

    def time_at(self, log_snr: Tensor) -> Tensor:
        return ((-log_snr.double() / 2).exp() / self.sigma_max).clamp(max=1)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t, dtype=torch.float64), torch.full_like(t, self.sigma_max, dtype=torch.float64)
