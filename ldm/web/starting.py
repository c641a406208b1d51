"""Runs that the page starts, stops and resumes: the training scripts, as processes of their own that go on when the page ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ldm.app.arguments.training import parse
from ldm.app.config_owner import owner_of
from ldm.app.finetuning import completed
from ldm.app.train_classifier import TrainClassifier
from ldm.app.train_ldm import TrainLDM
from ldm.app.train_vae import TrainVAE
from ldm.app.training_run import load_config
from ldm.config.loader import read
from ldm.core.errors import UserError, unknown
from ldm.web.runs import NAME, Runs

SCHEMAS: dict[str, type[Any]] = {"train_vae": TrainVAE, "train_ldm": TrainLDM, "train_classifier": TrainClassifier}
OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=.*", re.DOTALL)
MAX_LOG = 16 << 10  # bytes of a log's end
LAST_LINES = 12
ENDING = 20  # seconds that a run that was asked to stop is waited for


class Starter:
    """Starts one run at a time.

    Args:
        runs: where their folders come to lie.
        configs: folder of the configs that may be chosen, with folders in it.
        logs: what a run says is written here, as NAME.log.
    """

    def __init__(self, runs: Runs, configs: Path, logs: Path) -> None:
        self.runs, self.configs, self.logs = runs, configs, logs
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ending = False
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The configs that may be chosen."""
        return [path.relative_to(self.configs).as_posix() for path in sorted(self.configs.rglob("*.yaml"))]

    def start(self, name: str, config: str, overrides: Sequence[str]) -> None:
        """Begins a run in a new folder.

        Raises:
            UserError: a name that is none or is taken, another config, overrides that the config does not take; a run that is under way.
        """
        if NAME.fullmatch(name) is None:
            raise UserError(f"a run's name is of letters, digits, '-', '_' and '.', got {name!r:.120}")
        if (self.runs.folder / name).exists():
            raise UserError(f"there is a run {name} already: choose another name, or resume it")
        if config not in self.names():
            raise unknown("config", config, self.names())
        self._launch(name, self.configs / config, overrides)

    def resume(self, name: str) -> None:
        """Goes on with a run from its newest state.

        Raises:
            UserError: no such run; a run that is under way.
        """
        run = self.runs.get(name)
        self._launch(name, run.path / "config.yaml", ())

    def stop(self, name: str) -> None:
        """Asks a run to save its state and stop after the step it is at.

        Raises:
            UserError: it does not train, or on another machine.
        """
        holder = self.runs.get(name).holder
        if holder is None or not holder.is_alive():
            raise UserError(f"{name} does not train on this machine")
        os.kill(holder.pid, signal.SIGTERM)
        self._is_ending = self._process is not None and self._process.pid == holder.pid

    def log(self, name: str) -> list[str]:
        """The last lines of what a run that was started here said."""
        try:
            with open(self.logs / f"{name}.log", "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_LOG))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        return [line.rpartition("\r")[2] for line in text.splitlines()][-LAST_LINES:]

    def _launch(self, name: str, config: Path, overrides: Sequence[str]) -> None:
        for override in overrides:
            if OVERRIDE.fullmatch(override) is None:
                raise UserError(f"{override!r:.120} is no override: write key=value, e.g. train.steps=20000")
        owner = owner_of(read(config, list(overrides)))
        if owner not in SCHEMAS:
            raise UserError(f"{config} is no config of a training script")
        arguments = ["--config", str(config), "--run-dir", str(self.runs.folder / name), *overrides]
        options = parse(arguments, "", str(config), "")
        complete: Callable[[dict[str, Any]], dict[str, Any]] = completed if owner == "train_ldm" else dict
        load_config(options, SCHEMAS[owner], owner, complete)  # a mistake in an override is answered here and now
        with self._lock:
            if self._process is not None and self._is_ending:  # its folder is free a moment before it has gone
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(ENDING)
            if self._process is not None and self._process.poll() is None:
                raise UserError("a run that was started from the page is under way: stop it, or wait for its end")
            self.logs.mkdir(parents=True, exist_ok=True)
            code = f"from ldm.app.cli import run; from ldm.app.arguments.{owner} import main; run(main)"
            with open(self.logs / f"{name}.log", "wb") as log:
                self._is_ending = False
                self._process = subprocess.Popen(
                    [sys.executable, "-c", code, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
