"""The command line of `scripts/inpaint.py`: part of a picture painted anew."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.app.arguments.sampling import parser

EXAMPLES = """examples:
  python scripts/inpaint.py --image photo.png --mask hole.png
  python scripts/inpaint.py --image photo.png --mask hole.png --prompt "a red hat" --num-images 4 --seed 3

The model paints a window around the hole at its own size, or at --height and --width.
The mask has the picture's size: white = paint, black = keep. Pixels that are kept come back bit-identical.
"""


def main(arguments: Sequence[str]) -> None:
    """Paints the masked part."""
    options = parse(arguments)

    from ldm.app import inpaint

    inpaint.main(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of a command line, with the defaults of those that it does not have.

    Raises:
        UserError: a flag that is none, is missing, or has another value than it takes.
    """
    flags = parser("Paint part of a picture anew.", EXAMPLES, "outputs/inpaint")
    flags.add_argument("--image", type=Path, required=True, help="the picture, of any size")
    flags.add_argument("--mask", type=Path, required=True, help="a picture of the same size: white = paint")
    flags.add_argument("--prompt", help="what to paint (default: whatever fits)")
    flags.add_argument("--negative-prompt", default="", help="what to lead away from")
    return flags.parse_args(arguments)
