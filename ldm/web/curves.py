"""The numbers of `metrics.jsonl`, read as they are added and thinned at once, so that a run of any length takes the same memory."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.training.curves import panels

MOST_BUCKETS = 400  # of a curve; half of them are left when so many are full
AT_ONCE = 8 << 20  # bytes that are read before they are thinned
HEADLINES = ("loss", "psnr", "lpips", "kl", "fid", "learning_rate")  # of panels, in this order: what one looks at first
SHOWN_FIRST = 4

Row = dict[str, float]


@dataclass
class Series:
    """A curve in buckets of `size` points each: last step, mean, smallest, largest value, and how many points."""

    size: int = 1
    buckets: list[tuple[int, float, float, float, int]] = field(default_factory=list)
    latest: float = math.nan

    def add(self, step: int, value: float) -> None:
        self.latest = value
        if self.buckets and self.buckets[-1][4] < self.size:
            self.buckets[-1] = _joined(self.buckets[-1], (step, value, value, value, 1))
        else:
            self.buckets.append((step, value, value, value, 1))
        if len(self.buckets) == MOST_BUCKETS and self.buckets[-1][4] == self.size:
            self.buckets = [_joined(*self.buckets[i : i + 2]) for i in range(0, MOST_BUCKETS, 2)]
            self.size *= 2


def _joined(one: tuple[int, float, float, float, int], other: tuple[int, float, float, float, int]) -> tuple[int, float, float, float, int]:
    count = one[4] + other[4]
    mean = (one[1] * one[4] + other[1] * other[4]) / count
    return other[0], mean, min(one[2], other[2]), max(one[3], other[3]), count


class Curves:
    """Reads a file on from where it stopped; from the start if it was cut, as a resumed run cuts it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last: Row = {}
        self.changed = 0.0
        self._forget()

    def _forget(self) -> None:
        self._at, self._inode = 0, -1
        self._series: dict[str, Series] = {}
        self.last = {}

    @property
    def step(self) -> int:
        """The last step that was logged; 0 = none."""
        return int(self.last.get("step", 0))

    def latest(self, name: str) -> float | None:
        """The last value of a number."""
        return self._series[name].latest if name in self._series else None

    def read(self) -> None:
        """Takes in what was added."""
        try:
            about = self.path.stat()
        except OSError:
            self._forget()
            return
        if about.st_ino != self._inode or about.st_size < self._at:
            self._forget()
        self._inode, self.changed = about.st_ino, about.st_mtime
        with open(self.path, "rb") as file:
            while self._at < about.st_size:
                file.seek(self._at)
                content = file.read(AT_ONCE)
                whole = content[: content.rfind(b"\n") + 1]  # the last line may still be being written
                if not whole:
                    return
                self._at += len(whole)
                for line in whole.splitlines():
                    self._add(line)

    def panels(self) -> list[dict[str, Any]]:
        """Panels as of `training.curves`, those with more than single points; the first are what one looks at first."""
        rows = [{"step": bucket[0], name: bucket[1]} for name, series in self._series.items() for bucket in series.buckets]
        found = {title: list(series) for title, series in panels(rows).items() if max(map(len, series.values())) > 1}
        order = sorted(found, key=lambda title: (_rank(title), title))
        return [
            {
                "title": title if len(found[title]) > 1 else found[title][0],
                "is_first": number < SHOWN_FIRST and _rank(title) < len(HEADLINES),
                "series": [{"name": name, "points": [bucket[:4] for bucket in self._series[name].buckets]} for name in found[title]],
            }
            for number, title in enumerate(order)
        ]

    def _add(self, line: bytes) -> None:
        try:
            row = {str(name): float(value) for name, value in json.loads(line).items()}
            step = int(row["step"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return  # no line of a run's: `RunFolder.open` says so where training goes on
        self.last = row
        for name, value in row.items():
            if name != "step" and math.isfinite(value):
                self._series.setdefault(name, Series()).add(step, value)


def _rank(title: str) -> int:
    return HEADLINES.index(title) if title in HEADLINES else len(HEADLINES)
