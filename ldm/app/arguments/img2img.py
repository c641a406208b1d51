"""The command line of `scripts/img2img.py`: a picture noised and denoised towards a prompt."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.app.arguments.sampling import parser

EXAMPLES = """examples:
  python scripts/img2img.py --image sketch.png --strength 0.6 --prompt "a cat"
  python scripts/img2img.py --image photo.png --strength 0.3 --num-images 1 --out outputs/touched-up
"""


def main(arguments: Sequence[str]) -> None:
    """Changes a picture."""
    options = parse(arguments)

    from ldm.app import img2img

    img2img.main(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of a command line, with the defaults of those that it does not have.

    Raises:
        UserError: a flag that is none, is missing, or has another value than it takes.
    """
    flags = parser("A picture noised to a strength and denoised, towards a prompt if there is one.", EXAMPLES, "outputs/img2img")
    flags.add_argument(
        "--image", type=Path, required=True, help="the picture; its centre is taken, at the model's size or --height and --width"
    )
    flags.add_argument(
        "--strength", type=float, required=True, help="noise level, above 0 to 1: 0.2 = touched up, 1 = only the prompt counts"
    )
    flags.add_argument("--prompt", help="what to lead to (default: nothing)")
    flags.add_argument("--negative-prompt", default="", help="what to lead away from")
    return flags.parse_args(arguments)
