"""The times at which a sampler stops: from noise down to t = 0, where the sample is x0."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.family import Family, kind
from ldm.diffusion.process import NoiseProcess


class Grid(Family, abc.ABC):
    """A rule for spacing times."""

    __slots__ = ()

    def times(self, process: NoiseProcess, steps: int, start: float = 1.0) -> Tensor:
        """steps + 1 times, strictly falling, the last 0; float64 on the CPU.

        Args:
            process: gives the table's number of steps.
            steps: how many solver steps, at least 1.
            start: the noisiest time allowed, in (0, 1]; below 1 for a start from a noised picture.

        Raises:
            UserError: a count or start out of range, or more steps than the table has between start and 0, for grids on the table.
        """
        if steps < 1:
            raise UserError(f"steps must be at least 1, got {steps}")
        if not 0 < start <= 1:
            raise UserError(f"sampling must start at a noise level in (0, 1], got {start}")
        return torch.cat([self.spread(process, steps, start), torch.zeros(1, dtype=torch.float64)])

    @abc.abstractmethod
    def spread(self, process: NoiseProcess, steps: int, start: float) -> Tensor:
        """The `steps` times above 0, falling."""


@kind("uniform")
@dataclass(frozen=True, kw_only=True, slots=True)
class Uniform(Grid):
    """Even in t from start to 0, between the table's steps where need be."""

    def spread(self, process: NoiseProcess, steps: int, start: float) -> Tensor:
        return start * torch.arange(steps, 0, -1, dtype=torch.float64) / steps


@kind("trailing")
@dataclass(frozen=True, kw_only=True, slots=True)
class Trailing(Grid):
    """`uniform` rounded to the table's steps; starts at the noisiest (Lin et al. 2023, table 2)."""

    def spread(self, process: NoiseProcess, steps: int, start: float) -> Tensor:
        top = _steps_below(process, start, steps)
        return (top * torch.arange(steps, 0, -1, dtype=torch.float64) / steps).round() / process.num_steps


@kind("leading")
@dataclass(frozen=True, kw_only=True, slots=True)
class Leading(Grid):
    """Every k-th index of the table from index `offset` up (DDIM's; Stable Diffusion's offset is 1). Starts below the noisiest."""

    offset: int = 0

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise UserError(f"a leading grid needs offset >= 0, got {self.offset}")

    def spread(self, process: NoiseProcess, steps: int, start: float) -> Tensor:
        top = _steps_below(process, start, steps)
        stride = top // steps
        index = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * stride + self.offset
        if index[0] >= top:
            raise UserError(
                f"a leading grid of {steps} steps with offset {self.offset} leaves the table's {top} steps; take fewer steps or offset 0"
            )
        return (index + 1) / process.num_steps


def _steps_below(process: NoiseProcess, start: float, steps: int) -> int:
    """How many of the table's steps lie at or below start."""
    top = round(start * process.num_steps)
    if steps > top:
        raise UserError(f"{steps} sampling steps asked, but the process has {top} from noise level {start:g} down; take at most {top}")
    return top
