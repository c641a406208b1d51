"""The straight line from data to noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.core.family import kind
from ldm.diffusion.process import NoiseProcess, refuse_few_steps


@kind("rectified_flow")
@dataclass(frozen=True, kw_only=True, slots=True)
class RectifiedFlow(NoiseProcess):
    """alpha = 1 - t, sigma = t. Liu et al. 2023; Lipman et al. 2023 (with sigma_min = 0, and their time reversed).

    Attributes:
        num_steps: see NoiseProcess.
    """

    num_steps: int = 1000

    def __post_init__(self) -> None:
        refuse_few_steps(self.num_steps)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.double()

    def sigma(self, t: Tensor) -> Tensor:
        return t.to(torch.float64, copy=True)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * t.double().logit()

    def time_at(self, log_snr: Tensor) -> Tensor:
        return (-log_snr.double() / 2).sigmoid()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t, dtype=torch.float64)
        return -one, one
