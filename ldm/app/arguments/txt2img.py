"""The command line of `scripts/txt2img.py`: pictures of a text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ldm.app.arguments.sampling import parser
from ldm.core.errors import UserError

EXAMPLES = """examples:
  python scripts/txt2img.py --prompt "a red heart"
  python scripts/txt2img.py --prompt "a smiling yellow face" --num-images 9 --seed 7 --out outputs/faces
  python scripts/txt2img.py --prompt "a house" --negative-prompt "a tree" --sampler ddim --steps 50 --model runs/mine-ldm/checkpoint
  python scripts/txt2img.py --prompt "a red car" --height 64 --width 96
"""


OF_SAMPLE = ("--label", "--map", "--boxes", "--cond")


def main(arguments: Sequence[str]) -> None:
    """Draws a prompt."""
    options = parse(arguments)

    from ldm.app import txt2img

    txt2img.main(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of a command line, with the defaults of those that it does not have.

    Raises:
        UserError: a flag that is none, is missing, or has another value than it takes.
    """
    flags = parser("Pictures of a text.", EXAMPLES, "outputs/txt2img", elsewhere=dict.fromkeys(OF_SAMPLE, "is a flag of scripts/sample.py"))
    flags.add_argument("--prompt", required=True, help="what to draw")
    flags.add_argument("--negative-prompt", default="", help="what to lead away from")
    options = flags.parse_args(arguments)
    if not options.prompt.strip():
        raise UserError("--prompt is empty: say what to draw")
    return options
