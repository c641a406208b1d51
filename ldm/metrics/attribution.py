"""Which stage limits FID: equally many real, reconstructed and generated images against one reference."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldm.metrics.bootstrap import SMALLEST, Interval, around, draws, has_interval
from ldm.metrics.frechet import FrechetReference


@dataclass(frozen=True, kw_only=True)
class Share:
    """The FID that a stage adds; interval None = not computed."""

    value: float
    interval: Interval | None

    @property
    def is_significant(self) -> bool:
        """True if it is above zero by more than its uncertainty."""
        return (self.value if self.interval is None else self.interval[0]) > 0

    def __str__(self) -> str:
        return f"{self.value:+.1f}" + ("" if self.interval is None else f" ({self.interval[0]:+.1f} to {self.interval[1]:+.1f})")


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """
    Attributes:
        pictures: number of images in each of the three sets.
        real, reconstructed, generated: FID to the reference. It is above 0 for real images too, because they are a finite sample.
        stage_one: reconstructed - real.
        stage_two: generated - reconstructed.
        difference: stage_two - stage_one.
    """

    pictures: int
    real: float
    reconstructed: float
    generated: float
    stage_one: Share
    stage_two: Share
    difference: Share

    @property
    def line(self) -> str:
        """The conclusion in one line."""
        shares = f"stage one adds {self.stage_one} to FID, stage two {self.stage_two}, over the {self.real:.1f} that real pictures have"
        if self.pictures < SMALLEST:
            return f"{self.pictures} pictures say nothing of which stage is the limit: {shares}"
        if not self.stage_one.is_significant and not self.stage_two.is_significant:
            return f"neither stage is the limit at {self.pictures} pictures: {shares}"
        interval = self.difference.interval
        if interval is not None and interval[0] <= 0 <= interval[1]:
            return f"{self.pictures} pictures are too few to decide which stage is the limit: {shares}"
        return f"stage {'two' if self.difference.value > 0 else 'one'} is the limit: {shares}"


def attribute(reference: FrechetReference, real: Tensor, reconstructed: Tensor, generated: Tensor, progress: bool = False) -> Attribution:
    """The three distances, and how much each stage adds.

    Args:
        reference: of the training set.
        real: (N, D) features of real images.
        reconstructed: (N, D), of the same images after stage one.
        generated: (N, D), of images generated from the same images' conditions. N must be equal, since FID depends on it.
        progress: True shows the bootstrap's progress bars.
    """
    assert len(real) == len(reconstructed) == len(generated)
    sets = (real, reconstructed, generated)
    first, second, third = (reference.distance(features) for features in sets)
    replicates: list[Tensor] | None = None
    if has_interval(len(real)):
        drawn = draws(len(real))  # row i of all three sets belongs to image i, so they are drawn together
        replicates = [reference.replicates(features, drawn, progress) for features in sets]

    def share(value: float, *weights: int) -> Share:
        if replicates is None:
            return Share(value=value, interval=None)
        total = sum((weight * one for weight, one in zip(weights, replicates, strict=True)), 0 * replicates[0])
        return Share(value=value, interval=around(value, total))

    return Attribution(
        pictures=len(real),
        real=first,
        reconstructed=second,
        generated=third,
        stage_one=share(second - first, -1, 1, 0),
        stage_two=share(third - second, 0, -1, 1),
        difference=share(third - 2 * second + first, 1, -2, 1),
    )
