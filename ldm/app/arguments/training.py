"""The command line that the training scripts share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.app.cli import BY_ITSELF, Parser

RESUMES = "is no flag: the same command again resumes the run in its --run-dir"


def parse(arguments: Sequence[str], description: str, default_config: str, examples: str) -> argparse.Namespace:
    """The command line of a training script: `--config`, `--run-dir`, `--retry-lost` and trailing `key=value`."""
    parser = Parser(description, examples, {"--device": BY_ITSELF, "--resume": RESUMES})
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
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config, e.g. train.steps=20000 data.size=128")
    return parser.parse_intermixed_args(arguments)
