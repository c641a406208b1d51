"""`curves.png`: the logged numbers against the step."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[int, float]]
COLUMNS = 3
DENSE = 50  # points from which on a line is drawn faintly, with its running mean
LOGARITHMIC = 20  # a curve that falls from so many times its median would be a flat line
MEASURED = ("val/", "train_eval/")  # prefixes of what evaluations measure, see `MeasuredOn`; the others are of training steps
EXACT = ("learning_rate",)  # without chance: no running mean
FAMILIES = (
    (r"^(latent|image)_high_share$", "high frequencies"),
    (r"_channel_\d+$", " by channel"),
    (r"_log_snr_[-+.\de]+$", " by log-SNR"),
    (r"/.*", ""),
)


def panels(rows: Iterable[Mapping[str, float]]) -> dict[str, dict[str, Points]]:
    """By title, then by name, the finite numbers of the log as (step, value).

    What is measured of the same thing is in one panel: a loss in training and held-out, the channels of a latent, the noise levels.

    Args:
        rows: of metrics.jsonl, each with its `step`.
    """
    found: dict[str, dict[str, Points]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and math.isfinite(value):
                found.setdefault(_title(name), {}).setdefault(name, []).append((int(row["step"]), value))
    return found


def _title(name: str) -> str:
    title = name
    for prefix in MEASURED:
        title = title.removeprefix(prefix)
    for pattern, family in FAMILIES:
        title = re.sub(pattern, family, title)
    return title


def draw(found: Mapping[str, Mapping[str, Points]]) -> bytes:
    """The panels as one PNG, all with the same range of steps; without those that have nothing but single points, unless all are so.

    Args:
        found: see `panels`; at least one.
    """
    found = {title: series for title, series in found.items() if max(map(len, series.values())) > 1} or found
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    steps = [step for series in found.values() for points in series.values() for step, _ in points]
    first, last = min(steps), max(steps)
    margin = max(1, round(0.02 * (last - first)))
    count = -(-len(found) // COLUMNS)
    figure, axes = pyplot.subplots(count, COLUMNS, figsize=(4.2 * COLUMNS, 2.6 * count), squeeze=False, layout="constrained")
    for axis, (title, series) in zip(axes.flat, found.items(), strict=False):
        for number, (name, points) in enumerate(series.items()):
            _curve(axis, points, f"C{number % 10}", name)
        values = [value for points in series.values() for _, value in points]
        if min(values) > 0 and max(values) > LOGARITHMIC * median(values):
            axis.set_yscale("log")
        if len(series) > 1:
            axis.legend(fontsize=6, ncols=-(-len(series) // 8))
        axis.set_title(title if len(series) > 1 else next(iter(series)), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.set_xlim(first - margin, last + margin)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(found) :]:
        axis.axis("off")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    pyplot.close(figure)
    return png.getvalue()


def _curve(axis: Axes, points: Points, colour: str, name: str) -> None:
    steps, values = zip(*points, strict=True)
    if len(points) <= DENSE or name in EXACT:
        axis.plot(steps, values, color=colour, linewidth=0.8, marker="." if len(points) <= DENSE else "", label=name)
        return
    axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axis.plot(steps, _smooth(values), color=colour, linewidth=1.4, label=name)


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Exponential mean over about a fiftieth of the series."""
    keep, mean, smooth = 1 - 50 / len(values) if len(values) > 100 else 0.5, values[0], []
    for value in values:
        mean = keep * mean + (1 - keep) * value
        smooth.append(mean)
    return smooth
