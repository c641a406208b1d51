"""Euler's method on the probability flow: first order, one evaluation per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ldm.core.errors import unknown
from ldm.core.family import kind
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.samplers.frame import FRAMES
from ldm.samplers.sampler import Noise, Past, Sampler


@kind("euler")
@dataclass(frozen=True, kw_only=True, slots=True)
class Euler(Sampler):
    """y_s = y_t + (u_s - u_t) dy/du (Karras et al. 2022, alg. 1 without lines 6 to 8). In either frame it is `ddim` with eta 0.

    Attributes:
        frame: see `ldm.samplers.frame`.
    """

    frame: Literal["flow", "ratio"] = "flow"

    def __post_init__(self) -> None:
        if self.frame not in FRAMES:
            raise unknown("euler frame", self.frame, FRAMES)

    def check(self, process: NoiseProcess, grid: Tensor) -> None:
        FRAMES[self.frame].check(process, grid)

    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Noise, denoise: Denoise
    ) -> Tensor:
        if process.sigma(s) == 0:
            return process.blend(now, s)
        frame = FRAMES[self.frame]
        return frame.move(x_t, t, s, frame.slope(now), process)
