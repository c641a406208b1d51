"""Which of a run's evaluations is the best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

HIGHER_IS_BETTER = ("psnr", "accuracy", "codes_used", "perplexity", "active_channels")  # of an evaluation's numbers; of all others lower


def is_best(name: str, value: float, earlier: Iterable[Mapping[str, float]]) -> bool:
    """Whether a number is better than all that earlier evaluations had under its name."""
    sign = -1 if any(word in name for word in HIGHER_IS_BETTER) else 1
    return all(sign * value < sign * row[name] for row in earlier if name in row)
