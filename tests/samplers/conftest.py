"""A denoiser that is exact: data of N(mean, std^2), where the probability flow has a closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ldm.diffusion.estimate import Estimate
from ldm.diffusion.process import NoiseProcess


@dataclass(frozen=True)
class Gaussian:
    """Each number of a picture is N(mean, std^2), independently."""

    process: NoiseProcess
    mean: float
    std: float

    def marginal(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_t."""
        alpha, sigma = self.process.scales(t, x)
        return alpha * self.mean, (alpha**2 * self.std**2 + sigma**2).sqrt()

    def denoise(self, x_t: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = self.process.scales(t, x_t)
        mean, std = self.marginal(t, x_t)
        off = (x_t - mean) / std**2
        return Estimate(x0=self.mean + alpha * self.std**2 * off, eps=sigma * off)

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Where the probability flow takes x_t: it keeps the number of standard deviations."""
        (mean_t, std_t), (mean_s, std_s) = self.marginal(t, x_t), self.marginal(s, x_t)
        return mean_s + std_s / std_t * (x_t - mean_t)


@pytest.fixture
def gaussian() -> Callable[[NoiseProcess, float, float], Gaussian]:
    return Gaussian


@pytest.fixture
def no_noise() -> Callable[[int], Tensor]:
    """For samplers that must not ask."""

    def refuse(step: int) -> Tensor:
        raise AssertionError("a deterministic sampler asked for noise")

    return refuse


@pytest.fixture
def spread_of() -> Callable[..., tuple[float, float]]:
    """(A, C) of a step x_s = A x_t + B + C z, which every step is on Gaussian data: read off by putting in 0 and 1."""

    def measure(sampler, denoise, process, t: float, s: float) -> tuple[float, float]:
        def at(x: float, z: float) -> float:
            start = torch.full((1, 1), x, dtype=torch.float64)
            grid = torch.tensor([t, s], dtype=torch.float64)
            return sampler.sample(denoise, start, grid, process, lambda i: torch.full_like(start, z)).item()

        return at(1, 0) - at(0, 0), at(0, 1) - at(0, 0)

    return measure
