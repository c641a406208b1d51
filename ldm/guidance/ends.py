"""Estimates with another x0: eps follows, so that x_t = alpha x0 + sigma eps still holds."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ldm.diffusion.estimate import Estimate
from ldm.diffusion.process import NoiseProcess


def with_x0(estimate: Estimate, x0: Tensor, x_t: Tensor, t: Tensor, process: NoiseProcess) -> Estimate:
    """The estimate with its x0 replaced; t () or (B,), above 0."""
    alpha, sigma = process.scales(t, x_t)
    return replace(estimate, x0=x0, eps=(x_t - alpha * x0) / sigma)
