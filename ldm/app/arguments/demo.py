"""The command line of `scripts/demo.py`: the whole journey in minutes, as one page of commands and what they made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.app.cli import Parser
from ldm.core.errors import UserError

EXAMPLES = """examples:
  python scripts/demo.py
  python scripts/demo.py --out /tmp/demo
"""


def main(arguments: Sequence[str]) -> None:
    """Runs all scenes and writes the page."""
    flags = Parser("Pictures from the shipped model, then both stages trained briefly from scratch, on one page.", EXAMPLES)
    flags.add_argument("--out", type=Path, default=Path("outputs/demo"), help="folder of the page (default: outputs/demo)")
    flags.add_device()
    options = flags.parse_args(arguments)
    out = options.out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if out.exists() and any(out.iterdir()) and not (out / "inputs" / "mask.png").is_file():
        raise UserError(f"--out {out} holds something else than a demo; name another folder")

    from ldm.app import demo

    demo.main(options)
