"""The command line of `scripts/upscale.py`: a small picture drawn large."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.app.arguments.sampling import parser

EXAMPLES = """examples:
  python scripts/upscale.py --model runs/superres4x/checkpoint --image small.png
  python scripts/upscale.py --model checkpoints/bsr --image photo.jpg --steps 100 --num-images 1 --precision bf16

The model is one that was trained with `low_resolution`, such as configs/published/superres4x.yaml. The picture may have any size.
"""


MODEL = "a model that was trained with low_resolution; the shipped one was not: train one with configs/published/superres4x.yaml"


def main(arguments: Sequence[str]) -> None:
    """Draws the picture at several times its size."""
    options = parse(arguments)

    from ldm.app import upscale

    upscale.main(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of a command line, with the defaults of those that it does not have.

    Raises:
        UserError: a flag that is none, is missing, or has another value than it takes.
    """
    sizes = dict.fromkeys(("--height", "--width"), "is not asked for: the result is the given picture's size times the model's factor")
    flags = parser("A small picture drawn at several times its size.", EXAMPLES, "outputs/upscale", elsewhere=sizes, model=MODEL)
    flags.add_argument("--image", type=Path, required=True, help="the small picture")
    return flags.parse_args(arguments)
