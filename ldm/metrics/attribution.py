"""Which stage is the limit: real, reconstructed and generated pictures, as many of each, against one reference."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldm.metrics.bootstrap import FEW, Interval, around, draws
from ldm.metrics.frechet import FrechetReference


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a stage adds to FID; interval None = not computed."""

    value: float
    interval: Interval | None

    @property
    def is_there(self) -> bool:
        """Whether it is above zero by more than its uncertainty."""
        return (self.value if self.interval is None else self.interval[0]) > 0

    def __str__(self) -> str:
        return f"{self.value:+.1f}" + ("" if self.interval is None else f" ({self.interval[0]:+.1f} to {self.interval[1]:+.1f})")


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """
    Attributes:
        pictures: of each of the three sets.
        real, reconstructed, generated: FID to the reference. Real pictures are not at 0: few pictures of the same kind are not the same.
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
        """What it means, in one line."""
        said = f"stage one adds {self.stage_one} to FID, stage two {self.stage_two}, over the {self.real:.1f} that real pictures have"
        if not self.stage_one.is_there and not self.stage_two.is_there:
            return f"neither stage is the limit at {self.pictures} pictures: {said}"
        interval = self.difference.interval
        if interval is not None and interval[0] <= 0 <= interval[1]:
            return f"{self.pictures} pictures do not tell which stage is the limit: {said}"
        return f"stage {'two' if self.difference.value > 0 else 'one'} is the limit: {said}"


def attribute(reference: FrechetReference, real: Tensor, reconstructed: Tensor, generated: Tensor, progress: bool = False) -> Attribution:
    """The three distances and what each stage adds.

    Args:
        reference: of the training set.
        real: (N, D) features of pictures.
        reconstructed: (N, D), of the same pictures through stage one.
        generated: (N, D), of pictures made from the same pictures' conditions. Equal N, since FID depends on it.
        progress: whether to show the bootstrap's bars.
    """
    assert len(real) == len(reconstructed) == len(generated)
    sets = (real, reconstructed, generated)
    first, second, third = (reference.distance(features) for features in sets)
    spread: list[Tensor] | None = None
    if len(real) < FEW:
        drawn = draws(len(real))  # row i of all three belongs to picture i: drawn together
        spread = [reference.replicates(features, drawn, progress) for features in sets]

    def share(value: float, *weights: int) -> Share:
        if spread is None:
            return Share(value=value, interval=None)
        total = sum((weight * replicates for weight, replicates in zip(weights, spread, strict=True)), 0 * spread[0])
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
