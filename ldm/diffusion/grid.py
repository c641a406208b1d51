"""Time grids for sampling: from noise down to t = 0, where the sample is x0."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.core.errors import UserError
from ldm.core.family import Family, kind
from ldm.diffusion.process import NoiseProcess

LEAST_NOISE = 1e-3  # below this sigma / alpha a step changes no level of 8 bits; the VP-SDE's published first time has this value


class Grid(Family, abc.ABC):
    """A rule for spacing times."""

    __slots__ = ()

    def times(self, process: NoiseProcess, steps: int, start: float = 1.0) -> Tensor:
        """steps + 1 strictly falling times, the last 0; float64 on the CPU.

        Args:
            process: gives the table's number of steps, and the noise levels.
            steps: number of solver steps, at least 1.
            start: the first time, in (0, 1]; grids on the table take the nearest table step. Below 1 to start from a noised image.

        Raises:
            UserError: steps or start out of range; more steps than the table has between start and 0 (grids on the table); more than 1 step
                from a start at or below the least noisy time that networks are trained at (grids of noise levels).
        """
        if steps < 1:
            raise UserError(f"steps must be at least 1, got {steps}")
        if not 0 < start <= 1:
            raise UserError(f"sampling must start at a noise level in (0, 1], got {start}")
        return torch.cat([self.positive_times(process, steps, start), torch.zeros(1, dtype=torch.float64)])

    @abc.abstractmethod
    def positive_times(self, process: NoiseProcess, steps: int, start: float) -> Tensor:
        """The `steps` times above 0, falling."""


@kind("uniform")
@dataclass(frozen=True, kw_only=True, slots=True)
class Uniform(Grid):
    """Evenly spaced in t from start to 0, not rounded to the table's steps."""

    def positive_times(self, process: NoiseProcess, steps: int, start: float) -> Tensor:
        return start * torch.arange(steps, 0, -1, dtype=torch.float64) / steps


@kind("shifted")
@dataclass(frozen=True, kw_only=True, slots=True)
class Shifted(Grid):
    """Even times moved towards noise, t' = s t / (1 + (s - 1) t), for flows on latents of many tokens (Esser et al. 2024, eq. 23).

    Of the noise levels sigma / alpha = t / (1 - t) of a rectified flow it makes s times as many. Training has the same shift with times of
    the density `logit_normal` whose mean is ln(s).

    Attributes:
        shift: s; 1 = none. Theirs is sqrt(tokens / tokens at which 1 is right), 3 at 1024 x 1024 pixels.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise UserError(f"a shifted grid needs a shift above 0, got {self.shift}")

    def positive_times(self, process: NoiseProcess, steps: int, start: float) -> Tensor:
        even = _unshifted(start, self.shift) * torch.arange(steps, 0, -1, dtype=torch.float64) / steps
        times = self.shift * even / (1 + (self.shift - 1) * even)
        times[0] = start
        return times


@kind("trailing")
@dataclass(frozen=True, kw_only=True, slots=True)
class Trailing(Grid):
    """`uniform` rounded to the table's steps; starts at the noisiest step (Lin et al. 2023, table 2)."""

    def positive_times(self, process: NoiseProcess, steps: int, start: float) -> Tensor:
        top = _steps_below(process, start, steps)
        return (top * torch.arange(steps, 0, -1, dtype=torch.float64) / steps).round() / process.num_steps


@kind("leading")
@dataclass(frozen=True, kw_only=True, slots=True)
class Leading(Grid):
    """Every k-th table index from `offset` up (DDIM's grid; Stable Diffusion's offset is 1). Starts below the noisiest step."""

    offset: int = 0

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise UserError(f"a leading grid needs offset >= 0, got {self.offset}")

    def positive_times(self, process: NoiseProcess, steps: int, start: float) -> Tensor:
        top = _steps_below(process, start, steps)
        stride = top // steps
        index = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * stride + self.offset
        if index[0] >= top:
            raise UserError(
                f"a leading grid of {steps} steps with offset {self.offset} exceeds the table's {top} steps; use fewer steps or offset 0"
            )
        return (index + 1) / process.num_steps


@kind("karras")
@dataclass(frozen=True, kw_only=True, slots=True)
class Karras(Grid):
    """Evenly spaced in (sigma / alpha)^(1 / rho) from start to the last step, then 0 (Karras et al. 2022, eq. 5): dense at low noise."""

    rho: float = 7.0

    def __post_init__(self) -> None:
        if self.rho <= 0:
            raise UserError(f"a karras grid needs rho > 0, got {self.rho}")

    def positive_times(self, process: NoiseProcess, steps: int, start: float) -> Tensor:
        most, least = (-_log_snr_ends(process, start, steps) / (2 * self.rho)).exp()
        return _times_at(-2 * self.rho * _even(most, least, steps).log(), process, start)


@kind("log_snr")
@dataclass(frozen=True, kw_only=True, slots=True)
class LogSNR(Grid):
    """Evenly spaced in log-SNR from start to the last step, then 0 (Lu et al. 2022, DPM-Solver): a geometric series of noise levels."""

    def positive_times(self, process: NoiseProcess, steps: int, start: float) -> Tensor:
        most, least = _log_snr_ends(process, start, steps)
        return _times_at(_even(most, least, steps), process, start)


@kind("gaussian_optimal")
@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianOptimal(Grid):
    """The grid with DDIM's least error on data of N(m, sigma_data^2): evenly spaced in the angle phi = arctan(sigma / (sigma_data alpha)).

    On such data a DDIM step by the angle d is exact but for a factor cos(d) on the deviation from the mean. So the result has the standard
    deviation sigma_data prod cos(d_i), and the product is greatest where all angles are equal. Meant for few steps. With many steps, the
    last one is kept at or above the last step of the other grids.
    The knots that Sabour et al. 2024 (Align Your Steps) found for Stable Diffusion 1.5 are close to those of sigma_data = 1.5.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        if self.sigma_data <= 0:
            raise UserError(f"a gaussian_optimal grid needs sigma_data > 0, got {self.sigma_data}")

    def positive_times(self, process: NoiseProcess, steps: int, start: float) -> Tensor:
        _refuse_steps_below_last(process, start, steps)
        ends = torch.tensor([start, _last(process)], dtype=torch.float64)
        most, least = torch.atan2(process.sigma(ends), self.sigma_data * process.alpha(ends))
        angle = _even(most, torch.maximum(most / steps, least), steps)
        return _times_at(-2 * (self.sigma_data * angle.tan()).log(), process, start)


def _unshifted(t: float, shift: float) -> float:
    """The time that a shift moves to t."""
    return t / (shift - (shift - 1) * t)


def _even(first: Tensor, last: Tensor, count: int) -> Tensor:
    """(count,) evenly spaced values from first to last; only first if count is 1."""
    return torch.lerp(first, last, torch.linspace(0, 1, count, dtype=torch.float64))


def _log_snr_ends(process: NoiseProcess, start: float, steps: int) -> Tensor:
    """(2,): log-SNR at start and at the last step. If start has zero SNR, the chain's next step is used instead."""
    _refuse_steps_below_last(process, start, steps)
    ends = process.log_snr(torch.tensor([start, start - 1 / process.num_steps, _last(process)], dtype=torch.float64))
    return ends[[0, 2]] if ends[0].isfinite() else ends[1:]


def _times_at(log_snr: Tensor, process: NoiseProcess, start: float) -> Tensor:
    """Times at these log-SNRs; the first is set to start, to the bit."""
    times = process.time_at(log_snr)
    times[0] = start
    return times


def _last(process: NoiseProcess) -> float:
    """The last positive time: t_first, or where sigma / alpha is LEAST_NOISE if t_first has less noise than that."""
    return max(process.t_first, process.time_of_noise(LEAST_NOISE))


def _refuse_steps_below_last(process: NoiseProcess, start: float, steps: int) -> None:
    if steps > 1 and start <= _last(process):
        raise UserError(f"{steps} sampling steps requested from noise level {start:g}, but the last step is at {_last(process):g}: use 1")


def _steps_below(process: NoiseProcess, start: float, steps: int) -> int:
    """Number of table steps at or below start."""
    top = max(1, round(start * process.num_steps))
    if steps > top:
        raise UserError(f"{steps} sampling steps requested, but the process has {top} from noise level {start:g} down; use at most {top}")
    return top
