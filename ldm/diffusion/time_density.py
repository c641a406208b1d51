"""Densities of the training times."""

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
    """What an objective draws its times from: a fixed density, or one that adapts during training."""

    @property
    def on_chain(self) -> bool:
        """True if only steps of the chain are drawn, and the weighted mean of their losses is the mean over all steps."""

    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        """(B,) times in (0, 1], float64 on the CPU, one per stream, drawn under the name "time"."""

    def weight(self, t: Tensor) -> Tensor:
        """(B,) factors of the losses at drawn times, float64 on the CPU."""


class TimeDensity(Family, abc.ABC):
    """A density of the process time, see `Draws`."""

    __slots__ = ()
    on_chain: ClassVar[bool] = False

    @abc.abstractmethod
    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor: ...

    def weight(self, t: Tensor) -> Tensor:
        """1: times that are drawn more often count more, which is intended."""
        return torch.ones_like(t)

    def begin(self, process: NoiseProcess) -> Draws:
        """What draws the times of a run: the density itself, unless it adapts."""
        return self


@kind("uniform")
@dataclass(frozen=True, kw_only=True, slots=True)
class UniformSteps(TimeDensity):
    """Uniform over the chain's steps 1 to N (Ho et al. 2020, alg. 1)."""

    on_chain: ClassVar[bool] = True

    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        n = process.num_steps
        step = (streams.uniform("time").double() * n).floor() + 1
        return step / n


@kind("uniform_time")
@dataclass(frozen=True, kw_only=True, slots=True)
class UniformTime(TimeDensity):
    """Uniform over times, from the process's first to its last (Song et al. 2021, eq. 7)."""

    def draw(self, streams: Streams, process: NoiseProcess) -> Tensor:
        return process.t_last - streams.uniform("time").double() * (process.t_last - process.t_first)


@kind("power")
@dataclass(frozen=True, kw_only=True, slots=True)
class Power(TimeDensity):
    """Steps of the chain with a density that grows as t^exponent: more of the noisy times, where the condition decides the image's content.

    Attributes:
        exponent: 0 = uniform; with 1.5, half of all times are above t = 0.76.
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
    """ln(sigma / alpha) is N(mean, std^2), clamped to the process's times. Karras et al. 2022, table 1.

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
    """ln(t / (1 - t)) is N(mean, std^2), clamped to the process's times. Esser et al. 2024, sec. 3.1.

    Attributes:
        mean: values above 0 favour noisy times.
        std: larger values put more times near both ends.
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
