"""Which times training shows a network."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from torch import Tensor

from ldm.core.family import Family, kind
from ldm.core.random import Streams
from ldm.diffusion.process import NoiseProcess


class TimeDensity(Family, abc.ABC):
    """A density on the process clock."""

    __slots__ = ()

    @abc.abstractmethod
    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        """(B,) times in (0, 1], float64 on the CPU, one a stream under the name "time"."""


@kind("uniform")
@dataclass(frozen=True, kw_only=True, slots=True)
class UniformSteps(TimeDensity):
    """Every step 1 to N of the chain alike (Ho et al. 2020, alg. 1)."""

    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        n = process.num_steps
        step = (streams.uniform("time").double() * n).floor() + 1
        return step / n
