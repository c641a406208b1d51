"""What run folders say of their runs. They are only read: training knows nothing of the page."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from ldm.core.errors import UserError
from ldm.core.processes import ProcessName
from ldm.training.lock import holder_of
from ldm.web.curves import Curves

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
MOST_RUNS = 200
MAX_CONFIG, MAX_REPORT = 1 << 20, 1 << 20  # bytes that are read of a config, and of the end of a report
REPORT_LINES = 40
SAMPLE = re.compile(r"step-(\d{8})\.png")
BAR = ("fid_real", "fid_reconstructed", "fid_generated", "pictures_of_each", "line")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder."""

    name: str
    path: Path

    @property
    def holder(self) -> ProcessName | None:
        """The process that trains in it, or did when it was killed."""
        return holder_of(self.path)

    @property
    def config(self) -> dict[str, Any]:
        """Empty where it cannot be read."""
        try:
            with open(self.path / "config.yaml", "rb") as file:
                found = yaml.safe_load(file.read(MAX_CONFIG))
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def stage(self) -> str:
        """By what only its config has."""
        config = self.config
        return "stage two" if "denoiser" in config else "classifier" if "network" in config else "stage one"

    def samples(self) -> list[int]:
        """Steps of which there is a sample grid."""
        folder = self.path / "samples"
        names = sorted(folder.iterdir()) if folder.is_dir() else []
        return [int(found[1]) for file in names if (found := SAMPLE.fullmatch(file.name))]

    def sample(self, step: int) -> Path:
        """The sample grid of a step; its words lie beside it in `.txt`."""
        return self.path / "samples" / f"step-{step:08d}.png"

    def report(self) -> list[str]:
        """The last lines of `report.txt`: diagnostics, each with the key to change."""
        try:
            with open(self.path / "report.txt", "rb") as file:
                file.seek(max(0, (self.path / "report.txt").stat().st_size - MAX_REPORT))
                return file.read(MAX_REPORT).decode(errors="replace").splitlines()[-REPORT_LINES:]
        except OSError:
            return []


class Runs:
    """The runs of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._curves: dict[str, Curves] = {}

    def summaries(self) -> list[dict[str, Any]]:
        """Each run as JSON, the latest first."""
        found = [self._summary(run) for run in self._all()]
        return sorted(found, key=lambda row: -float(row["updated"]))

    def get(self, name: str) -> Run:
        """
        Raises:
            UserError: there is none of that name.
        """
        path = self.folder / name
        if NAME.fullmatch(name) is None or not _is_run(path):
            raise UserError(f"there is no run {name!r:.120} in {self.folder}")
        return Run(name=name, path=path)

    def details(self, name: str, evaluations: Path) -> dict[str, Any]:
        """A run as JSON, with curves, samples and diagnostics.

        Args:
            evaluations: folder that `scripts/evaluate.py` leaves its results in, a folder each.
        """
        run = self.get(name)
        config = run.config
        return {
            **self._summary(run),
            "curves": self._curves_of(run).panels(),
            "samples": run.samples(),
            "report": run.report(),
            "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True)[:MAX_CONFIG] if config else "",
            "bar": _bar(evaluations, run.path),
        }

    def _all(self) -> list[Run]:
        children = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        return [Run(name=path.name, path=path) for path in children if NAME.fullmatch(path.name) and _is_run(path)][:MOST_RUNS]

    def _curves_of(self, run: Run) -> Curves:
        if run.name not in self._curves:
            self._curves = dict(list(self._curves.items())[-MOST_RUNS:])
            self._curves[run.name] = Curves(run.path / "metrics.jsonl")
        self._curves[run.name].read()
        return self._curves[run.name]

    def _summary(self, run: Run) -> dict[str, Any]:
        curves, holder, config = self._curves_of(run), run.holder, run.config
        train = config.get("train")
        steps = train.get("steps", 0) if isinstance(train, dict) else 0
        batch = train.get("batch_size", 0) if isinstance(train, dict) else 0
        alive = holder is not None and holder.is_alive()
        state = _state(curves.step, steps, holder, alive)
        rate = curves.last.get("samples_per_second", 0.0)
        return {
            "name": run.name,
            "stage": run.stage,
            "state": state,
            "step": curves.step,
            "steps": steps,
            "images_per_second": rate,
            "seconds_left": (steps - curves.step) * batch / rate if rate and state == "training" else 0,
            "memory": _memory(holder) if alive else 0,
            "loss": curves.last.get("loss"),
            "held_out_loss": curves.latest("val/loss"),
            "updated": curves.changed or run.path.stat().st_mtime,
            "age": max(0.0, time.time() - (curves.changed or run.path.stat().st_mtime)),
            "has_model": (run.path / "checkpoint" / "manifest.json").is_file(),
        }


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and not path.is_symlink()


def _state(step: int, steps: int, holder: ProcessName | None, alive: bool | None) -> str:
    """training; finished; stopped, as somebody asked it to; died, without giving its folder back; elsewhere, on another machine."""
    if holder is not None and alive is None:
        return "elsewhere"
    if alive:
        return "training"
    if steps and step >= steps:
        return "finished"
    return "died" if holder is not None else "stopped"


def _memory(holder: ProcessName | None) -> int:
    """Bytes of main memory that a process has."""
    try:
        return int(psutil.Process(holder.pid).memory_info().rss) if holder is not None else 0
    except psutil.Error:
        return 0


def _bar(evaluations: Path, run: Path) -> dict[str, Any] | None:
    """FID of real, reconstructed and generated pictures, of the newest evaluation of the run's checkpoint."""
    found: list[tuple[float, dict[str, Any]]] = []
    for file in evaluations.glob("*/evaluation.json") if evaluations.is_dir() else ():
        try:
            content = json.loads(file.read_bytes()) if file.stat().st_size < MAX_REPORT else {}
            model, bar = Path(content["model"]["checkpoint"]), content["attribution"]
            if run.resolve() in model.resolve().parents:
                found.append((file.stat().st_mtime, {key: bar[key] for key in BAR}))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return max(found, key=lambda row: row[0])[1] if found else None
