"""The parts of the page that its routes work with."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ldm.web.events import Events
from ldm.web.models import Models
from ldm.web.renders import Renders
from ldm.web.runs import Runs
from ldm.web.starting import Starter
from ldm.web.uploads import Uploads


@dataclass(frozen=True, kw_only=True)
class Page:
    """All parts."""

    models: Models
    uploads: Uploads
    renders: Renders
    events: Events
    out: Path
    runs: Runs
    starter: Starter
    allow_training: bool

    @staticmethod
    def of(options: argparse.Namespace, uploads: Path) -> Page:
        """The parts for the flags of `arguments`; what browsers send is kept in `uploads`."""
        models, kept, events = Models(options.models, options.runs, options.device), Uploads(uploads), Events()
        runs = Runs(options.runs)
        renders = Renders(models, kept, options.out, events.changed)
        return Page(
            models=models,
            uploads=kept,
            renders=renders,
            events=events,
            out=options.out,
            runs=runs,
            starter=Starter(runs, Path("configs"), options.out / "logs"),
            allow_training=options.allow_training,
        )
