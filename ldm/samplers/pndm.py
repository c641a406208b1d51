"""Pseudo numerical methods on manifolds (Liu et al. 2022): a linear multistep method on eps, each step by DDIM's formula.

The warm-up is that of Stable Diffusion's PLMS (one pseudo improved Euler step, then orders 2 and 3), not the paper's Runge-Kutta: one extra
evaluation in all instead of nine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ldm.core.family import kind
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.samplers.frame import RATIO
from ldm.samplers.sampler import Noise, Past, Sampler

ADAMS_BASHFORTH = ((3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))  # the latest first
STEEP = 10  # largest factor by which sigma / alpha may fall in a multistep step


@kind("pndm")
@dataclass(frozen=True, kw_only=True, slots=True)
class PNDM(Sampler):
    """Second order on grids that are evenly spaced in t: the weights are those of equal steps.

    It takes a DDIM step to data, and wherever sigma / alpha is STEEP or more and falls by the factor STEEP or more: after a start at zero
    SNR, and in the first step of the cosine table (20,291 to 13, with 20 steps). There the error of x0 would be the difference of two eps,
    magnified by that factor.
    """

    memory: ClassVar[int] = 3

    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Noise, denoise: Denoise
    ) -> Tensor:
        if process.sigma(s) == 0 or RATIO.position(process, t) >= STEEP * RATIO.position(process, s).clamp(min=1):
            return process.blend(now, s)
        if past:
            latest = [now.eps, *(estimate.eps for _, estimate in reversed(past))]
            weights = ADAMS_BASHFORTH[len(latest) - 2]
            eps = sum((w * e for w, e in zip(weights[1:], latest[1:], strict=True)), weights[0] * latest[0])
        else:
            eps = (now.eps + denoise(process.blend(now, s), s).eps) / 2
        return RATIO.move(x_t, t, s, eps, process)
