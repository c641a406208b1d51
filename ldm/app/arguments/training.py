"""The command line that the training scripts share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ldm.app.cli import Parser
from ldm.core.errors import UserError

RESUMES = "is no flag: the same command again resumes the run in its --run-dir"


def parse(arguments: Sequence[str], description: str, default_config: str, examples: str) -> argparse.Namespace:
    """The command line of a training script: `--config`, `--run-dir`, `--retry-lost`, `--device` and trailing `key=value`."""
    parser = Parser(description, examples, {"--resume": RESUMES})
    parser.add_argument("--config", type=Path, default=Path(default_config), help=f"YAML file of the run (default: {default_config})")
    parser.add_argument(
        "--run-dir", type=Path, help="folder of the run (default: runs/NAME, NAME from the config); one that is there is resumed"
    )
    parser.add_argument(
        "--retry-lost",
        action="store_true",
        help="on resume, fetch remote shards that could not be had before; otherwise they are left out again, so that the run goes on "
        "exactly as it would have",
    )
    parser.add_device(None)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config, e.g. train.steps=20000 data.size=128")
    options = parser.parse_intermixed_args(arguments)
    if options.device is not None:
        if any(override.startswith("train.device=") for override in options.overrides):
            raise UserError("--device and train.device= are the same setting: give one of them")
        options.overrides.append(f"train.device={options.device}")
    os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE")  # 20-40 % on a CPU; must be set before torch is loaded
    return options
