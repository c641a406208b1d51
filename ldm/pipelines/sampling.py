"""How one call samples."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.core.errors import UserError, described
from ldm.diffusion.estimate import Denoise
from ldm.diffusion.grid import Grid, Trailing
from ldm.diffusion.process import NoiseProcess
from ldm.guidance.classifier_free import check_limits
from ldm.guidance.thresholded import Threshold, check_threshold
from ldm.samplers.sampler import OnStep, Sampler, Step

Guide = Callable[[Denoise, NoiseProcess, Sequence[int]], Denoise]
"""(denoiser, process, the numbers of its pictures) -> a guided denoiser."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one call samples.

    Attributes:
        sampler: the solver.
        steps: solver steps from pure noise; a start from a noised picture takes its share of them.
        guidance: classifier-free scale; 1 = plain conditional.
        guidance_interval: noise levels, in sigma / alpha, at which that guidance acts; None = all.
        guidance_rescale: 0 to 1, how far the contrast that it adds is taken back.
        threshold: x0 is kept in [-1, 1], see `check_threshold`; None = it is not.
        guide: further guidance, e.g. by a classifier or a weaker model; before the threshold. None = none.
        num_images: pictures.
        seed: picture i depends on (seed, i) only.
        grid: where the solver stops on the way.
        on_step: called after each step, see `Step`; what it raises ends the call.
    """

    sampler: Sampler
    steps: int
    guidance: float
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    threshold: Threshold | None = None
    guide: Guide | None = None
    num_images: int = 1
    seed: int = 0
    grid: Grid = Trailing()
    on_step: OnStep | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "num_images", "seed"):
            if not is_number(getattr(self, name), Integral):
                raise UserError(f"{name} must be a whole number, got {described(getattr(self, name))}")
        for name in ("guidance", "guidance_rescale"):
            if not is_number(getattr(self, name)):
                raise UserError(f"{name} must be a number, got {described(getattr(self, name))}")
        interval = self.guidance_interval
        if interval is not None and not (isinstance(interval, tuple | list) and len(interval) == 2 and all(is_number(v) for v in interval)):
            raise UserError(f"guidance_interval must be two noise levels (low, high), got {described(interval)}")
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}")
        if self.num_images < 1:
            raise UserError(f"the number of images must be at least 1, got {self.num_images}")
        check_limits(self.guidance, self.guidance_interval, self.guidance_rescale)
        check_threshold(self.threshold)


def is_number(value: object, kind: type = Real) -> bool:
    """Whether it is a number of that kind; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


class Progress:
    """A bar over solver steps."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def __call__(self, step: Step) -> None:
        if self._bar is None:
            self._bar = tqdm(total=step.steps, unit="step", dynamic_ncols=True, file=sys.stderr)
        self._bar.update(step.done - self._bar.n)
        if step.done == step.steps:
            self._bar.close()
            self._bar = None


def shifted(on_step: OnStep | None, number: int, count: int) -> OnStep | None:
    """Progress over several batches: that of batch `number`, from 0, as part of all."""
    if on_step is None:
        return None
    return lambda step: on_step(replace(step, done=number * step.steps + step.done, steps=count * step.steps))


def start_std(process: NoiseProcess, t: Tensor) -> float:
    """Standard deviation of the noise to start from at t, of which the prior is the case t = 1; for data of standard deviation 1."""
    total_std = (process.alpha(t) ** 2 + process.sigma(t) ** 2).sqrt()
    noisiest = torch.full_like(t, process.t_last)
    return process.prior_std * (total_std / (process.alpha(noisiest) ** 2 + process.sigma(noisiest) ** 2).sqrt()).item()
