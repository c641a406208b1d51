"""What a run leaves behind: config, metrics, curves, sample grids, TensorBoard files."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from ldm.core.errors import UserError
from ldm.core.files import recover_all, write_file
from ldm.training.curves import draw, panels

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NAMES = ("config.yaml", "metrics.jsonl", "report.txt", "curves.png", "samples", "state", "checkpoint", "checkpoints", "lora", "latents")


class RunFolder:
    """The folder of one run; only the first process writes to it, under `NAMES` and TensorBoard's."""

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
    def best_path(self) -> Path:
        """Where the best checkpoint stays, see `TrainConfig.keep_best`."""
        return self.path / "checkpoints" / "best"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def report_path(self) -> Path:
        return self.path / "report.txt"

    def recover(self) -> None:
        """Cleans up after a kill; for the holder of the run's lock, beside whom nobody writes here."""
        for folder in (self.path, self.path / "samples", self.state_path, self.path / "checkpoints"):
            recover_all(folder, alone=True)

    def open(self, step: int) -> None:
        """Cuts the lines of metrics and report of steps past the restored one, and opens the logs.

        Raises:
            UserError: `metrics.jsonl` or `report.txt` has lines that no run writes.
        """
        if not self.is_writer:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.path.mkdir(parents=True, exist_ok=True)
        for path, step_of in ((self.metrics_path, _step_of), (self.report_path, _step_of_note)):
            if path.exists():
                write_file(path, "".join(f"{line}\n" for line in _lines(path, step_of) if step_of(line) <= step))
        self._metrics = open(self.metrics_path, "a", encoding="utf-8")  # noqa: SIM115 - open for the whole run
        self._board = SummaryWriter(str(self.path), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """One flushed line a step."""
        if self._metrics is None or self._board is None:
            return
        self._metrics.write(json.dumps({"step": step, **values}) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def history(self) -> list[dict[str, Any]]:
        """What was logged so far, a row a step."""
        return (
            [json.loads(line) for line in self.metrics_path.read_text(encoding="utf-8").splitlines()] if self.metrics_path.exists() else []
        )

    def note(self, step: int, text: str) -> None:
        """Adds a line to `report.txt`, for text rather than numbers."""
        if self.is_writer:
            with open(self.report_path, "a", encoding="utf-8") as file:
                file.write(f"step {step}: {text}\n")

    def save_sample_grid(self, step: int, image: Tensor, words: str = "") -> None:
        """`samples/step-*.png` of a (3, H, W) picture in [0, 1], and `step-*.txt` with what it shows, if there are words for it."""
        if not self.is_writer or self._board is None:
            return
        path = self.path / "samples" / f"step-{step:08d}.png"
        bytes_ = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        png = io.BytesIO()
        to_pil_image(bytes_).save(png, "PNG")
        write_file(path, png.getvalue())
        if words:
            write_file(path.with_suffix(".txt"), words)
        self._board.add_image("samples", bytes_, step)

    def draw_curves(self) -> None:
        """`curves.png`: every logged number against the step."""
        if not self.is_writer:
            return
        found = panels(self.history())
        if found:
            write_file(self.path / "curves.png", draw(found))

    def close(self) -> None:
        if self._metrics is not None and self._board is not None:
            self._metrics.close()
            self._board.close()


def _lines(path: Path, step_of: Callable[[str], int]) -> list[str]:
    """The whole lines of a log. The last may be cut short by a kill, and is left out then.

    Raises:
        UserError: another line is not of a run's.
    """
    *whole, cut = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate([*whole, cut] if cut else whole, 1):
        try:
            text = line.decode()
            step_of(text)
            found.append(text)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            if number <= len(whole):
                raise UserError(
                    f"{path}, line {number}: no run writes such a line ({line[:60]!r}): remove it, or move the file away"
                ) from error
    return found


def _step_of(line: str) -> int:
    """The step of a line of the metrics, all of whose values are numbers."""
    row = json.loads(line)
    _ = [math.isfinite(value) for value in row.values()]  # an error for what is no number
    return int(row["step"])


def _step_of_note(line: str) -> int:
    """The step of a line of the report."""
    found = re.match(r"step (\d{1,18}): ", line)
    if found is None:
        raise ValueError
    return int(found[1])
