"""Base of the two variance-bounded SDEs of Song et al. 2021: a noise rate beta(t) that grows linearly, and the alpha that follows."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor

from ldm.core.errors import UserError
from ldm.diffusion.process import NoiseProcess, refuse_few_steps

T_FIRST = 1e-5  # the least noisy time that the published models were trained at; Song et al. 2021, appendix C


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearBeta(NoiseProcess, abc.ABC):
    """alpha = exp(-B / 2) with B the integral of beta(t) = beta_min + t (beta_max - beta_min).

    Attributes:
        num_steps: see NoiseProcess.
        beta_min: noise rate at t = 0, per unit of t.
        beta_max: noise rate at t = 1.
    """

    num_steps: int = 1000
    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        refuse_few_steps(self.num_steps)
        if not 0 < self.beta_min <= self.beta_max:
            raise UserError(f"need 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    @property
    def t_first(self) -> float:
        return T_FIRST

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t.double() * (self.beta_max - self.beta_min)

    def beta_sum(self, t: Tensor) -> Tensor:
        """B, the integral of beta from 0 to t."""
        t = t.double()
        return t * (self.beta_min + t * (self.beta_max - self.beta_min) / 2)

    def time_of(self, beta_sum: Tensor) -> Tensor:
        """The t at which B is beta_sum; outside [0, 1], the nearer end."""
        total = beta_sum.clamp(0, (self.beta_min + self.beta_max) / 2)
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * total).sqrt()
        return (2 * total / (self.beta_min + root)).clamp(max=1)

    def alpha(self, t: Tensor) -> Tensor:
        return (-self.beta_sum(t) / 2).exp()

    def drift(self, t: Tensor) -> Tensor:
        return -self.beta(t) / 2
