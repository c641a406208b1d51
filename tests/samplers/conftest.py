"""Exact denoisers and flows for Gaussian data and a mixture, and the exact result of a sampler on Gaussian data."""

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
    """Each number of an image is N(mean, std^2), independently."""

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
        """x_s on the probability flow through x_t: the number of standard deviations from the mean is constant."""
        (mean_t, std_t), (mean_s, std_s) = self.marginal(t, x_t), self.marginal(s, x_t)
        return mean_s + std_s / std_t * (x_t - mean_t)


@dataclass(frozen=True)
class Mixture:
    """Each number is N(-1, 0.3^2) or N(1.2, 0.3^2), with equal probability."""

    process: NoiseProcess
    means = torch.tensor([-1.0, 1.2], dtype=torch.float64)
    std = 0.3

    def components(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Means (2,) of the components of x_t's distribution, and their common standard deviation."""
        alpha, sigma = self.process.scales(t.flatten()[0], x_t)
        return alpha * self.means, (alpha**2 * self.std**2 + sigma**2).sqrt()

    def denoise(self, x_t: Tensor, t: Tensor) -> Estimate:
        means, std = self.components(x_t, t)
        alpha, sigma = self.process.scales(t.flatten()[0], x_t)
        off = (x_t[..., None] - means) / std
        weights = (-off.square() / 2).softmax(-1)
        x0 = (weights * (self.means + alpha * self.std**2 / std * off)).sum(-1)
        return Estimate(x0, (x_t - alpha * x0) / sigma)

    def cdf(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The distribution function of x_t."""
        means, std = self.components(x_t, t)
        return torch.special.ndtr((x_t[..., None] - means) / std).mean(-1)

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """In one dimension the distribution function is constant along the probability flow; solved by bisection."""
        wanted = self.cdf(x_t, t)
        low, high = torch.full_like(x_t, -1e3), torch.full_like(x_t, 1e3)
        for _ in range(80):
            middle = (low + high) / 2
            under = self.cdf(middle, s) < wanted
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return low


@pytest.fixture
def gaussian() -> Callable[[NoiseProcess, float, float], Gaussian]:
    return Gaussian


@pytest.fixture
def mixture() -> Callable[[NoiseProcess], Mixture]:
    return Mixture


@pytest.fixture
def no_noise() -> Callable[[int], Tensor]:
    """Noise for deterministic samplers, which must not use it."""

    def refuse(step: int, further: int = 0) -> Tensor:
        raise AssertionError("a deterministic sampler drew noise")

    return refuse


@pytest.fixture
def sampled_moments() -> Callable[..., tuple[float, float]]:
    """Exact mean and standard deviation of a sampler's results on Gaussian data, where each step is x_s = A x_t + B + sum C_k z_k.

    Row 0 starts at the mean of x_t with zero noise; row 1 starts one deviation off; in each further row one of the draws is 1.
    """

    def measure(sampler, world: Gaussian, grid: Tensor, draws: int) -> tuple[float, float]:
        zero = torch.zeros(2 + draws, 1, dtype=torch.float64)
        mean, std = world.marginal(grid[0], zero)
        x = zero + mean
        x[1] += std
        rows: dict[tuple[int, int], int] = {}

        def noise(step: int, further: int = 0) -> Tensor:
            z = zero.clone()
            z[rows.setdefault((step, further), 2 + len(rows))] = 1
            return z

        got = sampler.sample(world.denoise, x, grid, world.process, noise)
        return got[0].item(), (got[1:] - got[0]).square().sum().sqrt().item()

    return measure


@pytest.fixture
def step_coefficients() -> Callable[..., tuple[float, float]]:
    """(A, C) of a step x_s = A x_t + B + C z, the form of every step on Gaussian data: found by inserting 0 and 1."""

    def measure(sampler, denoise, process, t: float, s: float) -> tuple[float, float]:
        def at(x: float, z: float) -> float:
            start = torch.full((1, 1), x, dtype=torch.float64)
            grid = torch.tensor([t, s], dtype=torch.float64)
            return sampler.sample(denoise, start, grid, process, lambda i: torch.full_like(start, z)).item()

        return at(1, 0) - at(0, 0), at(0, 1) - at(0, 0)

    return measure
