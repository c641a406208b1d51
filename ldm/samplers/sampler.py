"""From noise to data: the loop that all samplers share, and the contract of one step."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.family import Family
from ldm.core.random import Streams
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.process import NoiseProcess

Past = Sequence[tuple[Tensor, Estimate]]
"""What was estimated at earlier times, (t, Estimate), the latest last."""

Noise = Callable[..., Tensor]
"""A step's own N(0, I) like x: `noise()`; where one draw is not enough, `noise(k)` is the k-th further one, from 1."""

Ask = Callable[[Tensor, Tensor], Estimate]
"""The denoiser for a step that asks more than once: (x (B, ...), one () time for all) -> Estimate."""


class Sampler(Family, abc.ABC):
    """A solver: a frozen value, so it can be shared, compared and printed; what it remembers is passed in."""

    __slots__ = ()
    memory: ClassVar[int] = 0  # how many past estimates a step may use
    adaptive: ClassVar[bool] = False  # sizes its strides by how its answers differ: the denoiser must not draw new noise at each time

    def sample(
        self,
        denoise: Denoise,
        x: Tensor,
        grid: Tensor,
        process: NoiseProcess,
        noise: Noise,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Takes x along the grid.

        Args:
            denoise: asked once a step, at times grid[0] to grid[-2]; by some samplers more often, see each.
            x: (B, ...), the noisy sample at grid[0].
            grid: (steps + 1,) falling times, as `Grid.times` makes them; where the last is 0 the result is x0.
            process: the one that the denoiser was trained with.
            noise: N(0, I) of x's shape, dtype and device: noise(i) for step i (from 0), noise(i, k) its k-th further draw, see
                `step_noise`; deterministic samplers never ask.
            on_step: called after each step with (steps done, steps in all).

        Returns:
            x at grid[-1].

        Raises:
            UserError: fewer than 1 step, or more than the sampler can do with this process; a sampler that is not defined for it.
        """
        grid = grid.detach().double().cpu()
        steps = len(grid) - 1
        if steps < 1:
            raise UserError(f"steps must be at least 1, got {steps}")
        assert (grid.diff() < 0).all(), f"times must fall: {grid.tolist()}"
        self.check(process, grid)

        def ask(x: Tensor, t: Tensor) -> Estimate:
            return denoise(x, t.expand(len(x)))

        past: list[tuple[Tensor, Estimate]] = []
        for i in range(steps):
            own = partial(noise, i)
            x, t = self.churn(x, grid[i], steps, process, own)
            now = ask(x, t)
            x = self.step(x, t, grid[i + 1], now, past, process, own, ask)
            past = [*past, (t, now)][-self.memory :] if self.memory else []
            if on_step:
                on_step(i + 1, steps)
        return x

    def check(self, process: NoiseProcess, grid: Tensor) -> None:
        """Refuses, by UserError, a process or a grid for which it is not defined; none here."""

    def churn(self, x_t: Tensor, t: Tensor, steps: int, process: NoiseProcess, noise: Noise) -> tuple[Tensor, Tensor]:
        """What is done to the sample before it is asked about: (x, its time), perhaps a noisier one. Here: nothing."""
        return x_t, t

    @abc.abstractmethod
    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Noise, denoise: Denoise
    ) -> Tensor:
        """x_s from x_t (B, ...) and the estimate at it; t > s are () float64 on the CPU, so no step waits for an accelerator.

        Where sigma(s) = 0 the data is reached: x_s is the last estimate's x0, to the bit.
        """


def step_noise(streams: Streams, x: Tensor) -> Noise:
    """Noise like x for each step, one stream a picture: picture i's depends on (streams.names, its key, step, draw) only."""
    mine = streams.under("step")

    def draw(step: int, further: int = 0) -> Tensor:
        return mine.normal((step, further) if further else step, x.shape[1:]).to(x, non_blocking=True)

    return draw


class Counted:
    """A denoiser that counts: `evaluations` is how often it was asked. One pass of twice the batch counts once."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.evaluations = denoise, 0

    def __call__(self, x_t: Tensor, t: Tensor) -> Estimate:
        self.evaluations += 1
        return self.denoise(x_t, t)
