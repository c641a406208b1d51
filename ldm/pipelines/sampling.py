"""How one call samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

from ldm.core.errors import UserError
from ldm.diffusion.grid import Grid, Trailing
from ldm.samplers.sampler import Sampler

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one call samples.

    Attributes:
        sampler: the solver.
        steps: solver steps from pure noise; a start from a noised picture takes its share of them.
        guidance: classifier-free scale; 1 = plain conditional.
        num_images: pictures.
        seed: picture i depends on (seed, i) only.
        grid: where the solver stops on the way.
        on_step: told (steps done, steps in all).
    """

    sampler: Sampler
    steps: int
    guidance: float
    num_images: int = 1
    seed: int = 0
    grid: Grid = Trailing()
    on_step: OnStep | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}")
        if self.num_images < 1:
            raise UserError(f"the number of images must be at least 1, got {self.num_images}")
        if not (self.guidance >= 0 and isfinite(self.guidance)):
            raise UserError(f"guidance must be a number from 0 up (1 = no guidance, 4 = usual), got {self.guidance}")
