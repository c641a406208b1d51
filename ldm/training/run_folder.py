"""What a run leaves behind: config, metrics, curves, sample grids, TensorBoard files."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, TextIO

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from ldm.core.files import write_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOGARITHMIC = 20  # a curve that falls from so many times its median would be a flat line


class RunFolder:
    """The folder of one run; only the first process writes to it."""

    def __init__(self, path: Path, is_writer: bool) -> None:
        self.path = path
        self.is_writer = is_writer
        self._metrics: TextIO | None = None
        self._board: SummaryWriter | None = None

    @property
    def state_path(self) -> Path:
        return self.path / "state"

    @property
    def checkpoint_path(self) -> Path:
        return self.path / "checkpoint"

    def kept_path(self, step: int) -> Path:
        """Where a step's checkpoint stays, see `TrainConfig.keep_every`."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def report_path(self) -> Path:
        return self.path / "report.txt"

    def open(self, config_yaml: str, step: int) -> None:
        """Writes the config, cuts the lines of metrics and report of steps past the restored one, and opens the logs."""
        if not self.is_writer:
            return
        from torch.utils.tensorboard import SummaryWriter

        write_file(self.path / "config.yaml", config_yaml)
        if self.metrics_path.exists():
            kept = [line for line in self.metrics_path.read_text().splitlines() if _step_of(line, step) <= step]
            write_file(self.metrics_path, "".join(f"{line}\n" for line in kept))
        if self.report_path.exists():
            kept = [line for line in self.report_path.read_text().splitlines() if _step_of_note(line, step) <= step]
            write_file(self.report_path, "".join(f"{line}\n" for line in kept))
        self._metrics = open(self.metrics_path, "a")  # noqa: SIM115 - open for the whole run
        self._board = SummaryWriter(str(self.path), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """One flushed line a step."""
        if self._metrics is None or self._board is None:
            return
        self._metrics.write(json.dumps({"step": step, **values}) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def note(self, step: int, text: str) -> None:
        """Adds a line to `report.txt`, for text rather than numbers."""
        if self.is_writer:
            with open(self.report_path, "a") as file:
                file.write(f"step {step}: {text}\n")

    def save_sample_grid(self, step: int, image: Tensor) -> None:
        """`samples/step-*.png` of a (3, H, W) picture in [0, 1]."""
        if not self.is_writer or self._board is None:
            return
        path = self.path / "samples" / f"step-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        bytes_ = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        to_pil_image(bytes_).save(path)
        self._board.add_image("samples", bytes_, step)

    def draw_curves(self) -> None:
        """`curves.png`: every logged number against the step."""
        if not self.is_writer:
            return
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot

        series: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for line in self.metrics_path.read_text().splitlines():
            row = json.loads(line)
            for name, value in row.items():
                if name not in ("step", "samples_per_second", "learning_rate"):
                    series[name].append((row["step"], value))
        if not series:
            return
        columns = 3
        rows = -(-len(series) // columns)
        figure, axes = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 2.6 * rows), squeeze=False, layout="constrained")
        for axis, (name, points) in zip(axes.flat, series.items(), strict=False):
            steps, values = zip(*points, strict=True)
            dense = len(points) > 50
            axis.plot(steps, values, color="tab:blue", alpha=0.25 if dense else 1.0, linewidth=0.8, marker="" if dense else ".")
            if dense:
                axis.plot(steps, _smooth(values), color="tab:blue", linewidth=1.4)
            if min(values) > 0 and max(values) > LOGARITHMIC * median(values):
                axis.set_yscale("log")
            axis.set_title(name, fontsize=10)
            axis.set_xlabel("step", fontsize=8)
            axis.tick_params(labelsize=8)
            axis.grid(alpha=0.3)
        for axis in list(axes.flat)[len(series) :]:
            axis.axis("off")
        temporary = self.path / ".curves.tmp.png"
        figure.savefig(temporary, dpi=110)
        pyplot.close(figure)
        temporary.replace(self.path / "curves.png")

    def close(self) -> None:
        if self._metrics is not None and self._board is not None:
            self._metrics.close()
            self._board.close()


def _step_of(line: str, limit: int) -> int:
    """The step of a metrics line; a line that a kill cut short counts as past the limit."""
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return limit + 1


def _step_of_note(line: str, limit: int) -> int:
    """The step of a line of the report; a line that a kill cut short counts as past the limit."""
    found = re.match(r"step (\d+): ", line)
    return int(found[1]) if found else limit + 1


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Exponential mean over about a fiftieth of the series."""
    keep, mean, smooth = 1 - 50 / len(values) if len(values) > 100 else 0.5, values[0], []
    for value in values:
        mean = keep * mean + (1 - keep) * value
        smooth.append(mean)
    return smooth
