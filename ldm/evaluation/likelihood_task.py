"""The settings of bits/dim, and the pictures that it is computed for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from tqdm import tqdm

from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.diffusion.estimate import Denoise, Estimate
from ldm.diffusion.likelihood import FlowDensity, first_time
from ldm.diffusion.process import NoiseProcess
from ldm.diffusion.settings import Probe
from ldm.evaluation.conditions import EvaluationConditions
from ldm.evaluation.settings import Variance
from ldm.metrics.features import as_shown


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """The user's settings.

    Attributes:
        count: pictures, at most; from the first.
        steps: of the bound's chain; None = as many as the process has.
        variance: of that chain, where the model does not learn it; None = small. See the sampler ddpm.
        probe: of the flow's divergence.
        first_noise: sigma / alpha at which the flow has reached the data.
        tolerance: of the flow's solver.
    """

    count: int
    steps: int | None
    variance: Variance | None
    probe: Probe
    first_noise: float
    tolerance: float

    def __post_init__(self) -> None:
        if self.count < 2:
            raise UserError(f"--bits-per-dim needs at least 2 pictures for its standard error, got {self.count}")
        if not 0 < self.first_noise < 1:
            raise UserError(f"--first-noise must be a noise level sigma / alpha between 0 and 1, got {self.first_noise:g}")
        if not 0 < self.tolerance < 1:
            raise UserError(f"--tolerance must be between 0 and 1, got {self.tolerance:g}")


@dataclass(frozen=True, kw_only=True)
class LikelihoodTask:
    """What both kinds of model have in common.

    Attributes:
        conditions: of the evaluated pictures, the first `count` of which are taken.
        config: see LikelihoodConfig.
        seed: see `bits_per_dim`.
        about: for the JSON; added to.
    """

    conditions: EvaluationConditions
    count: int
    config: LikelihoodConfig
    seed: int
    about: dict[str, Any]

    @property
    def process(self) -> NoiseProcess:
        return self.conditions.model.spec.process

    @property
    def first(self) -> float:
        """Where the flow ends."""
        return first_time(self.process, self.config.first_noise)

    def batches(self) -> Iterator[tuple[Tensor, Denoise, Streams]]:
        """Pictures (B, C, H, W) on 256 levels in [-1, 1], on the device; their conditional denoiser; their random streams."""
        model = self.conditions.model
        for numbers in self.conditions.source.groups(range(self.count)):
            images = as_shown(self.conditions.source.images(numbers)).to(model.device)
            condition = Condition.stack([self.conditions.condition(i) for i in numbers])
            yield images, model.denoiser.bind(condition), Streams.of(self.seed, "bits", samples=numbers)

    def say_flow(self, found: Sequence[FlowDensity]) -> None:
        """Writes into `about` how the flow was followed."""
        evaluations = [one.evaluations for one in found]
        self.about["flow"] = {
            "first_noise": self.config.first_noise,
            "first_time": self.first,
            "probe": self.config.probe,
            "tolerance": self.config.tolerance,
            "evaluations": {"mean": sum(evaluations) / len(evaluations), "most": max(evaluations)},
        }


def shown_on(bar: tqdm[Any], denoise: Denoise, counts_steps: bool) -> Denoise:
    """The same, seen on a bar at every call: as a step of it, or as the number of calls beside it."""
    calls = itertools.count(1)

    def watched(x_t: Tensor, t: Tensor) -> Estimate:
        if counts_steps:
            bar.update()
        else:
            bar.set_postfix(evaluations=next(calls))
        return denoise(x_t, t)

    return watched
