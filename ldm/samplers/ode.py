"""The probability flow with an adaptive solver: Dormand and Prince's order 5(4), from torchdiffeq (Song et al. 2021, sec. 4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ldm.core.device import finest_float
from ldm.core.errors import UserError
from ldm.core.family import kind
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess
from ldm.samplers.frame import FLOW
from ldm.samplers.sampler import Noise, OnStep, Past, Sampler


@kind("ode")
@dataclass(frozen=True, kw_only=True, slots=True)
class ODE(Sampler):
    """Chooses its own step sizes between the grid's first and last time. The grid's number of steps matters only if it changes the first
    time, as in a leading grid.

    It solves in the frame `flow`, whose slope is finite everywhere, down to the least noisy time that networks are trained at, and returns
    x0 there. The image that needs the smallest step sets the step of its batch, so an image depends on its batch, within the tolerance.
    `Counted` counts the evaluations.

    Attributes:
        rtol: relative error allowed per step, as each image's root mean square.
        atol: absolute error allowed per step, likewise, in units of x / (alpha + sigma).
    """

    adaptive: ClassVar[bool] = True

    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        if not (self.rtol > 0 and self.atol > 0):
            raise UserError(f"ode needs rtol > 0 and atol > 0, got {self.rtol} and {self.atol}")

    def sample(
        self,
        denoise: Denoise,
        x: Tensor,
        grid: Tensor,
        process: NoiseProcess,
        noise: Noise,
        on_step: OnStep | None = None,
    ) -> Tensor:
        ends = grid[[0, -1]] if len(grid) > 2 else grid
        return Sampler.sample(self, denoise, x, ends, process, noise, on_step)

    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Noise, denoise: Denoise
    ) -> Tensor:
        if process.sigma(s) > 0:
            return self._solved(x_t, t, s, process, denoise)
        last = torch.full_like(t, process.t_first)
        if last < t:
            now = denoise(self._solved(x_t, t, last, process, denoise), last)
        return process.blend(now, s)

    def _solved(self, x_t: Tensor, t: Tensor, s: Tensor, process: NoiseProcess, denoise: Denoise) -> Tensor:
        ends = torch.stack([FLOW.position(process, t), FLOW.position(process, s)])
        position = ends.to(x_t.device, finest_float(x_t.device))

        def slope(u: Tensor, y: Tensor) -> Tensor:
            u = u.cpu().double().clamp(ends[1], ends[0])  # the search for a first step size may go beyond
            time = process.time_at(2 * ((1 - u) / u).log())
            return FLOW.slope(denoise(FLOW.scale(process, time).to(y.dtype) * y, time))

        start = x_t / FLOW.scale(process, t).to(x_t.dtype)
        # Without step_t the last step overshoots and is interpolated, with 30 times the error.
        options = {"norm": _worst, "step_t": position[1:], "dtype": position.dtype}
        from torchdiffeq import odeint  # it loads scipy, which no other sampler needs

        y: Tensor = odeint(slope, start, position, rtol=self.rtol, atol=self.atol, method="dopri5", options=options)
        return y[-1] * FLOW.scale(process, s).to(x_t.dtype)


def _worst(error: Tensor) -> Tensor:
    """The largest root mean square of an image: (B, ...) -> ()."""
    return error.flatten(1).square().mean(1).sqrt().max()
