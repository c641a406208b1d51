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


class Sampler(Family, abc.ABC):
    """A solver: a frozen value, so it can be shared, compared and printed; what it remembers is passed in."""

    __slots__ = ()
    memory: ClassVar[int] = 0  # how many past estimates a step may use

    def sample(
        self,
        denoise: Denoise,
        x: Tensor,
        grid: Tensor,
        process: NoiseProcess,
        noise: Callable[[int], Tensor],
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Takes x along the grid.

        Args:
            denoise: asked once a step, at times grid[0] to grid[-2].
            x: (B, ...), the noisy sample at grid[0].
            grid: (steps + 1,) falling times, as `Grid.times` makes them; where the last is 0 the result is x0.
            process: the one that the denoiser was trained with.
            noise: N(0, I) of x's shape, dtype and device for step i (from 0), see `step_noise`; deterministic samplers never ask.
            on_step: called after each step with (steps done, steps in all).

        Returns:
            x at grid[-1].

        Raises:
            UserError: fewer than 1 step, or more than the sampler can do with this process.
        """
        grid = grid.detach().double().cpu()
        steps = len(grid) - 1
        if steps < 1:
            raise UserError(f"steps must be at least 1, got {steps}")
        assert (grid.diff() < 0).all(), f"times must fall: {grid.tolist()}"
        self.check(process, steps)

        past: list[tuple[Tensor, Estimate]] = []
        for i in range(steps):
            t, s = grid[i], grid[i + 1]
            now = denoise(x, t.expand(len(x)))
            x = self.step(x, t, s, now, past, process, partial(noise, i))
            past = [*past, (t, now)][-self.memory :] if self.memory else []
            if on_step:
                on_step(i + 1, steps)
        return x

    def check(self, process: NoiseProcess, steps: int) -> None:
        """Refuses, by UserError, a number of steps that makes no sense; none here."""

    @abc.abstractmethod
    def step(
        self, x_t: Tensor, t: Tensor, s: Tensor, now: Estimate, past: Past, process: NoiseProcess, noise: Callable[[], Tensor]
    ) -> Tensor:
        """x_s from x_t (B, ...) and the estimate at it; t > s are () float64 on the CPU, so no step waits for an accelerator."""


def step_noise(streams: Streams, x: Tensor) -> Callable[[int], Tensor]:
    """Noise like x for each step, one stream a picture: picture i's depends on (streams.names, its key, step) only."""
    mine = streams.under("step")
    return lambda i: mine.normal(i, x.shape[1:]).to(x)
