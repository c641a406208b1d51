"""Steps that were undone, since a number of theirs was not finite: how many are borne, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MOST = 10  # undone steps
WITHIN = 1000  # of so many; ten in a row are among them
NAMED = 16  # pictures of a step, and steps, at most


@dataclass(frozen=True, kw_only=True)
class Undone:
    """One of them.

    Attributes:
        step: its number.
        what: the numbers that are not finite.
        samples: names of this process's pictures, the first of them.
    """

    step: int
    what: tuple[str, ...]
    samples: tuple[str, ...]

    @property
    def line(self) -> str:
        return f"{', '.join(self.what)} is not a finite number: the step is undone. Batch: {', '.join(self.samples)}"


class UndoneSteps:
    """The latest of a run.

    Attributes:
        steps: their numbers; a state has them.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._latest: Undone | None = None

    def restore(self, steps: Iterable[int]) -> None:
        self.steps = list(steps)

    def add(self, step: int, numbers: Mapping[str, float], samples: tuple[str, ...]) -> Undone | None:
        """Counts a step if one of its numbers is not finite."""
        self.steps = [other for other in self.steps if other > step - WITHIN]
        what = tuple(name for name, value in numbers.items() if not math.isfinite(value))
        if not what:
            return None
        self.steps.append(step)
        self._latest = Undone(step=step, what=what, samples=samples[:NAMED])
        return self._latest

    def includes(self, step: int) -> bool:
        return step in self.steps

    @property
    def too_many(self) -> bool:
        return len(self.steps) >= MOST

    @property
    def why(self) -> str:
        """Which, and of which pictures, for the message that ends a run."""
        assert self._latest is not None, "no step was undone"
        steps = ", ".join(map(str, self.steps[-NAMED:]))
        return (
            f"step {steps}: {', '.join(self._latest.what)} is not a finite number, so these steps were undone, and weights and average are "
            f"as before them. Batch of step {self._latest.step}: {', '.join(self._latest.samples)}. Look at those pictures"
        )
