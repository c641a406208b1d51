"""EDM's process: the noise itself is the clock."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.family import kind
from ldm.diffusion.process import NoiseProcess, refuse_few_steps


@kind("edm")
@dataclass(frozen=True, kw_only=True, slots=True)
class EDM(NoiseProcess):
    """alpha = 1, sigma = sigma_max t. Karras et al. 2022, table 1, where the clock is sigma itself.

    Attributes:
        num_steps: scale of the clock and of chains.
        sigma_min: the least noise that sampling stops at before the data, in the data's unit.
        sigma_max: noise at t = 1.
    """

    num_steps: int = 1000
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        refuse_few_steps(self.num_steps)
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    @property
    def t_first(self) -> float:
        return self.sigma_min / self.sigma_max

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t.double()

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * self.sigma(t).log()

    def time_at(self, log_snr: Tensor) -> Tensor:
        return ((-log_snr.double() / 2).exp() / self.sigma_max).clamp(max=1)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t, dtype=torch.float64), torch.full_like(t, self.sigma_max, dtype=torch.float64)
