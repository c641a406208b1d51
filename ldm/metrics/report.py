"""A measured number with its description, and a table of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ldm.metrics.bootstrap import Interval


@dataclass(frozen=True, kw_only=True)
class Metric:
    """
    Attributes:
        name: key in the JSON.
        title: for people, with the unit.
        value: None = could not be measured; `about` gives the reason.
        interval: 95 %; None = not computed.
        pictures: number of images that it was measured on.
        better: whether lower or higher is better; "" = neither.
        about: its definition, in one line.
    """

    name: str
    title: str
    value: float | None
    interval: Interval | None = None
    pictures: int
    better: Literal["lower", "higher", ""]
    about: str

    def plain(self) -> dict[str, object]:
        """As plain data for the JSON."""
        return {
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval),
            "pictures": self.pictures,
            "better": self.better or None,
            "about": self.about,
        }


def table(metrics: Sequence[Metric]) -> str:
    """One line per metric, columns aligned."""
    rows = [("metric", "value", "95 % interval", "pictures", "better")]
    for metric in metrics:
        interval = "" if metric.interval is None else f"{_short(metric.interval[0])} to {_short(metric.interval[1])}"
        value = "-" if metric.value is None else _short(metric.value)
        rows.append((metric.title, value, interval, str(metric.pictures), metric.better))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    missing = [f"{metric.title}: not measured: {metric.about}" for metric in metrics if metric.value is None]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *missing])


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
