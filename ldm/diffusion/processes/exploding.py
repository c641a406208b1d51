"""Base of the processes that only add noise: alpha = 1, and a last sigma beside which the data is negligible."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.diffusion.process import NoiseProcess, refuse_few_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Exploding(NoiseProcess):
    """Subclasses define sigma(t) and its inverse.

    Attributes:
        num_steps: see NoiseProcess.
        sigma_min: a small noise level, in the data's unit; each subclass defines which.
        sigma_max: noise level at t = 1.
    """

    num_steps: int = 1000
    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        refuse_few_steps(self.num_steps)
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(f"need 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * self.sigma(t).log()
