"""The command line of `scripts/env.py`: what this machine has."""

from __future__ import annotations

from collections.abc import Sequence

from ldm.app.cli import Parser

EXAMPLES = """examples:
  python scripts/env.py
  python scripts/env.py --json
      to keep beside results, or to send with a question
"""


def main(arguments: Sequence[str]) -> None:
    """Prints what there is."""
    parser = Parser(
        "What this machine has: devices, attention kernels that run on them, memory, pretrained networks, and packages inside or outside "
        "the ranges that were tested.",
        EXAMPLES,
    )
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args(arguments)

    from ldm.app import env

    env.main(options)
