"""From noise to data: the sampling loop that all samplers share, and the interface of one step."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.family import Family
from ldm.core.random import Streams
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess

Past = Sequence[tuple[Tensor, Estimate]]
"""Estimates at earlier times, (t, Estimate), the latest last."""

Noise = Callable[..., Tensor]
"""N(0, I) like x for one step: `noise()`; if a step needs more than one draw, `noise(k)` is the k-th additional one, from 1."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A solver step that was taken, for whoever watches: progress, previews, trajectories.

    Attributes:
        done: steps taken, this one included.
        steps: steps in all.
        t: () float64, the time that the step went from.
        x_t: (B, ...), the noisy sample at t.
        estimate: the denoiser's at t, with guidance; its `x0` is the sample so far.
    """

    done: int
    steps: int
    t: Tensor
    x_t: Tensor
    estimate: Estimate


OnStep = Callable[[Step], None]
"""Called after each step. What it raises ends the sampling."""


class Sampler(Family, abc.ABC):
    """A solver: a frozen value, so it can be shared, compared and printed; past estimates are passed in."""

    __slots__ = ()
    memory: ClassVar[int] = 0  # how many past estimates a step may use
    adaptive: ClassVar[bool] = False  # True = chooses step sizes by estimated errors: the denoiser must not draw new noise at each time

    def sample(
        self,
        denoise: Denoise,
        x: Tensor,
        grid: Tensor,
        process: NoiseProcess,
        noise: Noise,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Takes x along the grid.

        Args:
            denoise: called once per step, at times grid[0] to grid[-2]; some samplers call it more often, see each.
            x: (B, ...), the noisy sample at grid[0].
            grid: (steps + 1,) falling times, as `Grid.times` makes them; if the last is 0 the result is x0.
            process: the one that the denoiser was trained with.
            noise: N(0, I) of x's shape, dtype and device: noise(i) for step i (from 0), noise(i, k) its k-th additional draw, see
                `step_noise`; deterministic samplers never call it.
            on_step: called after each step.

        Returns:
            x at grid[-1].

        Raises:
            UserError: fewer than 1 step, or more than the sampler can take with this process; a sampler that is not defined for it.
        """
        grid = grid.detach().double().cpu()
        steps = len(grid) - 1
        if steps < 1:
            raise UserError(f"steps must be at least 1, got {steps}")
        assert (grid.diff() < 0).all(), f"times must fall: {grid.tolist()}"
        self.check(process, grid)

        def denoise_batch(x: Tensor, t: Tensor) -> Estimate:
            return denoise(x, t.expand(len(x)))

        past: list[tuple[Tensor, Estimate]] = []
        for i in range(steps):
            noise_i = partial(noise, i)
            x, t = self.churn(x, grid[i], steps, process, noise_i)
            now = denoise_batch(x, t)
            x_t, x = x, self.step(x, t, grid[i + 1], now, past, process, noise_i, denoise_batch)
            past = [*past, (t, now)][-self.memory :] if self.memory else []
            if on_step:
                on_step(Step(done=i + 1, steps=steps, t=t, x_t=x_t, estimate=now))
        return x

    def check(self, process: NoiseProcess, grid: Tensor) -> None:
        """Raises UserError for a process or a grid for which the sampler is not defined; here, never."""

    def churn(self, x_t: Tensor, t: Tensor, steps: int, process: NoiseProcess, noise: Noise) -> tuple[Tensor, Tensor]:
        """The sample to denoise and its time, which may be noisier than t (Karras et al. 2022, alg. 2). Here: unchanged."""
        return x_t, t

    @abc.abstractmethod
    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Noise, denoise: Denoise
    ) -> Tensor:
        """x_s from x_t (B, ...) and its estimate `now`; t > s are () float64 on the CPU, so no step waits for an accelerator.

        `denoise`, for further evaluations, takes one () time for the whole batch. At sigma(s) = 0 the data is reached: x_s is the last
        estimate's x0, to the bit.
        """


def step_noise(streams: Streams, x: Tensor) -> Noise:
    """Noise like x for each step, one stream per image: image i's noise depends only on (streams.names, its key, step, draw)."""
    step_streams = streams.under("step")

    def draw(step: int, further: int = 0) -> Tensor:
        return step_streams.normal((step, further) if further else step, x.shape[1:]).to(x, non_blocking=True)

    return draw


class Counted:
    """A denoiser that counts its calls in `evaluations`. One pass of twice the batch counts once."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.evaluations = denoise, 0

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        self.evaluations += 1
        return self.denoise(x_t, t)
