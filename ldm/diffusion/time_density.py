"""Which times training shows a network."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.family import Family, kind
from ldm.core.random import Streams
from ldm.diffusion.process import NoiseProcess


class Draws(Protocol):
    """What an objective draws its times from: a density, or one that has learned."""

    @property
    def on_chain(self) -> bool:
        """Whether only steps of the chain are drawn, and weighted so that their mean is that over all steps alike."""

    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        """(B,) times in (0, 1], float64 on the CPU, one a stream under the name "time"."""

    def weight(self, t: Tensor) -> Tensor:
        """(B,) what a loss at a drawn time counts, float64 on the CPU."""


class TimeDensity(Family, abc.ABC):
    """A density on the process clock, see `Draws`."""

    __slots__ = ()
    on_chain: ClassVar[bool] = False

    @abc.abstractmethod
    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor: ...

    def weight(self, t: Tensor) -> Tensor:
        """1: where times are drawn more often they count more, as is meant."""
        return torch.ones_like(t)

    def begin(self, process: NoiseProcess) -> Draws:
        """What draws during a run; the density itself unless it learns."""
        return self


@kind("uniform")
@dataclass(frozen=True, kw_only=True, slots=True)
class UniformSteps(TimeDensity):
    """Every step 1 to N of the chain alike (Ho et al. 2020, alg. 1)."""

    on_chain: ClassVar[bool] = True

    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        n = process.num_steps
        step = (streams.uniform("time").double() * n).floor() + 1
        return step / n


@kind("uniform_time")
@dataclass(frozen=True, kw_only=True, slots=True)
class UniformTime(TimeDensity):
    """Every time alike, from the process's first to its last (Song et al. 2021, eq. 7)."""

    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        return process.t_last - streams.uniform("time").double() * (process.t_last - process.t_first)


@kind("power")
@dataclass(frozen=True, kw_only=True, slots=True)
class Power(TimeDensity):
    """Steps of the chain with a density that grows as t^exponent: more of the times at which a condition decides what the picture shows.

    Attributes:
        exponent: 0 = all alike; 1.5 draws half of all times above t = 0.76.
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        if not self.exponent >= 0:
            raise UserError(f"density power needs exponent >= 0, got {self.exponent}")

    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        n = process.num_steps
        place = streams.uniform("time").double() ** (1 / (1 + self.exponent))
        return ((place * n).floor() + 1) / n


@kind("log_normal")
@dataclass(frozen=True, kw_only=True, slots=True)
class LogNormal(TimeDensity):
    """ln(sigma / alpha) is N(mean, std^2); what falls outside the process's times is moved to the nearer end. Karras et al. 2022, table 1.

    Attributes:
        mean: P_mean.
        std: P_std.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _refuse_std("log_normal", self.std)

    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        log_ratio = self.mean + self.std * streams.normal("time").double()
        return process.time_at(-2 * log_ratio).clamp(process.t_first, process.t_last)


@kind("logit_normal")
@dataclass(frozen=True, kw_only=True, slots=True)
class LogitNormal(TimeDensity):
    """ln(t / (1 - t)) is N(mean, std^2); nothing is less noisy than the process's first time. Esser et al. 2024, sec. 3.1.

    Attributes:
        mean: above 0 leans to noise.
        std: how widely times spread to both ends.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _refuse_std("logit_normal", self.std)

    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        t = (self.mean + self.std * streams.normal("time").double()).sigmoid()
        return t.clamp(process.t_first, process.t_last)


def _refuse_std(density: str, std: float) -> None:
    if not std > 0:
        raise UserError(f"density {density} needs std > 0, got {std}")
