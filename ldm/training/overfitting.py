"""Whether a run has begun to learn its training pictures by heart: the held-out error rises while the training error falls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

PAIRS = (("val/loss", "loss"), ("val/l1", "pixel"))  # held-out error, training error
RISE = 0.02  # above the best; the held-out error is always measured with the same noise, so it hardly varies by chance
LEAST = 2  # evaluations since the best

Row = dict[str, float]


def overfitting(rows: Sequence[Row]) -> str:
    """A line about it with the keys to turn; "" = there is no sign of it.

    Args:
        rows: what was logged, in the order of the steps, "step" among it; the last is an evaluation.
    """
    for held_out, trained in PAIRS:
        measured = [(int(row["step"]), row[held_out]) for row in rows if held_out in row]
        if len(measured) <= LEAST or held_out not in rows[-1]:
            continue
        best_step, best = min(measured, key=lambda one: one[1])
        now = measured[-1][1]
        since = sum(step > best_step for step, _ in measured)
        before, after = (_mean(rows, trained, *span) for span in _spans(measured, best_step))
        if since >= LEAST and now > (1 + RISE) * best and after < before:
            return (
                f"overfitting: the held-out error was least at step {best_step} ({held_out} {best:.4g}) and is {now:.4g} now, while that "
                f"of training fell from {before:.4g} to {after:.4g}: take train.steps={best_step}, or set train.keep_best={held_out}; "
                "more pictures or more data.augment help, and a smaller network"
            )
    return ""


def _spans(measured: Sequence[tuple[int, float]], best_step: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The steps (after, up to) before the best evaluation and before the last one."""
    steps = [0, *(step for step, _ in measured)]
    before = next(pair for pair in pairwise(steps) if pair[1] == best_step)
    return before, (steps[-2], steps[-1])


def _mean(rows: Sequence[Row], name: str, after: int, up_to: int) -> float:
    values = [row[name] for row in rows if name in row and after < row["step"] <= up_to]
    return sum(values) / len(values) if values else float("nan")
