"""The command line of `scripts/app.py`: the page."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ldm.app.cli import Parser
from ldm.core.errors import UserError

EXAMPLES = """examples:
  python scripts/app.py
      the shipped model and the models of runs/, on http://127.0.0.1:7860; open the printed address, which holds a token
  python scripts/app.py --models checkpoints runs/faces/checkpoint --port 8000
  python scripts/app.py --allow-training
      runs can be started, stopped and resumed from the page
  LDM_PASSWORD=... python scripts/app.py --host 0.0.0.0
      for other machines, by a password; put a proxy with TLS before it, see docs/page.md
"""
PASSWORD = "LDM_PASSWORD"  # the environment's variable
LOCAL = ("127.0.0.1", "localhost", "::1")
SHORTEST = 8  # characters of a password


def main(arguments: Sequence[str]) -> None:
    """Serves the page until it is interrupted."""
    options = parse(arguments)

    from ldm.web.server import serve

    serve(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of a command line; `password` is None where the token in the address suffices.

    Raises:
        UserError: a flag that is none or has another value than it takes; a host that others reach, without a password.
    """
    parser = Parser("The page: draw, paint maps, inpaint, watch runs. In a browser, from this machine, offline.", EXAMPLES)
    parser.add_argument(
        "--models",
        nargs="+",
        type=Path,
        default=[Path("checkpoints")],
        metavar="DIR",
        help="checkpoint folders, or folders of such (default: checkpoints); those of --runs are offered too",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs to watch (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/app"), help="folder for what is drawn (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="0 = any free one (default: %(default)s)")
    parser.add_argument(
        "--name", action="append", default=[], metavar="HOST", help="a name under which browsers reach the page, besides its address"
    )
    parser.add_argument("--password-file", type=Path, help=f"file whose first line is the password; or set {PASSWORD}")
    parser.add_argument("--allow-training", action="store_true", help="the page may start, stop and resume runs")
    parser.add_device()
    options = parser.parse_args(arguments)
    if not 0 <= options.port <= 65535:
        raise UserError(f"--port must be from 0 to 65535, got {options.port}")
    options.password = _password(options.password_file)
    if options.host not in LOCAL and options.password is None:
        raise UserError(f"--host {options.host} can be reached by other machines: give --password-file FILE, or set {PASSWORD}")
    return options


def _password(file: Path | None) -> str | None:
    given = os.environ.get(PASSWORD) if file is None else file.read_text(encoding="utf-8").partition("\n")[0].strip()
    if given is None:
        return None
    if len(given) < SHORTEST:
        raise UserError(f"the password of the page needs at least {SHORTEST} characters, got {len(given)}")
    return given
