"""What one process of a training holds all the time, in bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Held:
    """In float32.

    Attributes:
        weights: of all parts.
        gradients: of those that are trained.
        optimizer: AdamW's two moments of the same.
        average: the running averages, which the discriminator has none of.
        blocks: where these are shared out, the two largest blocks' weights and one's gradients, whole: of the block that is computed, and
            the weights of the next, which are on their way.
        evaluated: beside all but `blocks`, where averages are shared out: the whole of them, in an evaluation.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    blocks: int = 0
    evaluated: int = 0

    @staticmethod
    def of(parameters: Mapping[str, int], trained: Collection[str]) -> Held:
        """Of so many parameters by part, of which some are trained."""
        changed = sum(parameters[name] for name in trained)
        averaged = changed - (parameters["discriminator"] if "discriminator" in trained else 0)
        return Held(weights=4 * sum(parameters.values()), gradients=4 * changed, optimizer=8 * changed, average=4 * averaged)

    def shared_out(self, blocks: Sequence[nn.Module], processes: int) -> Held:
        """By one of several processes that have these blocks in parts: of each weight the same number of rows, rounded up."""
        weights = [[weight.shape for weight in block.parameters()] for block in blocks]
        whole = sorted(sum(shape.numel() for shape in shapes) for shapes in weights)
        part = sum(-(-shape[0] // processes) * shape[1:].numel() for shapes in weights for shape in shapes)
        less = sum(whole) - part
        return Held(
            weights=self.weights - 4 * less,
            gradients=self.gradients - 4 * less,
            optimizer=self.optimizer - 8 * less,
            average=self.average - 4 * less,
            blocks=4 * (sum(whole[-2:]) + whole[-1]),
            evaluated=4 * less,
        )

    @property
    def total(self) -> int:
        """While it trains."""
        return self.weights + self.gradients + self.optimizer + self.average + self.blocks
